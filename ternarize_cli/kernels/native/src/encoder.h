// A stack of transformer blocks on packed weights: the whole forward pass in one call.
#pragma once
#include "native.h"

namespace tz {

extern "C" struct Layer {
  Linear qkv;     // queries, keys and values of all heads, one after the other: 3 * width outputs
  Linear output;  // of attention
  Linear up, down;
  const float *first_gain, *first_bias, *second_gain, *second_bias;  // the two layer norms
};

extern "C" struct Encoder {
  int32_t layers, width, heads, inner;
  int32_t norm_first;  // norms before attention and feed-forward (ViT), or after them (BERT)
  float eps;
  const Layer* layer;
};

// Runs all blocks over sequences that lie end to end, without padding, in place.
// Nothing is checked here: what the C interface is handed goes through arguments.h first.
//   starts: sequences + 1 rows, where each sequence begins and the last one ends
//   x: [starts[sequences]][width], what the blocks take; becomes what they give
void encode(const Encoder& encoder, const Kernels& kernels, const int32_t* starts, int sequences, float* x, int threads);

}  // namespace tz
