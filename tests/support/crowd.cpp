// Tells Crowd of calls on made-up machines. Reads from standard input, a line each: a name, the threads that callers want, how many
// calls there are, and for 1, 2, ... threads the milliseconds of a call and how many of them are lost. Prints for each line how
// often calls had each number of threads, of those in its second half, in percent.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "threads.h"

int main() {
  tz::Crowd crowd;
  unsigned noise = 1;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string name;
    int wanted, calls;
    words >> name >> wanted >> calls;
    std::vector<double> cost(wanted + 1), lost(wanted + 1);
    for (int threads = 1; threads <= wanted; ++threads) words >> cost[threads] >> lost[threads];
    std::vector<int> counts(wanted + 1);
    for (int i = 0; i < calls; ++i) {
      const int64_t work = (1 << 20) + i % 7 * 1000;
      const int threads = crowd.admit(wanted, work);
      noise = noise * 1664525u + 1013904223u;
      const double milliseconds = cost[threads] * (.9 + .2 * (noise >> 8) / (1 << 24)) * work / (1 << 20);
      crowd.note(wanted, threads, work, static_cast<int64_t>(lost[threads] * 1e6), static_cast<int64_t>(milliseconds * 1e6));
      if (i >= calls / 2) ++counts[threads];
    }
    std::printf("%s", name.c_str());
    for (int threads = 1; threads <= wanted; ++threads) std::printf(" %d", 100 * counts[threads] / (calls - calls / 2));
    std::printf("\n");
  }
}
