// Threads by OpenMP: where torch has loaded its library already, they are torch's own, so that two pools never compete for
// the same cores. Without OpenMP everything runs on the calling thread.
#pragma once
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tz {

// Runs work(rank, size) on up to `threads` threads; `size` is how many there are.
template <class Work>
void parallel(int threads, const Work& work) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  (void)threads;
  work(0, 1);
}

// Meets the other threads of `parallel`.
inline void meet_all(int size) {
  if (size > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
  }
}

// The first of the items that thread `rank` of `size` takes; it ends where the next one's begin.
inline int share(int count, int rank, int size) {
  return static_cast<int>(static_cast<int64_t>(count) * rank / size);
}

}  // namespace tz
