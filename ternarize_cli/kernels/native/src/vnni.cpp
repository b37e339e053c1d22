// Runs on AVX-512 with VNNI.
#define TZ_ISA vnni
#include "zmm.h"

#include "ops.h"

namespace tz {
const Kernels* vnni_kernels() {
  static const Kernels table = {"vnni", false, [] {}, [] {}, vnni::gemm, vnni::quantize, vnni::norm,
                                vnni::attention, vnni::rotate, vnni::gather};
  return &table;
}
}  // namespace tz
