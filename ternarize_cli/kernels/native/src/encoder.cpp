// Cuts the work into pieces (threads.h) in one of three ways.
//
//   groups    With enough sequences, a piece is a group of sequences, which one thread takes through all blocks. It never
//             waits, and what it works on stays in its cache.
//   rows      With fewer sequences, a piece is some of the tokens. A block has two stages, since attention needs the keys and
//             values of all tokens.
//   outputs   With a handful of tokens, a piece is some of the outputs of a product, and every product is a stage.
//
// The feed-forward takes the rows in blocks, so that its wide activations stay in the cache.
#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "threads.h"

namespace tz {
namespace {

constexpr int kGroup = 256;        // tokens after which a group takes no further sequence
constexpr int kFeedForward = 128;  // rows in a block of the feed-forward
constexpr int kLeast = 32;         // tokens for each thread from which on pieces are groups or rows
constexpr int kPiece = 128;        // rows in a piece, if each thread has so many

constexpr size_t up_to(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Memory that a calling thread keeps from call to call. All memory of a call is reserved before its threads start, so that
// none of them allocates. Each thread is the first to touch its part, so the system puts that part near its core.
class Arena {
 public:
  ~Arena() { std::free(memory_); }

  // At least `bytes` bytes, aligned to 64.
  uint8_t* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, up_to(bytes, 64)));
      if (!memory_) throw std::bad_alloc();
      size_ = bytes;
    }
    return memory_;
  }

 private:
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
};

// Hands out a part of an arena piece by piece, each aligned to 64 bytes.
class Pieces {
 public:
  explicit Pieces(uint8_t* start) : next_(start) {}

  template <class T>
  T* take(size_t count) {
    T* made = reinterpret_cast<T*>(next_);
    next_ += up_to(count * sizeof(T), 64);
    return made;
  }

 private:
  uint8_t* next_;
};

Activations activations(Pieces& pieces, int rows, int width) {
  const int blocks = static_cast<int>(up_to(width, kBlock) / kBlock);
  return {pieces.take<int8_t>(Activations::bytes(rows, blocks)), pieces.take<float>(rows), pieces.take<int32_t>(rows),
          blocks};
}

// The memory that all threads share.
struct Buffers {
  void* qkv;       // [tokens][3 * width], float or bfloat16
  float* context;  // [tokens][width]
  Activations narrow;

  static size_t bytes(const Encoder& e, size_t tokens) {
    const size_t rows = up_to(tokens, kRows) + kRows, width = e.width;
    return rows * (3 * width * 4 + width * 4 + up_to(width, kBlock) + 8) + 8 * 64;
  }

  Buffers(const Encoder& e, int tokens, bool bf16, Pieces pieces) {
    const size_t rows = up_to(tokens, kRows);
    qkv = bf16 ? static_cast<void*>(pieces.take<uint16_t>(rows * 3 * e.width)) : pieces.take<float>(rows * 3 * e.width);
    context = pieces.take<float>(rows * e.width);
    narrow = activations(pieces, static_cast<int>(rows), e.width);
  }
};

// The memory of the feed-forward. Each thread has its own, but where pieces are outputs, all use that of the first thread.
struct Wide {
  float* hidden;  // [kFeedForward][inner]
  Activations q;

  static size_t bytes(const Encoder& e) {
    return (kFeedForward + kRows) * (static_cast<size_t>(e.inner) * 4 + up_to(e.inner, kBlock) + 8) + 8 * 64;
  }

  Wide(const Encoder& e, Pieces& pieces)
      : hidden(pieces.take<float>(static_cast<size_t>(kFeedForward) * e.inner)),
        q(activations(pieces, kFeedForward, e.inner)) {}
};

size_t scratch_bytes(const Encoder& e, int longest) {
  const size_t blocks = up_to(std::max(e.width, e.inner), kBlock) / kBlock;
  return std::max(gemm_scratch(blocks), attention_scratch(longest, e.width / e.heads));
}

// How the blocks of an encoder are cut into stages and pieces.
struct Plan {
  int tokens, threads;
  bool by_rows;  // pieces are rows; otherwise outputs

  Plan(int tokens, int threads) : tokens(tokens), threads(threads), by_rows(threads == 1 || tokens >= kLeast * threads) {}

  // The pieces of a stage in which each piece is some of the rows.
  int row_pieces() const {
    const int whole = by_rows && threads > 1 ? tokens / kPiece / threads : 1;
    return std::min(threads * std::max(whole, 1), (tokens + 15) / 16);
  }

  // The first row of a piece, a multiple of 16 (a tile of activations).
  int row(int piece) const { return std::min(tokens, share((tokens + 15) / 16, piece, row_pieces()) * 16); }

  size_t stages(int layers) const {
    const size_t blocks = (tokens + kFeedForward - 1) / kFeedForward;
    return layers * (by_rows ? 2 : 6 + 3 * blocks) + 1;
  }
};

// One thread.
struct Member {
  const Encoder& e;
  const Kernels& k;
  const int32_t* starts;
  int sequences;
  const Plan& plan;
  float* x;
  const Buffers& to;
  const Wide& wide;
  uint8_t* scratch;
  Worker& worker;

  // Runs a stage whose pieces are rows: work(first, last).
  template <class Work>
  void rows(const Work& work) const {
    worker.stage(plan.row_pieces(), [&](int piece) { work(plan.row(piece), plan.row(piece + 1)); });
  }

  // Runs a stage whose pieces are some of `count` things: work(first, last).
  template <class Work>
  void parts(int count, const Work& work) const {
    const int pieces = std::min(count, plan.threads);
    worker.stage(pieces, [&](int piece) { work(share(count, piece, pieces), share(count, piece + 1, pieces)); });
  }

  void norm(const float* from, const float* gain, const float* bias, int first, int last, float* into) const {
    const size_t at = static_cast<size_t>(first) * e.width;
    if (first < last) k.layer_norm(from + at, last - first, e.width, gain, bias, e.eps, into + at);
  }

  // Computes attention for the heads [first, last), counted through all sequences, and the tokens [from, until).
  void attend(int64_t first, int64_t last, int from, int until) const {
    const int head = e.width / e.heads;
    const size_t stride = 3 * static_cast<size_t>(e.width);
    const float scale = 1.0f / std::sqrt(static_cast<float>(head));
    for (int64_t i = first; i < last; ++i) {
      const int sequence = static_cast<int>(i / e.heads), column = static_cast<int>(i % e.heads) * head;
      const int at = starts[sequence] - starts[0], length = starts[sequence + 1] - starts[sequence];
      const int begin = std::max(from - at, 0), end = std::min(until - at, length);
      if (begin >= end) continue;
      const size_t place = at * stride + column;
      const void* qkv = k.bf16 ? static_cast<const void*>(static_cast<const uint16_t*>(to.qkv) + place)
                               : static_cast<const float*>(to.qkv) + place;
      k.attention(qkv, stride, e.width, length, begin, end, head, scale,
                  to.context + static_cast<size_t>(at) * e.width + column, e.width, scratch);
    }
  }

  // Each of these multiplies rows by the panels [first, last) of a linear of a layer.
  void project(const Linear& w, int first, int last, int from, int until) const {
    const size_t stride = 3 * static_cast<size_t>(e.width), at = from * stride;
    Sink sink = {Then::kStore, nullptr, nullptr, nullptr, stride};
    if (k.bf16) {
      sink.then = Then::kBf16;
      sink.bf16 = static_cast<uint16_t*>(to.qkv) + at;
    } else {
      sink.out = static_cast<float*>(to.qkv) + at;
    }
    k.gemm(w, first, last, to.narrow.from(from), until - from, sink, scratch);
  }

  void add(const Linear& w, int first, int last, const Activations& a, int row, int count) const {
    const size_t at = static_cast<size_t>(row) * e.width, width = e.width;
    k.gemm(w, first, last, a, count, {Then::kAdd, sum() + at, nullptr, x + at, width}, scratch);
  }

  void widen(const Linear& w, int first, int last, int row, int count) const {
    k.gemm(w, first, last, to.narrow.from(row), count,
           {Then::kGelu, wide.hidden, nullptr, nullptr, static_cast<size_t>(e.inner)}, scratch);
  }

  float* sum() const { return e.norm_first ? x : to.context; }

  // Rounds the rows of a block's input; before, the norm of the block before it is applied, if norms come after.
  void enter(int layer, int first, int last) const {
    if (e.norm_first) {
      norm(x, e.layer[layer].first_gain, e.layer[layer].first_bias, first, last, to.context);
    } else if (layer > 0) {
      leave(layer - 1, first, last);
    }
    k.quantize(e.norm_first ? to.context : x, first, last, e.width, to.narrow);
  }

  // Rounds the rows of the feed-forward's input.
  void enter_feed_forward(const Layer& layer, int first, int last) const {
    if (e.norm_first) {
      norm(x, layer.second_gain, layer.second_bias, first, last, to.context);
    } else {
      norm(to.context, layer.first_gain, layer.first_bias, first, last, x);
    }
    k.quantize(e.norm_first ? to.context : x, first, last, e.width, to.narrow);
  }

  // Applies the norm at the end of a block, if norms come after.
  void leave(int layer, int first, int last) const {
    if (!e.norm_first) norm(to.context, e.layer[layer].second_gain, e.layer[layer].second_bias, first, last, x);
  }

  void run_by_rows() const {
    for (int i = 0; i < e.layers; ++i) {
      const Layer& layer = e.layer[i];
      rows([&](int from, int until) {
        enter(i, from, until);
        project(layer.qkv, 0, layer.qkv.panels, from, until);
      });
      rows([&](int from, int until) {
        attend(0, static_cast<int64_t>(sequences) * e.heads, from, until);
        k.quantize(to.context, from, until, e.width, to.narrow);
        add(layer.output, 0, layer.output.panels, to.narrow.from(from), from, until - from);
        enter_feed_forward(layer, from, until);
        for (int row = from; row < until; row += kFeedForward) {
          const int count = std::min(kFeedForward, until - row);
          widen(layer.up, 0, layer.up.panels, row, count);
          k.quantize(wide.hidden, 0, count, e.inner, wide.q);
          add(layer.down, 0, layer.down.panels, wide.q, row, count);
        }
      });
    }
  }

  void run_by_outputs() const {
    const int tokens = plan.tokens;
    const int64_t heads = static_cast<int64_t>(sequences) * e.heads;  // of all sequences
    const int some = static_cast<int>(std::min<int64_t>(heads, plan.threads));
    for (int i = 0; i < e.layers; ++i) {
      const Layer& layer = e.layer[i];
      rows([&](int from, int until) { enter(i, from, until); });
      parts(layer.qkv.panels, [&](int first, int last) { project(layer.qkv, first, last, 0, tokens); });
      worker.stage(some, [&](int piece) { attend(heads * piece / some, heads * (piece + 1) / some, 0, tokens); });
      rows([&](int from, int until) { k.quantize(to.context, from, until, e.width, to.narrow); });
      parts(layer.output.panels,
            [&](int first, int last) { add(layer.output, first, last, to.narrow, 0, tokens); });
      rows([&](int from, int until) { enter_feed_forward(layer, from, until); });
      for (int row = 0; row < tokens; row += kFeedForward) {
        const int count = std::min(kFeedForward, tokens - row);
        parts(layer.up.panels, [&](int first, int last) { widen(layer.up, first, last, row, count); });
        parts(count, [&](int first, int last) { k.quantize(wide.hidden, first, last, e.inner, wide.q); });
        parts(layer.down.panels, [&](int first, int last) { add(layer.down, first, last, wide.q, row, count); });
      }
    }
  }

  void run() const {
    k.begin();
    plan.by_rows ? run_by_rows() : run_by_outputs();
    if (e.layers > 0) rows([&](int from, int until) { leave(e.layers - 1, from, until); });
    k.end();
  }
};

thread_local Arena arena;

// The bytes of the parts of an arena: `shared` by all threads, for up to `tokens` tokens; `thread` is for each thread.
struct Room {
  size_t shared, thread, scratch;

  Room(const Encoder& e, int tokens, int longest)
      : shared(up_to(Buffers::bytes(e, tokens), 64)),
        thread(up_to(scratch_bytes(e, longest), 64) + up_to(Wide::bytes(e), 64)),
        scratch(scratch_bytes(e, longest)) {}
};

// Runs a group of sequences on a thread of all that do so. `memory` has room.shared bytes, and room.thread bytes for each of
// them.
void run_group(const Encoder& e, const Kernels& k, const int32_t* starts, int sequences, const Plan& plan, float* x,
               const Room& room, uint8_t* memory, Worker& worker) {
  const Buffers buffers(e, plan.tokens, k.bf16, Pieces(memory));
  uint8_t* const own = memory + room.shared;  // the part of the first thread; those of the others follow
  Pieces pieces(own + worker.rank * room.thread), first(own);
  uint8_t* scratch = pieces.take<uint8_t>(room.scratch);
  first.take<uint8_t>(room.scratch);
  const Wide wide(e, plan.by_rows ? pieces : first);
  Member{e, k, starts, sequences, plan, x, buffers, wide, scratch, worker}.run();
}

}  // namespace

size_t attention_scratch(int length, int head) {
  const size_t padded = up_to(length, 32), wide = up_to(head, 32);
  const size_t tiles = 2 * padded * wide * 2 + 16 * padded * 2 + 16 * wide * 2 + 16 * padded * 4;
  const size_t floats = (head + 4) * padded * 4;
  return std::max(tiles, floats);
}

void encode(const Encoder& e, const Kernels& k, const int32_t* starts, int sequences, float* x, int threads) {
  if (sequences == 0 || starts[sequences] == starts[0]) return;
  int longest = 0;
  for (int i = 0; i < sequences; ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
  const int tokens = starts[sequences] - starts[0];
  const int target = std::min(kGroup, (tokens + threads - 1) / threads);
  std::vector<int> groups = {0};  // the first sequence of each group, and at the end the number of sequences
  for (int i = 0; i < sequences; ++i)
    if (starts[i + 1] - starts[groups.back()] >= target || i + 1 == sequences) groups.push_back(i + 1);
  const int count = static_cast<int>(groups.size()) - 1;
  // With fewer groups than threads, idle threads cost more than waiting after each stage. With few tokens, it does not pay
  // that every thread reads all weights.
  if (threads == 1 || count < threads || tokens < kLeast * threads) {
    const int admitted = Crowd::admit(threads);
    const Room room(e, tokens, longest);
    const Plan plan(tokens, admitted);
    uint8_t* const memory = arena.reserve(room.shared + admitted * room.thread);
    const std::unique_ptr<Stage[]> stages(new Stage[plan.stages(e.layers)]);
    const auto work = [&](Worker& worker) { run_group(e, k, starts, sequences, plan, x, room, memory, worker); };
    return parallel(admitted, stages.get(), work, threads);
  }
  int most = 0;  // tokens in a group
  for (int i = 0; i < count; ++i) most = std::max(most, starts[groups[i + 1]] - starts[groups[i]]);
  const Room room(e, most, longest);
  const size_t bytes = room.shared + room.thread;
  uint8_t* const memory = arena.reserve(threads * bytes);
  Stage stage;
  parallel(threads, &stage, [&](Worker& worker) {
    worker.stage(count, [&](int i) {
      const int first = groups[i], last = groups[i + 1];
      float* from = x + static_cast<size_t>(starts[first] - starts[0]) * e.width;
      const Plan plan(starts[last] - starts[first], 1);
      Worker alone(nullptr, 0);
      run_group(e, k, starts + first, last - first, plan, from, room, memory + worker.rank * bytes, alone);
    });
  });
}

}  // namespace tz
