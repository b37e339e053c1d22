// Measures how fast this processor could run BERT-base at best with AVX-512 VNNI, and prints a JSON object.
//
//     SRC=ternarize_cli/runtime/native/src
//     FLAGS="-O3 -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp -I$SRC"
//     ZMM="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mfma -mprefer-vector-width=512"
//     g++ $FLAGS $ZMM -c $SRC/vnnibf16.cpp -o vnnibf16.o
//     g++ $FLAGS docs/results/measure_roof.cpp vnnibf16.o $SRC/encoder.cpp $SRC/threads.cpp -o roof && ./roof THREADS
//
// The floor of a batch is the time that its products need at the rate of a loop of nothing but products in registers (vpdpbusd
// for the linears, vdpbf16ps for attention), and the time of everything else in loops of its own, on data in the cache:
// softmax, GELU, rounding to int8, and norms. All threads run at once, since they share the clock of the processor.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "native.h"

using namespace tz;

namespace {

constexpr int kWidth = 768, kInner = 3072, kHead = 64, kLayers = 12, kTokens = 128;

// Returns the seconds of one call of `work`: the fastest of many calls on each thread, averaged over threads.
double seconds(int threads, const std::function<std::function<void()>()>& make) {
  std::vector<double> fastest(threads, 1e9);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t)
    running.emplace_back([&, t] {
      const auto work = make();
      const auto begin = std::chrono::steady_clock::now();
      std::chrono::duration<double> all{};
      while (all.count() < 0.5) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const auto end = std::chrono::steady_clock::now();
        fastest[t] = std::min(fastest[t], std::chrono::duration<double>(end - start).count());
        all = end - begin;
      }
    });
  for (auto& thread : running) thread.join();
  double sum = 0;
  for (double s : fastest) sum += s;
  return sum / threads;
}

// Returns products a second and thread of a loop of 16 independent sums in registers.
#define TZ_LOOP(op)                                                                                                   \
  for (int i = 0; i < 100000; ++i)                                                                                    \
    __asm__ volatile(op " %%zmm30, %%zmm31, %%zmm0\n" op " %%zmm30, %%zmm31, %%zmm1\n" op " %%zmm30, %%zmm31, %%zmm2\n"   \
                     op " %%zmm30, %%zmm31, %%zmm3\n" op " %%zmm30, %%zmm31, %%zmm4\n" op " %%zmm30, %%zmm31, %%zmm5\n"   \
                     op " %%zmm30, %%zmm31, %%zmm6\n" op " %%zmm30, %%zmm31, %%zmm7\n" op " %%zmm30, %%zmm31, %%zmm8\n"   \
                     op " %%zmm30, %%zmm31, %%zmm9\n" op " %%zmm30, %%zmm31, %%zmm10\n" op " %%zmm30, %%zmm31, %%zmm11\n" \
                     op " %%zmm30, %%zmm31, %%zmm12\n" op " %%zmm30, %%zmm31, %%zmm13\n" op " %%zmm30, %%zmm31, %%zmm14\n" \
                     op " %%zmm30, %%zmm31, %%zmm15\n" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
                     "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")
double vpdpbusd_rate(int threads) {
  return 16.0 * 100000 * 64 / seconds(threads, [] { return [] { TZ_LOOP("vpdpbusd"); }; });
}
double vdpbf16ps_rate(int threads) {
  return 16.0 * 100000 * 32 / seconds(threads, [] { return [] { TZ_LOOP("vdpbf16ps"); }; });
}

std::vector<float> numbers(size_t count) {
  std::vector<float> made(count);
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (float& x : made) x = normal(random);
  return made;
}

struct Rows {
  std::vector<float> x, out;
  std::vector<int8_t> q;
  std::vector<float> t;
  std::vector<int32_t> sums;
  Rows(int rows, int width)
      : x(numbers(static_cast<size_t>(rows) * width)), out(x.size()), q(Activations::bytes(rows, width / kBlock)), t(rows),
        sums(rows) {}
  Activations activations(int width) { return {q.data(), t.data(), sums.data(), width / kBlock}; }
};

// Each of these returns the seconds for kTokens tokens on one thread while all run.
double rounding(const Kernels& k, int threads, int width) {
  return kTokens / 16 * seconds(threads, [&k, width] {
           auto rows = std::make_shared<Rows>(16, width);
           return [&k, width, rows] { k.quantize(rows->x.data(), width, 0, 16, width, rows->activations(width)); };
         });
}

double norm(const Kernels& k, int threads) {
  return kTokens / 4 * seconds(threads, [&k] {
           auto rows = std::make_shared<Rows>(4, kWidth);
           auto gain = std::make_shared<std::vector<float>>(kWidth, 1.0f);
           return [&k, rows, gain] {
             const Norm by = {gain->data(), gain->data(), 1e-12f, kLayerNorm};
             k.norm(rows->x.data(), kWidth, 4, kWidth, by, nullptr, rows->out.data(), kWidth);
           };
         });
}

// What the GELU of the feed-forward adds to a product whose inputs are few: the difference of two products.
double gelu(const Kernels& k, int threads) {
  const auto product = [&](Then then) {
    return seconds(threads, [&k, then] {
      auto rows = std::make_shared<Rows>(16, kInner);
      auto codes = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(kInner) / kPanel * 2 * kTile, 0x64);
      auto scales = std::make_shared<std::vector<float>>(kInner, 1e-3f);
      auto scratch = std::make_shared<std::vector<uint8_t>>(gemm_scratch(1) + 64);
      return [&k, then, rows, codes, scales, scratch] {
        const Linear w = {codes->data(), scales->data(), scales->data(), kBlock, kInner, 1, kInner / kPanel};
        const Sink sink = {then, rows->out.data(), nullptr, nullptr, kInner};
        k.gemm(w, 0, w.panels, rows->activations(kBlock), 16, sink, scratch->data());
      };
    });
  };
  return kTokens / 16 * (product(activated(Activation::kGelu)) - product(Then::kStore));
}

// All heads of a sequence of `length` tokens, scaled to kTokens tokens.
double attention(const Kernels& k, int threads, int length) {
  const int stride = 3 * kWidth;
  return double(kTokens) / length * seconds(threads, [&k, length, stride] {
           std::mt19937 random(0);
           auto qkv = std::make_shared<std::vector<uint16_t>>(static_cast<size_t>(length) * stride);
           for (auto& x : *qkv) x = static_cast<uint16_t>(0x3f00 + random() % 256 + (random() % 2 ? 0x8000 : 0));
           auto out = std::make_shared<std::vector<float>>(static_cast<size_t>(length) * kWidth);
           std::shared_ptr<uint8_t> scratch(static_cast<uint8_t*>(std::aligned_alloc(64, attention_scratch(length, kHead) / 64 * 64 + 64)), std::free);
           return [&k, length, stride, qkv, out, scratch] {
             for (int head = 0; head < kWidth / kHead; ++head) {
               const uint16_t* q = qkv->data() + head * kHead;
               k.attention({q, q + kWidth, q + 2 * kWidth, static_cast<size_t>(stride), length, 0, length, kHead, 0.125f,
                            length, length, nullptr, 0, out->data() + head * kHead, kWidth, scratch.get()});
             }
           };
         });
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
  const Kernels& k = *vnnibf16_kernels();
  const double linears = vpdpbusd_rate(threads), pairs = vdpbf16ps_rate(threads);
  const double narrow = rounding(k, threads, kWidth), wide = rounding(k, threads, kInner);
  const double norms = norm(k, threads), activation = gelu(k, threads);
  std::printf("{\"threads\": %d, \"vpdpbusd products/s\": %.4g, \"vdpbf16ps products/s\": %.4g,\n", threads, linears, pairs);
  std::printf(" \"us for %d tokens\": {\"rounding %d\": %.1f, \"rounding %d\": %.1f, \"norm\": %.1f, \"gelu\": %.1f},\n",
              kTokens, kWidth, narrow * 1e6, kInner, wide * 1e6, norms * 1e6, activation * 1e6);
  std::printf(" \"floor\": {");
  const int shapes[4][2] = {{1, 16}, {1, 128}, {8, 128}, {16, 256}};
  for (const auto& shape : shapes) {
    const double tokens = double(shape[0]) * shape[1], length = shape[1];
    const double products = tokens * (4.0 * kWidth * kWidth + 2.0 * kWidth * kInner) / linears;
    const double scores = 2.0 * tokens * length * kWidth / pairs;
    const double softmax = std::max(0.0, attention(k, threads, shape[1]) * tokens / kTokens - scores);
    const double rest = tokens / kTokens * (2 * narrow + wide + 2 * norms + activation) + softmax;
    const double each = kLayers * 1e3 / threads;
    std::printf("%s\"%dx%d\": {\"linears ms\": %.2f, \"attention products ms\": %.2f, \"rest ms\": %.2f, \"all ms\": %.2f}",
                shape == shapes[0] ? "" : ", ", shape[0], shape[1], products * each, scores * each, rest * each,
                (products + scores + rest) * each);
  }
  std::printf("}}\n");
}
