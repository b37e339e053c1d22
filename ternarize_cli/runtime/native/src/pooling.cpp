#include "pooling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tz {
namespace {

constexpr int kColumns = 128;  // columns that are summed at a time

// Sums the rows [first, length) of some columns, each times its weight: its place counted from 1, or 1.
void sum_up(const float* x, int first, int length, int width, int columns, bool is_weighted, double* sum) {
  std::fill(sum, sum + columns, 0.0);
  for (int row = first; row < length; ++row) {
    const float* from = x + static_cast<size_t>(row) * width;
    const double weight = is_weighted ? row + 1 : 1;
    for (int i = 0; i < columns; ++i) sum[i] += weight * from[i];
  }
}

}  // namespace

void pool(Pooling mode, const float* x, int length, int skipped, int width, float* out) {
  const int first = std::min(skipped, length), count = length - first;
  if (mode == Pooling::kMax) {
    std::fill(out, out + width, -std::numeric_limits<float>::infinity());
    for (int row = first; row < length; ++row)
      for (int i = 0; i < width; ++i) {
        const float value = x[static_cast<size_t>(row) * width + i];
        out[i] = value > out[i] || value != value ? value : out[i];
      }
    return;
  }
  if (count == 0) return std::fill(out, out + width, 0.0f), void();
  if (mode == Pooling::kFirst || mode == Pooling::kLast) {
    const float* from = x + static_cast<size_t>(mode == Pooling::kFirst ? first : length - 1) * width;
    std::copy(from, from + width, out);
    return;
  }
  const bool is_weighted = mode == Pooling::kWeightedMean;
  double weights = count;
  if (is_weighted) weights = .5 * count * (first + 1.0 + length);  // first + 1, ..., length
  if (mode == Pooling::kMeanRoot) weights = std::sqrt(weights);
  double sum[kColumns];
  for (int column = 0; column < width; column += kColumns) {
    const int columns = std::min(kColumns, width - column);
    sum_up(x + column, first, length, width, columns, is_weighted, sum);
    for (int i = 0; i < columns; ++i) out[column + i] = static_cast<float>(sum[i] / weights);
  }
}

void normalize(float* row, int width) {
  double square = 0;
  for (int i = 0; i < width; ++i) square += static_cast<double>(row[i]) * row[i];
  const float length = std::max(static_cast<float>(std::sqrt(square)), 1e-12f);
  for (int i = 0; i < width; ++i) row[i] /= length;
}

}  // namespace tz
