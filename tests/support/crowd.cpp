// Calls of made-up times go to Crowd; prints, for the last of each kind of neighbourhood, how many threads calls got.
#include <cstdio>

#include "threads.h"

namespace {

constexpr int64_t kWork = 1 << 20, kMilli = 1000000;

struct Machine {
  int64_t one, two, lost;  // nanoseconds of a call with one and with two threads, and of these lost
};

// Makes calls for so many milliseconds, and returns the share of those in the second half that had two threads, in percent.
int share_of_two(tz::Crowd& crowd, Machine machine, int64_t milliseconds) {
  const int64_t began = tz::now(), half = began + milliseconds * kMilli / 2, end = began + milliseconds * kMilli;
  int all = 0, both = 0;
  for (int64_t at = began; at < end; at = tz::now()) {
    const int threads = crowd.admit(2, kWork);
    const int64_t total = threads == 2 ? machine.two : machine.one;
    while (tz::now() < at + total) {
    }
    crowd.note(2, threads, kWork, threads == 2 ? machine.lost : 0, total);
    if (at >= half) ++all, both += threads == 2;
  }
  return 100 * both / all;
}

}  // namespace

int main() {
  tz::Crowd crowd;
  const Machine quiet = {2 * kMilli, kMilli, 0}, shared = {2 * kMilli, 3 * kMilli, kMilli}, half = {4 * kMilli, 3 * kMilli, kMilli};
  std::printf("quiet %d\n", share_of_two(crowd, quiet, 200));
  std::printf("shared %d\n", share_of_two(crowd, shared, 600));
  std::printf("quiet again %d\n", share_of_two(crowd, quiet, 2400));
  std::printf("loses, and is faster all the same %d\n", share_of_two(crowd, half, 1000));
}
