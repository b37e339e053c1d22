// Runs on any processor: plain loops, which the compiler vectorises for the baseline of the architecture.
#include "native.h"

namespace tz {
namespace scalar {
template <int bits>
struct Multiply {
  static constexpr int rows = 8;

  static const uint8_t* prepare(const uint8_t* panel, int blocks, uint8_t* scratch) {
    constexpr int fields = 8 / bits, mask = (1 << bits) - 1;
    for (int tile = 0; tile < 2 * blocks; ++tile)
      for (int chunk = 0; chunk < 16 / fields; ++chunk)
        for (int field = 0; field < fields; ++field)
          for (int j = 0; j < 64; ++j) {
            const uint8_t packed = panel[tile * tile_bytes(bits) + chunk * 64 + j];
            scratch[tile * 1024 + (chunk * fields + field) * 64 + j] = packed >> (bits * field) & mask;
          }
    return scratch;
  }

  static void run(const uint8_t* b, int blocks, const int8_t* a, const int8_t*, int count, int32_t* c) {
    for (int i = 0; i < rows * kPanel; ++i) c[i] = 0;
    for (int i = 0; i < count; ++i)
      for (int block = 0; block < blocks; ++block)
        for (int half = 0; half < 2; ++half) {
          const uint8_t* tile = b + (block * 2 + half) * 1024;
          int32_t* sums = c + i * kPanel + half * 16;
          for (int r = 0; r < 16; ++r) {
            const int8_t* x = a + i * kBlock + block * 1024 + r * 4;
            for (int j = 0; j < 16; ++j) {
              const uint8_t* w = tile + r * 64 + j * 4;
              sums[j] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
          }
        }
  }
};
}  // namespace scalar
}  // namespace tz

#define TZ_ISA scalar
#include "ops.h"

namespace tz {
const Kernels* scalar_kernels() {
  static const Kernels table = scalar::kernels("scalar");
  return &table;
}
}  // namespace tz
