// Shares work among threads that may have less than a processor each.
//
// A call is a row of *stages*. Each stage is a number of pieces, which threads take as they come; it has ended when all of its
// pieces are done, whoever did them. So a stage never waits for a thread that has no processor, unless that thread is in the
// middle of a piece. A thread that finds no piece left waits for the stage to end: for some microseconds it looks again and
// again, then it sleeps, so that its processor is free for the thread that it waits for.
//
// The threads are OpenMP's. If torch has loaded the OpenMP library already, these are torch's own, which would otherwise look
// for work on the processors that ours need. Without OpenMP (TERNARIZE_OPENMP=OFF, or a compiler that lacks it) they are a
// pool (threads.cpp): the calling thread works from the start, and the others join while it works; each runs the same
// stages, and finds those that have ended already without a piece for it.
//
// A thread that loses its processor in the middle of a piece holds up all others for as long as the system lets another program
// run, some milliseconds. Where calls lose much time in this way, the calls of the next moments get fewer threads (Crowd).
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tz {

// Nanoseconds of a clock that never goes back.
int64_t now();

// The pieces of a stage. `next` is the first piece that nobody has taken, or any number from the count on; `done` counts
// pieces that are done.
struct alignas(64) Stage {
  std::atomic<int> next{0}, done{0};
};

// Decides how many threads a call gets, from how long the threads of calls before it have waited for each other.
class Crowd {
 public:
  // Returns how many of up to `threads` threads the next call gets.
  static int admit(int threads);

  // Learns of a call of `total` nanoseconds that had `used` threads where it wanted `wanted`, and in which its threads slept for
  // `lost` nanoseconds, added up, while they waited for each other.
  static void note(int wanted, int used, int64_t lost, int64_t total);
};

// What all threads of a call share.
class Call {
 public:
  // The pool's threads run work(context, *this, rank), `rank` from 1 to `threads` - 1.
  Call(int threads, Stage* stages, void (*work)(const void*, Call&, int), const void* context)
      : threads_(threads), stages_(stages), work_(work), context_(context) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Runs the work on the calling thread and on those of the pool that join; returns when all of them have left.
  void run();

  // Waits until as many threads have called this: OpenMP's own wait at the end of a region looks for long before it sleeps.
  void leave(int rank, int threads);

  // The nanoseconds that threads have slept, added up.
  int64_t lost() const { return lost_.load(std::memory_order_relaxed); }

 private:
  friend class Pool;
  friend class Worker;
  void wait(const std::atomic<int>& done, int count);
  void finished(std::atomic<int>& done, int count);

  const int threads_;
  Stage* const stages_;
  void (*const work_)(const void*, Call&, int);
  const void* const context_;
  int joined_ = 0;             // under the pool's mutex: threads that have joined
  std::atomic<int> inside_{0};  // threads that have joined and not left
  std::atomic<int> sleepers_{0}, left_{0};
  std::atomic<int64_t> lost_{0};
  std::mutex mutex_;
  std::condition_variable ended_;
};

// A thread of a call.
class Worker {
 public:
  Worker(Call* call, int rank) : call_(call), rank(rank) {}

 private:
  Call* const call_;  // null: the only thread
  int at_ = 0;        // the stage

 public:
  const int rank;  // 0: the calling thread

  // Runs the next stage: work(piece) for each piece from 0 to count - 1, on whichever threads are there. Afterwards all that
  // any of them has written is visible.
  template <class Work>
  void stage(int count, const Work& work) {
    if (!call_) {
      for (int piece = 0; piece < count; ++piece) work(piece);
      return;
    }
    Stage& stage = call_->stages_[at_++];
    while (stage.next.load(std::memory_order_relaxed) < count) {
      const int piece = stage.next.fetch_add(1, std::memory_order_relaxed);
      if (piece >= count) break;
      work(piece);
      call_->finished(stage.done, count);
    }
    if (stage.done.load(std::memory_order_acquire) < count) call_->wait(stage.done, count);
  }
};

// Runs work(Worker&) on the calling thread and on up to `threads` - 1 others. `stages` has one Stage for each stage, or is
// null if `threads` is 1. `wanted` is the number that Crowd::admit was asked for, which then learns how the call went; 0: it
// was not asked.
template <class Work>
void parallel(int threads, Stage* stages, const Work& work, int wanted = 0) {
  if (threads <= 1) {
    Worker alone(nullptr, 0);
    work(alone);
    return;
  }
  const int64_t began = now();
  int came = threads;
#if defined(_OPENMP)
  Call call(threads, stages, nullptr, nullptr);
#pragma omp parallel num_threads(threads)
  {
    Worker worker(&call, omp_get_thread_num());
    if (worker.rank == 0) came = omp_get_num_threads();
    work(worker);
    call.leave(worker.rank, omp_get_num_threads());
  }
#else
  const auto run = [](const void* context, Call& call, int rank) {
    Worker worker(&call, rank);
    (*static_cast<const Work*>(context))(worker);
  };
  Call call(threads, stages, run, &work);
  call.run();
#endif
  if (wanted && came > 1) Crowd::note(wanted, came, call.lost(), now() - began);
}

// Returns the first of `count` items in piece `i` of `pieces`. A piece has all items before the first of piece i + 1.
inline int share(int count, int i, int pieces) {
  return static_cast<int>(static_cast<int64_t>(count) * i / pieces);
}

}  // namespace tz
