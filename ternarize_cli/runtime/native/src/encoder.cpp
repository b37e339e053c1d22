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
constexpr int kLeast = 32;         // tokens for each thread from which on pieces are groups or rows
constexpr int kPiece = 128;        // rows in a piece, if each thread has so many
constexpr size_t kBiases = 1 << 16;  // numbers in a bias of patches that is written at a time, if 16 queries have no more

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

size_t activation_bytes(size_t rows, int width) {
  return Activations::bytes(rows, static_cast<int>(up_to(width, kBlock) / kBlock)) + rows * 8 + 3 * 64;
}

int context_width(const Encoder& e) { return e.heads * e.head; }
size_t qkv_width(const Encoder& e) { return (e.heads + 2 * static_cast<size_t>(e.key_value_heads)) * e.head; }

// The memory that all threads share.
struct Buffers {
  size_t span;     // elements from row to row of `work`
  void* qkv;       // [tokens][qkv_width], float or bfloat16
  float* work;     // [tokens][span]: what attention gives, sums and products before a norm
  Activations narrow, attended;  // what blocks read, and what attention gives

  static size_t row(const Encoder& e) { return std::max(e.width, context_width(e)); }

  static size_t bytes(const Encoder& e, size_t tokens) {
    const size_t rows = up_to(tokens, kRows);
    return rows * (qkv_width(e) + row(e)) * 4 + activation_bytes(rows, e.width) +
           activation_bytes(rows, context_width(e)) + 4 * 64;
  }

  Buffers(const Encoder& e, int tokens, bool bf16, Pieces pieces) : span(row(e)) {
    const size_t rows = up_to(tokens, kRows);
    qkv = bf16 ? static_cast<void*>(pieces.take<uint16_t>(rows * qkv_width(e))) : pieces.take<float>(rows * qkv_width(e));
    work = pieces.take<float>(rows * span);
    narrow = activations(pieces, static_cast<int>(rows), e.width);
    attended = activations(pieces, static_cast<int>(rows), context_width(e));
  }
};

// The memory of the feed-forward. Each thread has its own, but where pieces are outputs, all use that of the first thread.
struct Wide {
  size_t span;    // elements from row to row of `hidden`
  float* hidden;  // [Kernels.rows][span]
  Activations q;

  static size_t row(const Encoder& e) { return up_to(e.inner, kPanel / 2); }

  static size_t bytes(const Encoder& e, const Kernels& k) {
    return k.rows * row(e) * 4 + activation_bytes(k.rows, e.inner) + 2 * 64;
  }

  Wide(const Encoder& e, const Kernels& k, Pieces& pieces)
      : span(row(e)), hidden(pieces.take<float>(k.rows * span)), q(activations(pieces, k.rows, e.inner)) {}
};

bool is_biased(const Encoder& e) {
  return std::any_of(e.layer, e.layer + e.layers, [](const Layer& layer) { return layer.bias; });
}

// The memory of a thread for a product or the attention of a head: first the bias of the head, if there is one.
struct Scratch {
  size_t bias, bytes;

  // The queries whose bias of patches is written at a time: all of a small image, and a multiple of 16 of a large one, so that
  // memory grows linearly.
  static int queries(int length) {
    const size_t all = up_to(length, 16), some = kBiases / length / 16 * 16;
    return static_cast<int>(std::min(all, std::max<size_t>(some, 16)));
  }

  // The numbers of a bias of up to `longest` tokens; a shorter sequence may write more queries at a time.
  static size_t biases(const Encoder& e, size_t longest) {
    return e.patch_rows ? std::min(up_to(longest, 16) * longest, std::max(kBiases, 16 * longest)) : 2 * longest;
  }

  Scratch(const Encoder& e, int longest) {
    const size_t blocks = up_to(std::max({e.width, e.inner, context_width(e)}), kBlock) / kBlock;
    bias = is_biased(e) ? up_to(biases(e, longest) * sizeof(float), 64) : 0;
    bytes = bias + std::max(gemm_scratch(static_cast<int>(blocks)), attention_scratch(longest, e.head));
  }
};

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

  size_t stages(int layers, const Kernels& k) const {
    const size_t blocks = (tokens + k.rows - 1) / k.rows;
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
  float* line;  // the bias of a head
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

  float* hidden(int row) const { return x + static_cast<size_t>(row) * e.width; }
  float* work(int row) const { return to.work + row * to.span; }

  // The queries of a head of a token; its keys and values lie further on in the same row.
  void* head_of(int row, int head) const {
    const size_t place = row * qkv_width(e) + static_cast<size_t>(head) * e.head;
    return k.bf16 ? static_cast<void*>(static_cast<uint16_t*>(to.qkv) + place) : static_cast<float*>(to.qkv) + place;
  }

  // Rounds rows of the hidden states, after a norm if there is one, which goes through rows of `work` that stay in the cache.
  void round(const Norm& by, int first, int last) const {
    constexpr int kSome = 16;
    if (by.kind == kNone) return k.quantize(x, e.width, first, last, e.width, to.narrow);
    for (int row = first; row < last; row += kSome) {
      const int until = std::min(row + kSome, last);
      k.norm(hidden(row), e.width, until - row, e.width, by, nullptr, work(row), to.span);
      k.quantize(to.work, to.span, row, until, e.width, to.narrow);
    }
  }

  // Adds what a linear gave, which lies in `work`, to the hidden states, and norms the sum, as far as `add` has not done so.
  void settle(const Norms& norms, int first, int last) const {
    if (first >= last) return;
    const size_t width = e.width;
    if (norms.after.kind != kNone) {
      k.norm(work(first), to.span, last - first, e.width, norms.after, hidden(first), hidden(first), width);
      if (norms.sum.kind != kNone)
        k.norm(hidden(first), width, last - first, e.width, norms.sum, nullptr, hidden(first), width);
    } else if (norms.sum.kind != kNone) {
      k.norm(work(first), to.span, last - first, e.width, norms.sum, nullptr, hidden(first), width);
    }
  }

  bool has_positions(const Layer& layer) const {
    return layer.cos || layer.query.kind != kNone || layer.key.kind != kNone;
  }

  // Norms and rotates the heads [first, last) of a token's row, counted through queries and keys. `place`: in its sequence.
  void rotate(const Layer& layer, int row, int place, int first, int last) const {
    const float* cos = layer.cos ? layer.cos + static_cast<size_t>(place) * e.rotated : nullptr;
    const float* sin = layer.cos ? layer.sin + static_cast<size_t>(place) * e.rotated : nullptr;
    const int middle = std::min(std::max(first, e.heads), last);
    if (first < middle) k.rotate(head_of(row, first), middle - first, e.head, layer.query, cos, sin, e.rotated);
    if (middle < last) k.rotate(head_of(row, middle), last - middle, e.head, layer.key, cos, sin, e.rotated);
  }

  void rotate_rows(const Layer& layer, int first, int last) const {
    if (!has_positions(layer)) return;
    int sequence = 0;
    for (int row = first; row < last; ++row) {
      while (starts[sequence + 1] - starts[0] <= row) ++sequence;
      rotate(layer, row, row - (starts[sequence] - starts[0]), 0, e.heads + e.key_value_heads);
    }
  }

  // Writes the bias of a head to `line`, for distances from -(length - 1) to length - 1.
  void write_bias(const Layer& layer, int head, int length) const {
    const float* bias = layer.bias + static_cast<size_t>(head) * (2 * static_cast<size_t>(e.reach) + 1) + e.reach;
    for (int distance = 1 - length; distance < length; ++distance)
      line[distance + length - 1] = bias[std::min(std::max(distance, -e.reach), e.reach)];
  }

  // Writes the bias of a head by patches to `line`: [last - first][length], for the queries [first, last).
  void write_patch_bias(const Layer& layer, int head, int length, int first, int last) const {
    const int columns = e.patch_columns, wide = 2 * columns - 1;
    const size_t steps = (2 * static_cast<size_t>(e.patch_rows) - 1) * wide;
    const float* const bias = layer.bias + head * (steps + 3);
    const float* const of_first = bias + steps;
    float* to = line;
    for (int query = first; query < last; ++query, to += length) {
      if (query == 0) {
        std::fill(to, to + length, of_first[0]);
        to[0] = of_first[2];
        continue;
      }
      to[0] = of_first[1];
      const int row = (query - 1) / columns, column = (query - 1) % columns;
      const float* from = bias + static_cast<size_t>(e.patch_rows - 1 - row) * wide + columns - 1 - column;
      for (int key = 1; key < length; key += columns, from += wide)
        std::copy_n(from, std::min(columns, length - key), to + key);
    }
  }

  // Computes attention with a bias by patches, for as many queries at a time as `line` holds the biases of.
  void attend_patches(const Layer& layer, int head, Attention at) const {
    const int step = Scratch::queries(at.length), until = at.last;
    for (at.bias_stride = at.length; at.first < until; at.first = at.last) {
      at.last = std::min(at.first + step, until);
      write_patch_bias(layer, head, at.length, at.first, at.last);
      at.bias = line - at.first * at.bias_stride;
      k.attention(at);
    }
  }

  // Computes attention for the heads [first, last), counted through all sequences, and the tokens [from, until).
  void attend(const Layer& layer, int64_t first, int64_t last, int from, int until) const {
    const int group = e.heads / e.key_value_heads;
    Attention at = {};
    at.stride = qkv_width(e);
    at.head = e.head;
    at.scale = e.scale;
    at.out_stride = to.span;
    at.scratch = scratch;
    at.before = layer.before < 0 ? INT32_MAX : layer.before;
    at.after = layer.after < 0 ? INT32_MAX : layer.after;
    for (int64_t i = first; i < last; ++i) {
      const int sequence = static_cast<int>(i / e.heads), head = static_cast<int>(i % e.heads);
      const int start = starts[sequence] - starts[0];
      at.length = starts[sequence + 1] - starts[sequence];
      at.first = std::max(from - start, 0);
      at.last = std::min(until - start, at.length);
      if (at.first >= at.last) continue;
      at.q = head_of(start, head);
      at.k = head_of(start, e.heads + head / group);
      at.v = head_of(start, e.heads + e.key_value_heads + head / group);
      at.out = work(start) + static_cast<size_t>(head) * e.head;
      if (layer.bias && e.patch_rows) {
        attend_patches(layer, head, at);
        continue;
      }
      if (layer.bias) {
        write_bias(layer, head, at.length);
        at.bias = line + at.length - 1;
        at.bias_stride = -1;
      }
      k.attention(at);
    }
  }

  // Each of these multiplies rows by the panels [first, last) of a linear of a layer.
  void project(const Linear& w, int first, int last, int from, int until) const {
    Sink sink = {Then::kStore, nullptr, nullptr, nullptr, qkv_width(e)};
    if (k.bf16) {
      sink.then = Then::kBf16;
      sink.bf16 = static_cast<uint16_t*>(head_of(from, 0));
    } else {
      sink.out = static_cast<float*>(head_of(from, 0));
    }
    k.gemm(w, first, last, to.narrow.from(from), until - from, sink, scratch);
  }

  // Multiplies by a linear whose outputs are added to the hidden states: there, or in `work` if a norm has to come first.
  void add(const Linear& w, const Norms& norms, int first, int last, const Activations& a, int row, int count) const {
    const size_t width = e.width;
    Sink sink = {Then::kAdd, hidden(row), nullptr, hidden(row), width, width};
    if (norms.after.kind != kNone)
      sink = {Then::kStore, work(row), nullptr, nullptr, to.span};
    else if (norms.sum.kind != kNone)
      sink = {Then::kAdd, work(row), nullptr, hidden(row), to.span, width};
    k.gemm(w, first, last, a, count, sink, scratch);
  }

  void widen(const Linear& w, int first, int last, int row, int count) const {
    const Activation by = static_cast<Activation>(e.activation);
    k.gemm(w, first, last, to.narrow.from(row), count,
           {e.gated ? gated(by) : activated(by), wide.hidden, nullptr, nullptr, wide.span}, scratch);
  }

  void round_wide(int first, int last) const { k.quantize(wide.hidden, wide.span, first, last, e.inner, wide.q); }

  void round_attended(int first, int last) const {
    k.quantize(to.work, to.span, first, last, context_width(e), to.attended);
  }

  // Ends the block before, and rounds what attention reads.
  void enter(int i, int first, int last) const {
    if (i > 0) settle(e.layer[i - 1].feed_forward, first, last);
    round(e.layer[i].attention.before, first, last);
  }

  void enter_feed_forward(const Layer& layer, int first, int last) const {
    settle(layer.attention, first, last);
    round(layer.feed_forward.before, first, last);
  }

  // Ends the last block.
  void leave(int first, int last) const {
    if (e.layers > 0) settle(e.layer[e.layers - 1].feed_forward, first, last);
    if (e.last.kind != kNone && first < last)
      k.norm(hidden(first), e.width, last - first, e.width, e.last, nullptr, hidden(first), e.width);
  }

  void run_by_rows() const {
    for (int i = 0; i < e.layers; ++i) {
      const Layer& layer = e.layer[i];
      rows([&](int from, int until) {
        enter(i, from, until);
        project(layer.qkv, 0, layer.qkv.panels, from, until);
        rotate_rows(layer, from, until);
      });
      rows([&](int from, int until) {
        attend(layer, 0, static_cast<int64_t>(sequences) * e.heads, from, until);
        round_attended(from, until);
        add(layer.output, layer.attention, 0, layer.output.panels, to.attended.from(from), from, until - from);
        enter_feed_forward(layer, from, until);
        for (int row = from; row < until; row += k.rows) {
          const int count = std::min(k.rows, until - row);
          widen(layer.up, 0, layer.up.panels, row, count);
          round_wide(0, count);
          add(layer.down, layer.feed_forward, 0, layer.down.panels, wide.q, row, count);
        }
      });
    }
  }

  // A piece of attention has whole groups of heads that share keys, since it norms and rotates these.
  void attend_groups(const Layer& layer, int64_t first, int64_t last) const {
    const int group = e.heads / e.key_value_heads;
    for (int64_t i = first; i < last && has_positions(layer); ++i) {
      const int sequence = static_cast<int>(i / e.key_value_heads), head = static_cast<int>(i % e.key_value_heads);
      const int start = starts[sequence] - starts[0], length = starts[sequence + 1] - starts[sequence];
      for (int place = 0; place < length; ++place) {
        rotate(layer, start + place, place, head * group, (head + 1) * group);
        rotate(layer, start + place, place, e.heads + head, e.heads + head + 1);
      }
    }
    attend(layer, first * group, last * group, 0, plan.tokens);
  }

  void run_by_outputs() const {
    const int tokens = plan.tokens;
    const int64_t groups = static_cast<int64_t>(sequences) * e.key_value_heads;
    const int some = static_cast<int>(std::min<int64_t>(groups, plan.threads));
    for (int i = 0; i < e.layers; ++i) {
      const Layer& layer = e.layer[i];
      rows([&](int from, int until) { enter(i, from, until); });
      parts(layer.qkv.panels, [&](int first, int last) { project(layer.qkv, first, last, 0, tokens); });
      worker.stage(some, [&](int piece) { attend_groups(layer, groups * piece / some, groups * (piece + 1) / some); });
      rows([&](int from, int until) { round_attended(from, until); });
      parts(layer.output.panels,
            [&](int first, int last) { add(layer.output, layer.attention, first, last, to.attended, 0, tokens); });
      rows([&](int from, int until) { enter_feed_forward(layer, from, until); });
      for (int row = 0; row < tokens; row += k.rows) {
        const int count = std::min(k.rows, tokens - row);
        parts(layer.up.panels, [&](int first, int last) { widen(layer.up, first, last, row, count); });
        parts(count, [&](int first, int last) { round_wide(first, last); });
        parts(layer.down.panels,
              [&](int first, int last) { add(layer.down, layer.feed_forward, first, last, wide.q, row, count); });
      }
    }
  }

  void run() const {
    k.begin();
    plan.by_rows ? run_by_rows() : run_by_outputs();
    rows([&](int from, int until) { leave(from, until); });
    k.end();
  }
};

thread_local Arena arena;

// The bytes of the parts of an arena: `shared` by all threads, for up to `tokens` tokens; `thread` is for each thread.
struct Room {
  Scratch scratch;
  size_t shared, thread;

  Room(const Encoder& e, const Kernels& k, int tokens, int longest)
      : scratch(e, longest),
        shared(up_to(Buffers::bytes(e, tokens), 64)),
        thread(up_to(scratch.bytes, 64) + up_to(Wide::bytes(e, k), 64)) {}
};

// Runs a group of sequences on a thread of all that do so. `memory` has room.shared bytes, and room.thread bytes for each of
// them.
void run_group(const Encoder& e, const Kernels& k, const int32_t* starts, int sequences, const Plan& plan, float* x,
               const Room& room, uint8_t* memory, Worker& worker) {
  const Buffers buffers(e, plan.tokens, k.bf16, Pieces(memory));
  uint8_t* const own = memory + room.shared;  // the part of the first thread; those of the others follow
  Pieces pieces(own + worker.rank * room.thread), first(own);
  uint8_t* const scratch = pieces.take<uint8_t>(room.scratch.bytes);
  first.take<uint8_t>(room.scratch.bytes);
  const Wide wide(e, k, plan.by_rows ? pieces : first);
  float* const line = reinterpret_cast<float*>(scratch);
  Member{e, k, starts, sequences, plan, x, buffers, wide, line, scratch + room.scratch.bias, worker}.run();
}

}  // namespace

size_t attention_scratch(int length, int head) {
  const size_t padded = up_to(length, 32), wide = up_to(head, 32);
  const size_t tiles = 2 * padded * wide * 2 + kRows * (padded * 2 + wide * 2 + padded * 4);
  const size_t floats = (head + 4) * padded * 4;
  return std::max(tiles, floats);
}

// The tiles of codes that a token is multiplied by, at least 1: how much there is to do for a token, without attention.
int64_t tiles(const Encoder& e) {
  int64_t sum = 1;
  for (int i = 0; i < e.layers; ++i)
    for (const Linear* w : {&e.layer[i].qkv, &e.layer[i].output, &e.layer[i].up, &e.layer[i].down})
      sum += static_cast<int64_t>(w->panels) * w->blocks;
  return sum;
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
    static Crowd crowd;
    const Admission granted(crowd, threads, tokens * tiles(e));
    const int admitted = granted.admitted;
    const Room room(e, k, tokens, longest);
    const Plan plan(tokens, admitted);
    uint8_t* const memory = arena.reserve(room.shared + admitted * room.thread);
    const std::unique_ptr<Stage[]> stages(new Stage[plan.stages(e.layers, k)]);
    const auto work = [&](Worker& worker) { run_group(e, k, starts, sequences, plan, x, room, memory, worker); };
    return parallel(admitted, stages.get(), work, &granted);
  }
  int most = 0;  // tokens in a group
  for (int i = 0; i < count; ++i) most = std::max(most, starts[groups[i + 1]] - starts[groups[i]]);
  const Room room(e, k, most, longest);
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
