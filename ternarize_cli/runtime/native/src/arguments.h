// Checks of the arguments of the C interface. Sizes and pointers may come from a model that is damaged or made to do harm:
// they are compared with each other and with the limits below before anything is read or written through them. What is
// checked are sizes, pointers, starts of sequences and ids, but neither weights nor vectors.
#pragma once
#include <algorithm>
#include <cmath>

#include "encoder.h"

namespace tz {

constexpr int kMostThreads = 1024;
constexpr int kMostInputs = 1 << 22;   // inputs of a linear: a sum of so many products fits 32 bits
constexpr int kMostInputs4 = 1 << 20;  // inputs of a linear with digits of 4 bits, which are up to 15
constexpr int kMostOutputs = 1 << 24;
constexpr int kMostLayers = 4096;
constexpr int kMostHead = 4096;        // width of a head
constexpr int kMostRows = 1 << 28;     // tokens in a call
constexpr int kMostLength = 1 << 24;   // tokens in a sequence
constexpr int kMostPatches = 4095;     // rows of patches, and columns
constexpr int64_t kMostKeys = 1 << 30; // numbers in the keys of a head and a sequence: attention counts them in 32 bits
constexpr int kMostTables = 16;        // tables whose rows an embedding sums

// Is thrown when an argument is invalid; `why` is the sentence that tz_why returns.
struct Refused {
  const char* why;
};

inline void require(bool holds, const char* why) {
  if (!holds) throw Refused{why};
}

inline bool within(int64_t n, int64_t least, int64_t most) { return least <= n && n <= most; }

// Requires that a pointer is not null and is aligned for its type.
template <class T>
void require_array(const T* start, const char* why) {
  require(start && reinterpret_cast<uintptr_t>(start) % alignof(T) == 0, why);
}

inline int64_t parts(int64_t n, int64_t step) { return (n + step - 1) / step; }

inline void check_threads(int threads) { require(within(threads, 1, kMostThreads), "threads are 1 to 1024"); }

inline void check_eps(float eps) {
  require(std::isfinite(eps) && eps > 0 && eps < 1, "the epsilon of a layer norm lies between 0 and 1");
}

inline void check_sizes(int outputs, int inputs, int bits) {
  require(bits == 2 || bits == 4, "the codes of a linear have 2 or 4 bits");
  require(within(inputs, 1, kMostInputs), "a linear has 1 to 4,194,304 inputs");
  require(bits == 2 || inputs <= kMostInputs4, "a linear of 4 bits has 1 to 1,048,576 inputs");
  require(within(outputs, 1, kMostOutputs), "a linear has 1 to 16,777,216 outputs");
}

// Checks a linear in training, whose codes lie between `low` and `high`.
inline void check_trained(const float* weights, const float* scales, int low, int high, int outputs, int inputs) {
  check_sizes(outputs, inputs, 2);
  require(within(low, -8, 0) && within(high, 1, 7), "codes lie between -8 and 7");
  require_array(weights, "there are no weights, or they are not aligned");
  require_array(scales, "there are no scales, or they are not aligned");
}

// Checks that a result is written either as float or as bfloat16.
inline void check_written(const float* out, const uint16_t* bf16) {
  require(!out != !bf16, "the output is either float or bfloat16");
  out ? require_array(out, "the output is not aligned") : require_array(bf16, "the output is not aligned");
}

inline void check(const Dense& w) {
  require(within(w.inputs, 1, kMostInputs), "a linear has 1 to 4,194,304 inputs");
  require(within(w.outputs, 1, kMostOutputs), "a linear has 1 to 16,777,216 outputs");
  require_array(w.weights, "a linear has no weights, or they are not aligned");
  require_array(w.bias, "a linear has no bias, or it is not aligned");
}

inline void check(const Linear& w) {
  check_sizes(w.outputs, w.inputs, w.bits);
  require(w.blocks == parts(w.inputs, kBlock), "the blocks of a linear don't fit its inputs");
  require(w.panels == parts(w.outputs, kPanel), "the panels of a linear don't fit its outputs");
  require_array(w.codes, "a linear has no codes");
  require_array(w.scale, "a linear has no scales, or they are not aligned");
  require_array(w.bias, "a linear has no bias, or it is not aligned");
}

inline void check(const Linear& w, int64_t inputs, int64_t outputs) {
  require(w.inputs == inputs && w.outputs == outputs, "a linear doesn't fit the width of the encoder");
  check(w);
}

inline void check(const Norm& by) {
  if (by.kind == kNone) return;
  require(by.kind == kLayerNorm || by.kind == kRmsNorm, "there is no norm of this kind");
  check_eps(by.eps);
  require_array(by.gain, "a norm has no gain, or it is not aligned");
  if (by.kind == kLayerNorm) require_array(by.bias, "a layer norm has no bias, or it is not aligned");
}

inline void check(const Norms& norms) {
  for (const Norm* by : {&norms.before, &norms.after, &norms.sum}) check(*by);
}

inline void check(const Layer& layer, const Encoder& e) {
  const int64_t head = e.head, heads = e.heads, inner = e.inner;
  check(layer.qkv, e.width, (heads + 2 * e.key_value_heads) * head);
  check(layer.output, heads * head, e.width);
  check(layer.up, e.width, e.gated ? parts(inner, 16) * 32 : inner);
  check(layer.down, inner, e.width);
  check(layer.attention);
  check(layer.feed_forward);
  check(layer.query);
  check(layer.key);
  require(!layer.cos == !layer.sin, "rotary positions have cosines and sines, or neither");
  if (layer.cos) {
    require_array(layer.cos, "cosines are not aligned");
    require_array(layer.sin, "sines are not aligned");
    require(e.rotated > 0, "rotary positions turn no number");
  }
  if (layer.bias) require_array(layer.bias, "the bias of positions is not aligned");
  require(layer.before >= -1 && layer.after >= -1, "a query sees all tokens (-1), or some before and after its own");
}

inline void check(const Encoder& e) {
  require(within(e.layers, 0, kMostLayers), "an encoder has 0 to 4096 layers");
  require(within(e.width, 1, kMostInputs), "an encoder is 1 to 4,194,304 wide");
  require(within(e.inner, 1, kMostInputs), "a feed-forward is 1 to 4,194,304 wide");
  require(within(e.head, 1, kMostHead), "a head is 1 to 4096 wide");
  require(within(e.heads, 1, kMostInputs / e.head), "the heads are 1 to 4,194,304 wide together");
  require(within(e.key_value_heads, 1, e.heads) && e.heads % e.key_value_heads == 0,
          "the heads of keys and values don't divide those of queries");
  require(e.gated == 0 || e.gated == 1, "a feed-forward is gated (1) or not (0)");
  require(within(e.activation, 0, kActivations - 1), "there is no such activation");
  require(within(e.positions, 0, kMostLength), "there are 0 to 16,777,216 positions");
  require(within(e.rotated, 0, e.head / 2), "rotary positions turn more than a head");
  require(within(e.reach, 0, kMostLength), "a bias reaches 0 to 16,777,216 tokens");
  require(within(e.patch_rows, 0, kMostPatches), "an image has 0 to 4095 rows of patches");
  require(within(e.patch_columns, 0, kMostPatches), "an image has 0 to 4095 columns of patches");
  require(!e.patch_rows == !e.patch_columns, "an image has rows and columns of patches, or neither");
  require(std::isfinite(e.scale), "the scale of attention is not finite");
  check(e.last);
  if (e.layers) require_array(e.layer, "an encoder has no layers, or they are not aligned");
  for (int i = 0; i < e.layers; ++i) check(e.layer[i], e);
}

// Checks that sequences, which begin at the rows `starts`, lie end to end in `tokens` rows.
inline void check_rows_of(const int32_t* starts, int sequences, int tokens) {
  require(within(sequences, 0, kMostRows), "there are 0 to 268,435,456 sequences");
  require(within(tokens, 0, kMostRows), "there are 0 to 268,435,456 tokens");
  require_array(starts, "there are no starts of sequences, or they are not aligned");
  require(starts[0] == 0, "the first sequence starts at 0");
  for (int i = 0; i < sequences; ++i)
    require(starts[i] <= starts[i + 1] && starts[i + 1] <= tokens, "a sequence ends before it starts, or behind the last token");
  require(starts[sequences] == tokens, "the last sequence ends at the last token");
}

// Checks that sequences lie end to end in `tokens` rows, and are not too long for an encoder.
inline void check_starts(const Encoder& e, const int32_t* starts, int sequences, int tokens) {
  check_rows_of(starts, sequences, tokens);
  const int64_t head = parts(e.head, 32) * 32;
  int64_t longest = std::min<int64_t>(kMostLength, kMostKeys / head / 32 * 32);
  for (int i = 0; i < e.layers; ++i) {
    if (e.layer[i].cos) longest = std::min<int64_t>(longest, e.positions);
    if (e.layer[i].bias && e.patch_rows) longest = std::min<int64_t>(longest, 1 + e.patch_rows * int64_t{e.patch_columns});
  }
  for (int i = 0; i < sequences; ++i) require(starts[i + 1] - starts[i] <= longest, "a sequence has too many tokens");
}

// Checks that the ids of `rows` tokens are all rows of a table of `table_rows` rows.
inline void check_ids(const int64_t* ids, int rows, int64_t table_rows) {
  require(table_rows > 0, "a table has no rows");
  require_array(ids, "there are no ids, or they are not aligned");
  // As an unsigned number, a negative id is a large one.
  uint64_t most = 0;
  for (int i = 0; i < rows; ++i) most = std::max(most, static_cast<uint64_t>(ids[i]));
  require(most < static_cast<uint64_t>(table_rows), "an id is no row of its table");
}

}  // namespace tz
