// Shares the work among threads in one of three ways. A *team* of threads runs all blocks over a group of sequences.
//
//   groups    With enough sequences, each thread is a team of one and has groups of its own. It never waits, and what it
//             works on stays in its cache.
//   rows      With fewer sequences, all threads are one team, and each takes some of the tokens. They wait for each other
//             before attention, which needs the keys and values of all tokens.
//   outputs   With a handful of tokens, each thread of the one team takes some of the outputs of every product, and the
//             threads wait for each other after every stage.
//
// The feed-forward takes the rows in blocks, so that its wide activations stay in the cache.
#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "threads.h"

namespace tz {
namespace {

constexpr int kGroup = 256;        // tokens after which a group takes no further sequence
constexpr int kFeedForward = 128;  // rows in a block of the feed-forward
constexpr int kLeast = 32;         // tokens that each thread must get at least for sharing by groups or rows

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

// The memory that a team shares.
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

// The memory of the feed-forward. Each thread has its own, but a team that shares outputs uses that of its first thread.
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

// One thread of a team.
struct Member {
  const Encoder& e;
  const Kernels& k;
  const int32_t* starts;
  int sequences, tokens;
  float* x;
  const Buffers& to;
  const Wide& wide;
  uint8_t* scratch;
  int rank, size;
  bool by_rows;  // whether the team shares rows; otherwise it shares outputs

  // The first token that thread `of` multiplies: it has its own tokens, in multiples of 16 (a tile of activations), or all.
  int begin(int of) const { return by_rows ? std::min(tokens, share((tokens + 15) / 16, of, size) * 16) : of > rank ? tokens : 0; }

  void meet() const {
    if (!by_rows) meet_all(size);
  }

  // Multiplies the first `rows` rows of `a` by this thread's panels of a linear; the pointers of `sink` are at the first row.
  void multiply(const Linear& w, const Activations& a, int rows, const Sink& sink) const {
    const int first = by_rows ? 0 : share(w.panels, rank, size), last = by_rows ? w.panels : share(w.panels, rank + 1, size);
    k.gemm(w, first, last, a, rows, sink, scratch);
  }

  void norm(const float* from, const float* gain, const float* bias, int first, int last, float* into) const {
    const size_t at = static_cast<size_t>(first) * e.width;
    if (first < last) k.layer_norm(from + at, last - first, e.width, gain, bias, e.eps, into + at);
  }

  void attend(int from, int until) const {
    const int head = e.width / e.heads;
    const size_t stride = 3 * static_cast<size_t>(e.width);
    const float scale = 1.0f / std::sqrt(static_cast<float>(head));
    const int64_t all = static_cast<int64_t>(sequences) * e.heads;
    for (int64_t i = by_rows ? 0 : rank; i < all; i += by_rows ? 1 : size) {
      const int sequence = static_cast<int>(i / e.heads), column = static_cast<int>(i % e.heads) * head;
      const int at = starts[sequence] - starts[0], length = starts[sequence + 1] - starts[sequence];
      const int first = std::max(from - at, 0), last = std::min(until - at, length);
      if (first >= last) continue;
      const size_t place = at * stride + column;
      const void* qkv = k.bf16 ? static_cast<const void*>(static_cast<const uint16_t*>(to.qkv) + place)
                               : static_cast<const float*>(to.qkv) + place;
      k.attention(qkv, stride, e.width, length, first, last, head, scale,
                  to.context + static_cast<size_t>(at) * e.width + column, e.width, scratch);
    }
  }

  void project(const Linear& w, int from, int rows) const {
    const size_t stride = 3 * static_cast<size_t>(e.width), at = from * stride;
    Sink sink = {Then::kStore, nullptr, nullptr, nullptr, stride};
    if (k.bf16) {
      sink.then = Then::kBf16;
      sink.bf16 = static_cast<uint16_t*>(to.qkv) + at;
    } else {
      sink.out = static_cast<float*>(to.qkv) + at;
    }
    multiply(w, to.narrow.from(from), rows, sink);
  }

  void run() const {
    k.begin();
    const size_t width = e.width;
    const int from = begin(rank), until = begin(rank + 1), rows = until - from;  // multiplied here
    const int mine = by_rows ? from : share(tokens, rank, size);                 // normed and rounded here
    const int end = by_rows ? until : share(tokens, rank + 1, size);
    float* sum = e.norm_first ? x : to.context;
    const auto add = [&](const Linear& w, const Activations& a, int row, int count) {
      multiply(w, a, count, {Then::kAdd, sum + row * width, nullptr, x + row * width, width});
    };
    for (int i = 0; i < e.layers; ++i) {
      const Layer& layer = e.layer[i];
      if (e.norm_first) norm(x, layer.first_gain, layer.first_bias, mine, end, to.context);
      k.quantize(e.norm_first ? to.context : x, mine, end, e.width, to.narrow);
      meet_all(size);
      project(layer.qkv, from, rows);
      meet_all(size);
      attend(by_rows ? from : 0, by_rows ? until : tokens);
      meet();
      k.quantize(to.context, mine, end, e.width, to.narrow);
      meet();
      add(layer.output, to.narrow.from(from), from, rows);
      meet();
      if (e.norm_first) {
        norm(x, layer.second_gain, layer.second_bias, mine, end, to.context);
        k.quantize(to.context, mine, end, e.width, to.narrow);
      } else {
        norm(to.context, layer.first_gain, layer.first_bias, mine, end, x);
        k.quantize(x, mine, end, e.width, to.narrow);
      }
      meet();
      for (int row = from; row < until; row += kFeedForward) {
        const int count = std::min(kFeedForward, until - row);
        multiply(layer.up, to.narrow.from(row), count,
                 {Then::kGelu, wide.hidden, nullptr, nullptr, static_cast<size_t>(e.inner)});
        meet();
        k.quantize(wide.hidden, by_rows ? 0 : share(count, rank, size), by_rows ? count : share(count, rank + 1, size),
                   e.inner, wide.q);
        meet();
        add(layer.down, wide.q, row, count);
      }
      meet();
      if (!e.norm_first) norm(to.context, layer.second_gain, layer.second_bias, mine, end, x);
    }
    k.end();
  }
};

thread_local Arena arena;

// The bytes of the parts of an arena: `team` is shared by a team, for up to `tokens` tokens; `thread` is for each thread.
struct Room {
  size_t team, thread, scratch;

  Room(const Encoder& e, int tokens, int longest)
      : team(up_to(Buffers::bytes(e, tokens), 64)),
        thread(up_to(scratch_bytes(e, longest), 64) + up_to(Wide::bytes(e), 64)),
        scratch(scratch_bytes(e, longest)) {}
};

// Runs a group of sequences on a team. `memory` has room.team bytes, and room.thread bytes for each of `threads` threads.
void run_team(const Encoder& e, const Kernels& k, const int32_t* starts, int sequences, float* x, const Room& room,
              uint8_t* memory, int threads) {
  const int tokens = starts[sequences] - starts[0];
  const Buffers buffers(e, tokens, k.bf16, Pieces(memory));
  uint8_t* const own = memory + room.team;  // the part of the first thread; those of the others follow
  parallel(threads, [&](int rank, int size) {
    const bool by_rows = size == 1 || tokens >= kLeast * size;
    Pieces pieces(own + rank * room.thread), first(own);
    uint8_t* scratch = pieces.take<uint8_t>(room.scratch);
    first.take<uint8_t>(room.scratch);
    const Wide wide(e, by_rows ? pieces : first);
    Member{e, k, starts, sequences, tokens, x, buffers, wide, scratch, rank, size, by_rows}.run();
  });
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
    const Room room(e, tokens, longest);
    return run_team(e, k, starts, sequences, x, room, arena.reserve(room.team + threads * room.thread), threads);
  }
  int most = 0;  // tokens in a group
  for (int i = 0; i < count; ++i) most = std::max(most, starts[groups[i + 1]] - starts[groups[i]]);
  const Room room(e, most, longest);
  const size_t bytes = room.team + room.thread;
  uint8_t* const memory = arena.reserve(threads * bytes);
  std::atomic<int> next{0};
  parallel(threads, [&](int rank, int) {
    for (int i; (i = next.fetch_add(1)) < count;) {
      const int first = groups[i], last = groups[i + 1];
      float* from = x + static_cast<size_t>(starts[first] - starts[0]) * e.width;
      run_team(e, k, starts + first, last - first, from, room, memory + rank * bytes, 1);
    }
  });
}

}  // namespace tz
