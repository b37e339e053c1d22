// Measures how fast each processor loads AMX tiles and multiplies them, and prints a JSON object.
//
//     g++ -O2 -std=c++17 -pthread -mamx-tile -mamx-int8 docs/results/measure_tiles.cpp -o tiles && ./tiles
//
// Times are nanoseconds for each product of 16 x 64 by 64 x 16 bytes, or for each tile: products of tiles that stay in
// registers, loads of tiles from the first cache, and both as in a product of matrices, one load for each product. Each is the
// median of 25 moments, so a processor that is shared is seen in one of its states. A second run follows the first.
#include <immintrin.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr int kLoops = 400, kRepeats = 25;
constexpr size_t kBytes = 8 * 1024;  // of each of two matrices, whose tiles are taken in turn

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

alignas(4096) uint8_t left[kBytes], right[kBytes];

void multiply() {
  for (int i = 0; i < kLoops; ++i) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
}

void load() {
  for (int i = 0; i < kLoops; ++i) {
    const uint8_t* from = left + i * 4096 % kBytes;
    _tile_loadd(4, from, 64);
    _tile_loadd(5, from + 1024, 64);
    _tile_loadd(6, from + 2048, 64);
    _tile_loadd(7, from + 3072, 64);
  }
}

void load_and_multiply() {
  for (int i = 0; i < kLoops; ++i) {
    const uint8_t *a = left + i * 2048 % kBytes, *b = right + i * 2048 % kBytes;
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, b + 1024, 64);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, a + 1024, 64);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
}

// Returns the median time of a product or load of `work`, which has four in each loop, in nanoseconds.
double nanoseconds(void (*work)()) {
  std::vector<double> times;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    times.push_back(std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2] / (4 * kLoops);
}

}  // namespace

int main() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    std::fputs("this system gives no permission to use AMX\n", stderr);
    return 1;
  }
  static const TileConfig config;
  _tile_loadconfig(&config);
  std::fill(left, left + kBytes, 3);
  std::fill(right, right + kBytes, 2);
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::printf("{\"unit\": \"ns\", \"processors\": [");
  const char* comma = "";
  for (int i = 0; i < 2 * CPU_SETSIZE; ++i) {
    const int cpu = i % CPU_SETSIZE;
    if (!CPU_ISSET(cpu, &allowed)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) continue;
    _tile_loadconfig(&config);
    nanoseconds(load_and_multiply);
    const double products = nanoseconds(multiply), loads = nanoseconds(load), both = nanoseconds(load_and_multiply);
    const char* form = "%s\n  {\"processor\": %d, \"product\": %.1f, \"load\": %.1f, \"load_and_product\": %.1f}";
    std::printf(form, comma, cpu, products, loads, both);
    comma = ",";
  }
  std::printf("\n]}\n");
  _tile_release();
}
