// The C interface. Every function returns 0, or -1 where memory ran out.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#if defined(__linux__)
#include <malloc.h>
#include <sys/mman.h>
#endif

#include "encoder.h"
#include "threads.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tz {
namespace {

#if defined(__x86_64__)
// Tiles are switched on for a process by the kernel, when asked for (arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;  // amx-bf16, amx-tile, amx-int8
  if ((d & wanted) != wanted) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;  // avx512-bf16
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
#endif

// Best first; what the processor runs.
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

template <class Work>
int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

int padded(int n, int step) { return (n + step - 1) / step * step; }

struct Scratch {
  std::vector<uint8_t> bytes;
  explicit Scratch(size_t count) : bytes(count + 64) {}
  uint8_t* start() { return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64; }
};

}  // namespace
}  // namespace tz

using namespace tz;

#define TZ_EXPORT __attribute__((visibility("default")))

extern "C" {

// The name of the i-th instruction set, best first; null behind the last one.
TZ_EXPORT const char* tz_instruction_set(int i) {
  return i < static_cast<int>(available().size()) ? available()[i]->name : nullptr;
}

// Bytes that a linear takes, packed.
TZ_EXPORT int64_t tz_packed_bytes(int outputs, int inputs) {
  return static_cast<int64_t>(padded(outputs, kPanel) / kPanel) * (padded(inputs, kBlock) / kBlock) * 2 * kTile;
}

// From the packed format: rows of `width` bytes, each `count` digits 0, 1, 2 in a positional system, the first one lowest
// (codec 2bit: radix 4, 4 digits; base3: radix 3, 5 digits). Digits behind `inputs` are ignored. packed: tz_packed_bytes.
TZ_EXPORT void tz_pack(const uint8_t* rows, int width, int radix, int count, int outputs, int inputs, uint8_t* packed,
                       int threads) {
  const int blocks = padded(inputs, kBlock) / kBlock;
  uint8_t digits[256][8] = {};
  for (int byte = 0; byte < 256; ++byte)
    for (int i = 0, rest = byte; i < count; ++i, rest /= radix) digits[byte][i] = rest % radix & 3;
  parallel(threads, [&](int rank, int size) {
    std::vector<uint8_t> line(static_cast<size_t>(width) * count + 8 + kBlock);
    const int panels = padded(outputs, kPanel) / kPanel;
    const int first = share(panels, rank, size), last = share(panels, rank + 1, size);
    uint8_t* start = packed + static_cast<size_t>(first) * blocks * 2 * kTile;
    std::memset(start, 0, static_cast<size_t>(last - first) * blocks * 2 * kTile);
    for (int n = first * kPanel; n < std::min(last * kPanel, outputs); ++n) {
      for (int i = 0; i < width; ++i)
        std::memcpy(&line[static_cast<size_t>(i) * count], digits[rows[static_cast<size_t>(n) * width + i]], 8);
      std::fill(line.begin() + inputs, line.end(), 1);
      for (int block = 0; block < blocks; ++block) {
        uint8_t* tile = packed + ((static_cast<size_t>(n / kPanel) * blocks + block) * 2 + n % kPanel / 16) * kTile;
        const uint8_t* from = &line[static_cast<size_t>(block) * kBlock];
        for (int chunk = 0; chunk < 4; ++chunk)
          for (int k = 0; k < 4; ++k) {
            const uint8_t* d = from + chunk * 16 + k;
            tile[chunk * 64 + n % 16 * 4 + k] = static_cast<uint8_t>(d[0] | d[4] << 2 | d[8] << 4 | d[12] << 6);
          }
      }
    }
  });
}

// Tells the kernel that these bytes are not needed for now: pages of a mapped file leave memory and come back when they are
// read, others stay.
TZ_EXPORT void tz_rest(const void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_PAGEOUT)
  const uintptr_t page = 4096, from = (reinterpret_cast<uintptr_t>(start) + page - 1) / page * page;
  const uintptr_t until = (reinterpret_cast<uintptr_t>(start) + bytes) / page * page;
  if (from < until) madvise(reinterpret_cast<void*>(from), until - from, MADV_PAGEOUT);
#else
  (void)start;
  (void)bytes;
#endif
}

// Gives memory that was freed back to the system.
TZ_EXPORT void tz_trim() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

// x: [rows][inputs] → y: [rows][outputs]; or, where y is null, sums: int32 [rows][outputs] without scales.
TZ_EXPORT int tz_linear(int isa, const Linear* w, const float* x, int rows, float* y, int32_t* sums, int threads) {
  return guarded([&] {
    const Kernels& k = *available()[isa];
    Scratch q(Activations::bytes(rows, w->blocks)), scratch(gemm_scratch(w->blocks) * threads);
    std::vector<float> t(rows);
    std::vector<int32_t> taken(rows);
    const Activations a = {reinterpret_cast<int8_t*>(q.start()), t.data(), taken.data(), w->blocks};
    const Sink sink = {y ? Then::kStore : Then::kSums, y, nullptr, nullptr, static_cast<size_t>(w->outputs), sums};
    parallel(threads, [&](int rank, int size) {
      k.quantize(x, share(rows, rank, size), share(rows, rank + 1, size), w->inputs, a);
      meet_all(size);
      k.begin();
      k.gemm(*w, share(w->panels, rank, size), share(w->panels, rank + 1, size), a, rows, sink,
             scratch.start() + rank * gemm_scratch(w->blocks));
      k.end();
    });
  });
}

// x = norm(words[ids] + types[kinds] + positions[places]), each an int8 table with a scale a row; [rows][width].
TZ_EXPORT int tz_embed(int isa, const int8_t* const* tables, const float* const* scales, const int64_t* const* ids, int count,
             int rows, int width, const float* gain, const float* bias, float eps, float* x, int threads) {
  const Kernels& k = *available()[isa];
  return guarded([&] {
    // one thread or all: OpenMP ends the others of a larger team, and must start them anew for the next
    parallel(rows < 128 ? 1 : threads, [&](int rank, int size) {
      const int first = share(rows, rank, size), mine = share(rows, rank + 1, size) - first;
      float* to = x + static_cast<size_t>(first) * width;
      for (int i = 0; i < count; ++i) k.gather(tables[i], scales[i], ids[i] + first, mine, width, i > 0, to);
      if (gain) k.layer_norm(to, mine, width, gain, bias, eps, to);
    });
  });
}

// See encoder.h.
TZ_EXPORT int tz_encode(int isa, const Encoder* encoder, const int32_t* starts, int sequences, float* x, int threads) {
  return guarded([&] { encode(*encoder, *available()[isa], starts, sequences, x, threads); });
}

}  // extern "C"
