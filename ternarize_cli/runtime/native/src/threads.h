// Shares work among threads that may have less than a processor each.
//
// A call is a row of *stages*. Each stage is a number of pieces, which threads take as they come; it has ended when all of its
// pieces are done, whoever did them. So a stage never waits for a thread that has no processor, unless that thread is in the
// middle of a piece. A thread that finds no piece left waits for the stage to end: for 200 microseconds it looks again and
// again, then it sleeps, so that its processor is free for the thread that it waits for.
//
// The threads are OpenMP's. If torch has loaded the OpenMP library already, these are torch's own, which would otherwise look
// for work on the processors that ours need. Without OpenMP (TERNARIZE_OPENMP=OFF, or a compiler that lacks it) they are a
// pool (threads.cpp): the calling thread works from the start, and the others join while it works; each runs the same
// stages, and finds those that have ended already without a piece for it.
//
// A thread that loses its processor in the middle of a piece holds up all others for as long as the system lets another program
// run, some milliseconds. Where calls lose much time in this way, some try fewer threads (Crowd).
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/types.h>
#endif

namespace tz {

// Nanoseconds of a clock that never goes back.
int64_t now();

// Nanoseconds that the calling thread has had a processor for; the same as now() where the system does not say.
int64_t busy();

// The pieces of a stage. `next` is the first piece that nobody has taken, or any number from the count on; `done` counts
// pieces that are done.
struct alignas(64) Stage {
  std::atomic<int> next{0}, done{0};
};

// Decides how many threads a call gets. Calls of one size are compared with each other: a machine's neighbours may leave room for
// two threads in a call of a second, and for one in a call of milliseconds.
//
// Calls have all threads, until some calls in a row have lost an eighth of their threads' time: threads slept while they waited
// for each other, or the calling thread had no processor. Then as many calls try a quarter of the threads fewer, at least
// one. If these need less time for their work, calls have so many threads from then on, and try fewer and more in turn. What is
// tried takes a sixteenth of the time of all calls at most, and less where it has brought nothing. So a machine that is quiet
// pays next to nothing, one that is not pays a little for a number of threads that suits it, and both find back.
class Crowd {
 public:
  // Returns how many of up to `threads` threads the next call gets. `work` is a measure of what it has to do, for example its
  // products; calls with the same binary logarithm of `work`, rounded down, are of one size.
  int admit(int threads, int64_t work);

  // Learns of a call that had `used` threads where it wanted `wanted`, took `total` nanoseconds, and lost `lost` nanoseconds,
  // added up over its threads.
  void note(int wanted, int used, int64_t work, int64_t lost, int64_t total);

 private:
  // Calls in a row with the same number of threads.
  struct Run {
    int calls = 0;
    double time = 0, work = 0, lost = 0;  // nanoseconds; as callers measure it; nanoseconds of threads
    void add(int64_t total, int64_t done, int64_t missed);
    bool is_long_enough() const;
    double cost() const { return time / work; }
  };

  struct Size {
    std::mutex mutex;  // who finds it locked goes without: a fork may have left it so
    int wanted = 0;    // callers who want other numbers in turn start anew each time, and get what they want
    int usual = 0;     // threads that calls get
    int tried = 0;     // threads that calls get now; equal to `usual` if nothing is tried
    bool is_warm = false, tries_more = false;  // whether the first call is over; what is tried next
    Run now, before;   // the calls of now; those before something was tried, with the usual number
    double waited = 0, wait = 0;  // nanoseconds of calls since something was tried; those until the next time
    int patience = 1;  // doubles each time that nothing is gained
    void start(int threads);
    void conclude();
    int next(bool is_crowded) const;
  };

  Size& size_of(int64_t work);
  Size sizes_[64];
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

#if defined(_OPENMP) && defined(__linux__)
// The threads of OpenMP that help the calling thread, after a pause in which they may have gone to sleep.
//
// In a virtual machine, Linux takes a processor that has slept for long for one that the host has given to somebody else, and
// wakes a thread on the processor of the thread that wakes it. Both then share one processor, and leave the other idle, until
// the next tick of 4 milliseconds, which is all that a short text takes. So helpers are kept off the processor of the caller
// until they have come. Threads that somebody has bound to processors of their own stay as they are.
class Helpers {
 public:
  static Helpers& of_this_thread();
  void call(int threads);    // before a region of so many threads
  void come(int rank);       // in it, on each helper
  void leave(int threads);   // after it; fewer threads may have come than were called

 private:
  static constexpr int kMost = 16;  // with more threads it would take longer than it saves
  pid_t id_[kMost] = {};            // by rank; 0: has not come yet
  bool is_kept_off_[kMost] = {};
  int64_t left_ = 0;                // when the last region ended
  cpu_set_t allowed_ = {};          // the processors of the calling thread
};
#else
class Helpers {
 public:
  static Helpers of_this_thread() { return {}; }
  void call(int) {}
  void come(int) {}
  void leave(int) {}
};
#endif

// What a call asks of a Crowd: `threads` threads for `work`, of which it gets `admitted`.
struct Admission {
  Admission(Crowd& crowd, int threads, int64_t work)
      : crowd(crowd), wanted(threads), work(work), admitted(crowd.admit(threads, work)) {}
  Crowd& crowd;
  const int wanted;
  const int64_t work;
  const int admitted;
};

// Runs work(Worker&) on the calling thread and on up to `threads` - 1 others. `stages` has one Stage for each stage, or is
// null if `threads` is 1. If `admission` is not null, `threads` is the number that it admitted, and its crowd learns how the
// call went.
template <class Work>
void parallel(int threads, Stage* stages, const Work& work, const Admission* admission = nullptr) {
  const bool is_noted = admission && admission->wanted > 1;
  const int64_t began = is_noted ? now() : 0, busy_before = is_noted ? busy() : 0;
  int64_t lost = 0;
  int came = threads > 1 ? threads : 1;
  if (came == 1) {
    Worker alone(nullptr, 0);
    work(alone);
  } else {
#if defined(_OPENMP)
    Call call(threads, stages, nullptr, nullptr);
    auto&& helpers = Helpers::of_this_thread();
    helpers.call(threads);
#pragma omp parallel num_threads(threads)
    {
      helpers.come(omp_get_thread_num());
      Worker worker(&call, omp_get_thread_num());
      if (worker.rank == 0) came = omp_get_num_threads();
      work(worker);
      call.leave(worker.rank, omp_get_num_threads());
    }
    helpers.leave(came);
#else
    const auto run = [](const void* context, Call& call, int rank) {
      Worker worker(&call, rank);
      (*static_cast<const Work*>(context))(worker);
    };
    Call call(threads, stages, run, &work);
    call.run();
#endif
    lost = call.lost();
  }
  if (!is_noted) return;
  const int64_t total = now() - began, away = total - (busy() - busy_before);
  admission->crowd.note(admission->wanted, came, admission->work, lost > away ? lost : away, total);
}

// Returns the first of `count` items in piece `i` of `pieces`. A piece has all items before the first of piece i + 1.
inline int share(int count, int i, int pieces) {
  return static_cast<int>(static_cast<int64_t>(count) * i / pieces);
}

}  // namespace tz
