// Runs on Armv8.2 with the dot product extension. Digits fit signed bytes too, so its signed product is used.
#include <arm_neon.h>

#include "native.h"

namespace tz {
namespace neon {
template <int bits>
struct Multiply {
  static constexpr int rows = 4;

  static const uint8_t* prepare(const uint8_t* panel, int blocks, uint8_t* scratch) {
    constexpr int fields = 8 / bits;
    const uint8x16_t mask = vdupq_n_u8((1 << bits) - 1);
    for (int tile = 0; tile < 2 * blocks; ++tile)
      for (int chunk = 0; chunk < 16 / fields; ++chunk)
        for (int part = 0; part < 4; ++part) {
          const uint8x16_t packed = vld1q_u8(panel + tile * tile_bytes(bits) + chunk * 64 + part * 16);
          uint8_t* to = scratch + tile * 1024 + chunk * fields * 64 + part * 16;
          vst1q_u8(to, vandq_u8(packed, mask));
          vst1q_u8(to + 64, vandq_u8(vshrq_n_u8(packed, bits), mask));
          if constexpr (bits == 2) {
            vst1q_u8(to + 128, vandq_u8(vshrq_n_u8(packed, 4), mask));
            vst1q_u8(to + 192, vshrq_n_u8(packed, 6));
          }
        }
    return scratch;
  }

  static void run(const uint8_t* b, int blocks, const int8_t* a, const int8_t*, int count, int32_t* c) {
    const int8_t* x[rows];
    for (int i = 0; i < rows; ++i) x[i] = a + (i < count ? i : count - 1) * kBlock;
    for (int part = 0; part < 8; ++part) {  // four outputs of four rows
      int32x4_t sums[rows];
      for (auto& s : sums) s = vdupq_n_s32(0);
      for (int block = 0; block < blocks; ++block) {
        const uint8_t* tile = b + (block * 2 + part / 4) * 1024 + part % 4 * 16;
        for (int chunk = 0; chunk < 4; ++chunk) {
          int8x16_t w[4];
          for (int field = 0; field < 4; ++field) w[field] = vreinterpretq_s8_u8(vld1q_u8(tile + (chunk * 4 + field) * 64));
          for (int i = 0; i < rows; ++i) {
            const int8x16_t four = vld1q_s8(x[i] + block * 1024 + chunk * 16);
            sums[i] = vdotq_laneq_s32(sums[i], w[0], four, 0);
            sums[i] = vdotq_laneq_s32(sums[i], w[1], four, 1);
            sums[i] = vdotq_laneq_s32(sums[i], w[2], four, 2);
            sums[i] = vdotq_laneq_s32(sums[i], w[3], four, 3);
          }
        }
      }
      for (int i = 0; i < rows; ++i) vst1q_s32(c + i * kPanel + part * 4, sums[i]);
    }
  }
};
}  // namespace neon
}  // namespace tz

#define TZ_ISA neon
#include "ops.h"

namespace tz {
const Kernels* neon_kernels() {
  static const Kernels table = neon::kernels("neon");
  return &table;
}
}  // namespace tz
