// Runs all blocks of an encoder on packed weights in one call.
#pragma once
#include "native.h"

namespace tz {

extern "C" struct Layer {
  Linear qkv;     // queries, keys and values of all heads, one after the other: 3 * width outputs
  Linear output;    // the output of attention
  Linear up, down;  // the feed-forward
  const float *first_gain, *first_bias, *second_gain, *second_bias;  // the two layer norms
};

extern "C" struct Encoder {
  int32_t layers, width, heads, inner;  // inner: width of the feed-forward
  int32_t norm_first;  // 1: layer norms before attention and feed-forward (ViT); 0: after them (BERT)
  float eps;
  const Layer* layer;
};

// Runs all blocks over sequences that lie end to end, without padding, and writes the last hidden states over x.
// Arguments are not checked here: the C interface has checked them (arguments.h).
//   starts: the row of x where each sequence begins, and the row where the last one ends: [sequences + 1]
//   x: float [starts[sequences]][width], the embeddings
void encode(const Encoder& encoder, const Kernels& kernels, const int32_t* starts, int sequences, float* x, int threads);

}  // namespace tz
