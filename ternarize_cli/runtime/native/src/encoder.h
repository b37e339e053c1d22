// Runs all blocks of an encoder on packed weights in one call.
//
// A block is attention and then a feed-forward: x = x + f(x) for each of the two, with norms in up to three places: of what f
// reads (`before`), of what f gives (`after`), and of the sum (`sum`). BERT has the last of these, ViT and ModernBERT the first,
// Gemma 3 the first two.
#pragma once
#include "native.h"

namespace tz {

extern "C" struct Norms {
  Norm before, after, sum;
};

extern "C" struct Layer {
  Linear qkv;     // queries of all heads, then keys, then values of all key-value heads
  Linear output;  // the output of attention
  // The feed-forward. If it is gated, `up` has 16 outputs that go through the activation, then the 16 that these are multiplied
  // by, and so on, up to a multiple of 16 of each (Then::kGate).
  Linear up, down;
  Norms attention, feed_forward;
  Norm query, key;           // of each head
  const float *cos, *sin;    // rotary positions: [Encoder.positions][Encoder.rotated]; null: none
  // Is added to scores; null: nothing is. By the distance from query to key: [heads][2 * reach + 1]. If Encoder.patch_rows > 0,
  // tokens are a first token and then an image's patches, row by row, and biases are by the rows and then the columns from query
  // to key: [heads][(2 * patch_rows - 1) * (2 * patch_columns - 1) + 3]; the last 3: the first token as query, as key, as both.
  const float* bias;
  int32_t before, after;     // a query sees so many tokens before and after its own; -1: all
};

extern "C" struct Encoder {
  int32_t layers, width, heads, key_value_heads, head;  // head: width of a head
  int32_t inner;       // width of the feed-forward
  int32_t gated;       // 1: the feed-forward is gated; 0: it is not
  int32_t activation;  // one of `Activation`
  int32_t positions;   // the longest sequence that rotary positions are there for
  int32_t rotated;     // pairs of numbers of a head that rotary positions turn
  int32_t reach;       // keys that are farther from a query than this have the bias of this distance
  int32_t patch_rows, patch_columns;  // the patches that biases are there for; 0: biases are by distance
  float scale;         // of the products of queries and keys
  Norm last;           // of the last hidden states
  const Layer* layer;
};

// Runs all blocks over sequences that lie end to end, without padding, and writes the last hidden states over x.
// Arguments are not checked here: the C interface has checked them (arguments.h).
//   starts: the row of x where each sequence begins, and the row where the last one ends: [sequences + 1]
//   x: float [starts[sequences]][width], the embeddings
void encode(const Encoder& encoder, const Kernels& kernels, const int32_t* starts, int sequences, float* x, int threads);

}  // namespace tz
