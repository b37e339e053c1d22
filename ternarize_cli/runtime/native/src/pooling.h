// Makes one vector of the tokens of a sequence. Sums are in double precision and go through the tokens in order, so that a
// vector depends neither on the instruction set nor on the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tz {

enum class Pooling : int32_t {
  kFirst,          // the first token
  kLast,           // the last token
  kMean,           // the sum, divided by the number of tokens
  kMeanRoot,       // the sum, divided by the root of the number of tokens
  kMax,            // the largest value of each column; -infinity without a token
  kWeightedMean,   // the mean of the tokens, weighted by their places, counted from 1
};
constexpr int kPoolings = 6;

// Pools a sequence of `length` rows of x, `width` numbers each, without the first `skipped` of them. Without a token the vector
// is zero, but for kMax.
void pool(Pooling mode, const float* x, int length, int skipped, int width, float* out);

// Scales a row to length 1; a row of a length under 1e-12 is divided by 1e-12.
void normalize(float* row, int width);

}  // namespace tz
