// The C interface. tz_pack, tz_rest, tz_linear, tz_dense, tz_embed, tz_norm, tz_encode, tz_pool, tz_normalize,
// tz_round_weights, tz_scale_gradients and tz_round_activations return 0 when they have done their work, kNoMemory when
// memory ran out, and kRefused when an argument is invalid; tz_why then says what is wrong with it. Unless they return 0,
// nothing was written: arguments are checked first, and all memory is allocated before threads start. tz_packed_bytes returns
// a size or kRefused. tz_interface, tz_why and tz_instruction_set return what they are named after; tz_trim returns nothing.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__linux__)
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "api.h"
#include "guarded.h"
#include "pooling.h"
#include "threads.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tz {

const char*& why() {
  static thread_local const char* sentence = "";
  return sentence;
}

namespace {

#if defined(__x86_64__)
// Each of these returns whether the processor has what it is named after.
bool has_extended_feature(unsigned bit) {  // of leaf 7, subleaf 1, register eax
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << bit);
}

bool has_avx_vnni() { return has_extended_feature(4); }

bool has_avx512_bf16() { return has_extended_feature(5); }

// Returns whether this process may use AMX tiles. Linux must be asked to enable them for a process (arch_prctl with
// ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA).
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, amx-tile, amx-int8
  return (d & wanted) == wanted && has_avx512_bf16() && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

// Returns the instruction sets that this library has and this processor runs, best first.
const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
#if defined(TZ_HAS_amx)
    if (avx512 && has_amx()) list.push_back(amx_kernels());
#endif
#if defined(TZ_HAS_vnnibf16)
    if (avx512 && has_avx512_bf16()) list.push_back(vnnibf16_kernels());
#endif
#if defined(TZ_HAS_vnni)
    if (avx512) list.push_back(vnni_kernels());
#endif
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(TZ_HAS_avxvnni)
    if (avx2 && has_avx_vnni()) list.push_back(avxvnni_kernels());
#endif
#if defined(TZ_HAS_avx2)
    if (avx2) list.push_back(avx2_kernels());
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
    if (getauxval(AT_HWCAP) & (1ul << 20)) list.push_back(neon_kernels());  // HWCAP_ASIMDDP
#else
    list.push_back(neon_kernels());
#endif
#endif
    list.push_back(scalar_kernels());
    return list;
  }();
  return found;
}

// Less work than this takes less time than another thread needs to come.
constexpr int64_t kWorthSharing = 16 * 24 * 12;  // of a linear: rows x panels x blocks
constexpr int64_t kWorthAnother = 512 * 768;     // of embeddings, norms and pooling: rows x width
constexpr int64_t kWorthDense = 1 << 20;         // of a dense linear: rows x inputs x outputs
constexpr int kInterface = 7;  // version of functions and structures; equals INTERFACE in interface.py

const Kernels& kernels_of(int isa) {
  require(within(isa, 0, static_cast<int64_t>(available().size()) - 1), "there is no such instruction set");
  return *available()[isa];
}

int64_t packed_bytes(int outputs, int inputs, int bits) {
  return parts(outputs, kPanel) * parts(inputs, kBlock) * 2 * tile_bytes(bits);
}

// Writes the digits of output `n` of a panel, [blocks][kBlock], into the panel's tiles, whose bytes were zero.
template <int bits>
void put_digits(const uint8_t* digits, int n, size_t blocks, uint8_t* panel) {
  constexpr int fields = 8 / bits;
  for (size_t block = 0; block < blocks; ++block) {
    uint8_t* tile = panel + (block * 2 + n / 16) * tile_bytes(bits);
    const uint8_t* from = digits + block * kBlock;
    for (int chunk = 0; chunk < 16 / fields; ++chunk)
      for (int k = 0; k < 4; ++k) {
        unsigned byte = 0;
        for (int field = 0; field < fields; ++field) byte |= from[(chunk * fields + field) * 4 + k] << (field * bits);
        tile[chunk * 64 + n % 16 * 4 + k] = static_cast<uint8_t>(byte);
      }
  }
}

// Runs work(first, last) on shares of `count` items: on the calling thread alone if they have few `numbers`.
template <class Work>
void share_out(int count, int64_t numbers, int threads, const Work& work) {
  const int all = numbers < kWorthAnother ? 1 : threads, pieces = std::min(count, all);
  Stage stage;
  parallel(all, &stage, [&](Worker& worker) {
    worker.stage(pieces, [&](int piece) { work(share(count, piece, pieces), share(count, piece + 1, pieces)); });
  });
}

struct Scratch {
  std::vector<uint8_t> bytes;
  explicit Scratch(size_t count) : bytes(count + 64) {}
  uint8_t* start() { return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64; }
};

}  // namespace
}  // namespace tz

using namespace tz;

extern "C" {

// Returns kInterface. Every version of the library has this function: a caller calls it first, and calls no other function if
// the number differs from its own.
TZ_EXPORT int tz_interface() { return kInterface; }

// Returns what was wrong with the arguments of the last call on this thread that returned kRefused.
TZ_EXPORT const char* tz_why() { return why(); }

// Returns the name of the i-th instruction set, best first, counted from 0; null if there are only i or fewer.
TZ_EXPORT const char* tz_instruction_set(int i) {
  return within(i, 0, static_cast<int64_t>(available().size()) - 1) ? available()[i]->name : nullptr;
}

// Returns the bytes that the codes of a linear take in the layout of native.h; kRefused for invalid sizes or
// other bits than 2 and 4.
TZ_EXPORT int64_t tz_packed_bytes(int outputs, int inputs, int bits) {
  const int code = guarded([&] { check_sizes(outputs, inputs, bits); });
  return code ? code : packed_bytes(outputs, inputs, bits);
}

// Converts codes from the packed file format to the layout of native.h.
//   rows: [outputs][width] bytes. A byte holds `count` digits in a positional system, the first digit lowest: 0, 1, 2 (codec
//         2bit: radix 4, 4 digits; base3: radix 3, 5 digits), or 0 to 15 (4bit: radix 16, 2 digits), which become linears of 2
//         and of 4 bits. Digits beyond `inputs` are ignored.
//   packed: the result, `room` bytes, which must equal tz_packed_bytes.
TZ_EXPORT int tz_pack(const uint8_t* rows, int width, int radix, int count, int outputs, int inputs, uint8_t* packed,
                      int64_t room, int threads) {
  return guarded([&] {
    check_threads(threads);
    const bool is_wide = radix == 16 && count == 2;
    require(is_wide || (radix == 4 && count == 4) || (radix == 3 && count == 5), "there is no codec of this radix and count");
    const int bits = is_wide ? 4 : 2;
    check_sizes(outputs, inputs, bits);
    require(width == parts(inputs, count), "the bytes of a row don't fit its inputs");
    require(room == packed_bytes(outputs, inputs, bits), "the room for packed codes doesn't fit them");
    require(rows && packed, "there are no rows, or no room for them");
    const size_t blocks = parts(inputs, kBlock), panel_bytes = blocks * 2 * tile_bytes(bits);
    uint8_t digits[256][8] = {};
    for (int byte = 0; byte < 256; ++byte)
      for (int i = 0, rest = byte; i < count; ++i, rest /= radix) digits[byte][i] = static_cast<uint8_t>(rest % radix);
    const size_t length = static_cast<size_t>(width) * count + 8 + kBlock;  // bytes of a row of digits; a thread has one row
    const std::unique_ptr<uint8_t[]> lines(new uint8_t[length * threads]);
    const int panels = static_cast<int>(parts(outputs, kPanel)), pieces = std::min(panels, threads);
    Stage stage;
    parallel(threads, &stage, [&](Worker& worker) {
      uint8_t* line = lines.get() + worker.rank * length;
      worker.stage(pieces, [&](int piece) {
        const int first = share(panels, piece, pieces), last = share(panels, piece + 1, pieces);
        std::memset(packed + first * panel_bytes, 0, (last - first) * panel_bytes);
        for (int n = first * kPanel; n < std::min(last * kPanel, outputs); ++n) {
          for (int i = 0; i < width; ++i)
            std::memcpy(&line[static_cast<size_t>(i) * count], digits[rows[static_cast<size_t>(n) * width + i]], 8);
          std::memset(line + inputs, zero_digit(bits), length - inputs);
          (is_wide ? put_digits<4> : put_digits<2>)(line, n % kPanel, blocks, packed + n / kPanel * panel_bytes);
        }
      });
    });
  });
}

// Advises the kernel (MADV_PAGEOUT, Linux 5.4) that the whole pages among these bytes are not needed for now. Their content
// is kept: pages of a mapped file leave memory and are read from the file again; changed and anonymous pages are written to
// swap, or stay in memory if there is no swap. Without MADV_PAGEOUT, or if madvise fails, nothing happens.
TZ_EXPORT int tz_rest(const void* start, int64_t bytes) {
  return guarded([&] {
    require(bytes >= 0 && (start || !bytes), "there are no such bytes");
    require(static_cast<uint64_t>(bytes) <= UINTPTR_MAX - reinterpret_cast<uintptr_t>(start), "there are no such bytes");
#if defined(__linux__) && defined(MADV_PAGEOUT)
    const uintptr_t page = sysconf(_SC_PAGESIZE), begin = reinterpret_cast<uintptr_t>(start);
    const uintptr_t from = begin / page * page + (begin % page ? page : 0), until = (begin + bytes) / page * page;
    if (from < until) madvise(reinterpret_cast<void*>(from), until - from, MADV_PAGEOUT);
#endif
  });
}

// Gives freed memory back to the system, if the C library is glibc; otherwise does nothing.
TZ_EXPORT void tz_trim() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

// Computes a linear of float x [rows][inputs]: float y [rows][outputs], or, if y is null, the int32 sums [rows][outputs] of
// codes times rounded activations, without scales and bias.
TZ_EXPORT int tz_linear(int isa, const Linear* w, const float* x, int rows, float* y, int32_t* sums, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    require_array(w, "there is no linear, or it is not aligned");
    check(*w);
    require(within(rows, 0, kMostRows), "there are 0 to 268,435,456 rows");
    if (!rows) return;
    require_array(x, "there is no input, or it is not aligned");
    require(!y != !sums, "either products or sums are asked for");
    y ? require_array(y, "the output is not aligned") : require_array(sums, "the output is not aligned");
    static Crowd crowd;
    const int64_t tiles = static_cast<int64_t>(rows) * w->panels * w->blocks;
    const Admission granted(crowd, tiles >= kWorthSharing ? threads : 1, tiles);
    const int all = granted.admitted;
    Scratch q(Activations::bytes(rows, w->blocks)), scratch(gemm_scratch(w->blocks) * all);
    std::vector<float> t(rows);
    std::vector<int32_t> taken(rows);
    const Activations a = {reinterpret_cast<int8_t*>(q.start()), t.data(), taken.data(), w->blocks};
    const Sink sink = {y ? Then::kStore : Then::kSums, y, nullptr, nullptr, static_cast<size_t>(w->outputs), 0, sums};
    Stage stages[2];
    const int some = std::min(rows, all), pieces = std::min(w->panels, all);
    parallel(all, stages, [&](Worker& worker) {
      worker.stage(some, [&](int piece) {
        k.quantize(x, w->inputs, share(rows, piece, some), share(rows, piece + 1, some), w->inputs, a);
      });
      k.begin();
      worker.stage(pieces, [&](int piece) {
        k.gemm(*w, share(w->panels, piece, pieces), share(w->panels, piece + 1, pieces), a, rows, sink,
               scratch.start() + worker.rank * gemm_scratch(w->blocks));
      });
      k.end();
    }, &granted);
  });
}

// Computes x [rows][width]: for each row the sum of one row from each of `count` tables, and a norm of this sum.
//   tables, scales: int8 [table_rows][width] and float [table_rows] for each table
//   ids: for each table the row that is added to each row of x, [rows]
//   norm: gain and bias are [width]; null: no norm
TZ_EXPORT int tz_embed(int isa, const int8_t* const* tables, const float* const* scales, const int64_t* table_rows,
                       const int64_t* const* ids, int count, int rows, int width, const Norm* norm, float* x, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    require(within(count, 1, kMostTables), "an embedding is the sum of 1 to 16 tables");
    require(within(rows, 0, kMostRows), "there are 0 to 268,435,456 rows");
    require(within(width, 1, kMostInputs), "an embedding is 1 to 4,194,304 wide");
    if (!rows) return;
    require_array(tables, "there are no tables");
    require_array(scales, "there are no scales of tables");
    require_array(table_rows, "there are no counts of rows");
    require_array(ids, "there are no ids");
    require_array(x, "there is no output, or it is not aligned");
    for (int i = 0; i < count; ++i) {
      require_array(tables[i], "a table is missing");
      require_array(scales[i], "the scales of a table are missing, or not aligned");
      check_ids(ids[i], rows, table_rows[i]);
    }
    if (norm) {
      require_array(norm, "the norm is not aligned");
      check(*norm);
    }
    share_out(rows, static_cast<int64_t>(rows) * width, threads, [&](int first, int last) {
      float* to = x + static_cast<size_t>(first) * width;
      for (int i = 0; i < count; ++i) k.gather(tables[i], scales[i], ids[i] + first, last - first, width, i > 0, to);
      if (norm && norm->kind != kNone) k.norm(to, width, last - first, width, *norm, nullptr, to, width);
    });
  });
}

// Computes a dense linear of float x [rows][inputs]: float y [rows][outputs].
TZ_EXPORT int tz_dense(int isa, const Dense* w, const float* x, int rows, float* y, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    require_array(w, "there is no linear, or it is not aligned");
    check(*w);
    require(within(rows, 0, kMostRows), "there are 0 to 268,435,456 rows");
    if (!rows) return;
    require_array(x, "there is no input, or it is not aligned");
    require_array(y, "there is no output, or it is not aligned");
    const int panels = static_cast<int>(parts(w->outputs, kPanel));
    const int all = static_cast<double>(rows) * w->inputs * w->outputs < kWorthDense ? 1 : threads;
    const int by_rows = std::min(static_cast<int>(parts(rows, 32)), all), by_panels = std::min(panels, all / by_rows);
    Stage stage;
    parallel(all, &stage, [&](Worker& worker) {
      worker.stage(by_rows * by_panels, [&](int piece) {
        const int i = piece / by_panels, j = piece % by_panels;
        const int first = share(rows, i, by_rows), count = share(rows, i + 1, by_rows) - first;
        k.dense(*w, share(panels, j, by_panels), share(panels, j + 1, by_panels), x + static_cast<size_t>(first) * w->inputs, count,
                y + static_cast<size_t>(first) * w->outputs);
      });
    });
  });
}

// Norms the rows of x [rows][width] in place; gain and bias of the norm are [width].
TZ_EXPORT int tz_norm(int isa, const Norm* norm, float* x, int rows, int width, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    require_array(norm, "there is no norm, or it is not aligned");
    check(*norm);
    require(within(rows, 0, kMostRows), "there are 0 to 268,435,456 rows");
    require(within(width, 1, kMostInputs), "a row is 1 to 4,194,304 wide");
    if (!rows || norm->kind == kNone) return;
    require_array(x, "there is no input, or it is not aligned");
    share_out(rows, static_cast<int64_t>(rows) * width, threads, [&](int first, int last) {
      float* from = x + static_cast<size_t>(first) * width;
      k.norm(from, width, last - first, width, *norm, nullptr, from, width);
    });
  });
}

// Rounds the weights [outputs][inputs] of a linear in training, whose outputs have a scale each, to codes from `low` to `high`.
// Writes codes * scale to one of out [outputs][inputs] and bf16 [outputs][inputs], in which numbers are bfloat16; the other is null.
TZ_EXPORT int tz_round_weights(int isa, const float* weights, const float* scales, int low, int high, int outputs, int inputs,
                               float* out, uint16_t* bf16, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    check_trained(weights, scales, low, high, outputs, inputs);
    check_written(out, bf16);
    share_out(outputs, static_cast<int64_t>(outputs) * inputs, threads,
              [&](int first, int last) { k.round_weights(weights, scales, low, high, first, last, inputs, out, bf16); });
  });
}

// Computes the gradients out [outputs] of the scales of a linear in training, from the gradients [outputs][inputs] of the rounded
// weights: for each output the sum of gradients times codes, which are rounded as in tz_round_weights.
//   gradients, bf16: the gradients as float or as bfloat16; the other is null
//   wide: [outputs][inputs]: where gradients in bfloat16 are written as float; null for gradients in float
TZ_EXPORT int tz_scale_gradients(int isa, const float* gradients, const uint16_t* bf16, const float* weights, const float* scales,
                                 int low, int high, int outputs, int inputs, float* out, float* wide, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    check_trained(weights, scales, low, high, outputs, inputs);
    require(!gradients != !bf16, "gradients are either float or bfloat16");
    if (gradients) {
      require_array(gradients, "the gradients are not aligned");
    } else {
      require_array(bf16, "the gradients are not aligned");
      require_array(wide, "there is no room for the gradients as float, or it is not aligned");
    }
    require_array(out, "there is no output, or it is not aligned");
    share_out(outputs, static_cast<int64_t>(outputs) * inputs, threads, [&](int first, int last) {
      k.scale_gradients(gradients, bf16, weights, scales, low, high, first, last, inputs, out, wide);
    });
  });
}

// Rounds the rows of x [rows][width] to int8 with a scale for each row, as tz_linear does, and writes q * t to one of
// out [rows][width] and bf16 [rows][width], in which numbers are bfloat16; the other is null.
TZ_EXPORT int tz_round_activations(int isa, const float* x, int rows, int width, float* out, uint16_t* bf16, int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    require(within(rows, 0, kMostRows), "there are 0 to 268,435,456 rows");
    require(within(width, 1, kMostInputs), "a row is 1 to 4,194,304 wide");
    if (!rows) return;
    require_array(x, "there is no input, or it is not aligned");
    check_written(out, bf16);
    share_out(rows, static_cast<int64_t>(rows) * width, threads,
              [&](int first, int last) { k.round_activations(x, first, last, width, out, bf16); });
  });
}

// Makes one vector of each sequence of x [tokens][width], as pooling.h describes.
//   mode: one of `Pooling`
//   starts: the row of x where each sequence begins, and the row where the last one ends: [sequences + 1]
//   skipped: tokens at the beginning of each sequence that are left out
//   out: the vectors, `stride` numbers apart
TZ_EXPORT int tz_pool(int mode, const float* x, int tokens, int width, const int32_t* starts, int sequences, int skipped,
                      float* out, int64_t stride, int threads) {
  return guarded([&] {
    check_threads(threads);
    require(within(mode, 0, kPoolings - 1), "there is no such pooling");
    require(within(width, 1, kMostInputs), "a row is 1 to 4,194,304 wide");
    require(stride >= width && within(stride, 1, int64_t{kMostInputs} * kPoolings), "vectors overlap");
    require(within(skipped, 0, kMostLength), "0 to 16,777,216 tokens are left out");
    check_rows_of(starts, sequences, tokens);
    if (!sequences) return;
    if (tokens) require_array(x, "there is no input, or it is not aligned");
    require_array(out, "there is no output, or it is not aligned");
    share_out(sequences, static_cast<int64_t>(tokens) * width, threads, [&](int first, int last) {
      for (int i = first; i < last; ++i)
        pool(static_cast<Pooling>(mode), x + static_cast<size_t>(starts[i]) * width, starts[i + 1] - starts[i], skipped, width,
             out + static_cast<size_t>(i) * stride);
    });
  });
}

// Scales the rows of x [rows][width] to length 1, in place.
TZ_EXPORT int tz_normalize(float* x, int rows, int width) {
  return guarded([&] {
    require(within(rows, 0, kMostRows), "there are 0 to 268,435,456 rows");
    require(within(width, 1, kMostInputs), "a row is 1 to 4,194,304 wide");
    if (!rows) return;
    require_array(x, "there is no input, or it is not aligned");
    for (int i = 0; i < rows; ++i) normalize(x + static_cast<size_t>(i) * width, width);
  });
}

// Runs an encoder over sequences in place, as `encode` in encoder.h describes; `tokens` is the number of rows of x.
TZ_EXPORT int tz_encode(int isa, const Encoder* encoder, const int32_t* starts, int sequences, float* x, int tokens,
                        int threads) {
  return guarded([&] {
    const Kernels& k = kernels_of(isa);
    check_threads(threads);
    require_array(encoder, "there is no encoder, or it is not aligned");
    check(*encoder);
    check_starts(*encoder, starts, sequences, tokens);
    if (!tokens) return;
    require_array(x, "there is no input, or it is not aligned");
    encode(*encoder, k, starts, sequences, x, threads);
  });
}

}  // extern "C"
