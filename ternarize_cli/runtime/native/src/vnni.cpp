// Runs on AVX-512 with VNNI.
#define TZ_ISA vnni
#include "zmm.h"

#include "ops.h"

namespace tz {
const Kernels* vnni_kernels() {
  static const Kernels table = vnni::kernels("vnni");
  return &table;
}
}  // namespace tz
