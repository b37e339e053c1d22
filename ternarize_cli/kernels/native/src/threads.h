// Runs work on OpenMP's threads. If torch has loaded the OpenMP library already, these are torch's own threads, so that two
// pools never compete for the cores. Without OpenMP everything runs on the calling thread.
#pragma once
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tz {

// Runs work(rank, size) on up to `threads` threads; `size` is the number of threads that run.
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

// Waits until all threads of the enclosing `parallel` have called this function.
inline void meet_all(int size) {
  if (size > 1) {
#if defined(_OPENMP)
#pragma omp barrier
#endif
  }
}

// Returns the first of `count` items that thread `rank` of `size` takes. It takes all items before share(count, rank + 1, size).
inline int share(int count, int rank, int size) {
  return static_cast<int>(static_cast<int64_t>(count) * rank / size);
}

}  // namespace tz
