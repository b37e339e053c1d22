// Waiting, and the pool of threads where OpenMP has none.
#include "threads.h"

#include <chrono>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#include <time.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tz {
namespace {

constexpr int64_t kMicro = 1000, kMilli = 1000 * kMicro;
constexpr int64_t kLook = 200 * kMicro;        // how long a thread looks for what it waits for before it sleeps
[[maybe_unused]] constexpr int64_t kNap = 3 * kMilli;  // after which OpenMP's threads may have gone to sleep
constexpr int64_t kShort = 300 * kMicro;       // calls that are too short to tell how crowded the machine is
constexpr int kKnown = 4;                      // calls of a size before another number of threads is tried; the first is not counted
constexpr int64_t kFirst = 20 * kMilli, kLongest = 2000 * kMilli;  // time between two trials, at first and at most
constexpr int64_t kWon = 100 * kMilli;         // how long calls must win with a thread more until it is kept
constexpr int64_t kShare = 16;                 // a trial is one call of at least so many

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks for up to kLook whether is_so(); returns whether it came true.
template <class Condition>
bool comes_soon(const Condition& is_so) {
  const int64_t until = now() + kLook;
  do {
    for (int i = 0; i < 16; ++i) {
      if (is_so()) return true;
      pause();
    }
  } while (now() < until);
  return false;
}

}  // namespace

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t busy() {
#if defined(_WIN32)
  return now();
#else
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * 1000 * kMilli + time.tv_nsec;
#endif
}

int Crowd::admit(int threads, int64_t work) {
  const Size& size = size_of(work);
  const int out = size.out.load(std::memory_order_relaxed);
  const bool is_crowded = size.crowded.load(std::memory_order_relaxed);
  if (threads <= 1 || (out == 0 && !is_crowded)) return threads;
  int fewer = out;
  if (now() >= size.next.load(std::memory_order_relaxed)) fewer += is_crowded && out + 1 < threads ? 1 : out > 0 ? -1 : 0;
  return threads > fewer ? threads - fewer : 1;
}

void Crowd::note(int wanted, int used, int64_t work, int64_t lost, int64_t total) {
  Size& size = size_of(work);
  const int out = size.out.load(std::memory_order_relaxed), usual = wanted > out ? wanted - out : 1;
  const float cost = static_cast<float>(total) / static_cast<float>(work);
  if (used == usual) {
    const int known = size.known.load(std::memory_order_relaxed);
    if (known < kKnown) size.known.store(known + 1, std::memory_order_relaxed);
    if (known > 0) learn(size.cost, cost);
    const bool is_crowded = total >= kShort && known + 1 >= kKnown && lost * 8 > total * (used - 1);
    size.crowded.store(is_crowded, std::memory_order_relaxed);
    return;
  }
  if (used != usual - 1 && used != usual + 1) return;  // the system gave other threads than were asked for
  const float before = size.cost.load(std::memory_order_relaxed);
  const int64_t at = now();
  if (used < usual) {
    if (learn(size.fewer, cost) < .95f * before) return size.settle(wanted - used, before, at);
  } else if (cost < before) {
    learn(size.more, cost);
    // A thread more may be lucky for some calls, while the neighbours still make up for what they had before.
    if (size.won.load(std::memory_order_relaxed) == 0) size.won.store(at, std::memory_order_relaxed);
    if (at - size.won.load(std::memory_order_relaxed) > kWon) size.settle(wanted - used, before, at);
    return;
  }
  size.won.store(0, std::memory_order_relaxed);
  const int64_t rest = size.rest.load(std::memory_order_relaxed);
  size.next.store(at + (rest > kShare * total ? rest : kShare * total), std::memory_order_relaxed);
  size.rest.store(rest * 2 < kLongest ? rest * 2 : kLongest, std::memory_order_relaxed);
}

void Crowd::Size::settle(int left_out, float before, int64_t at) {
  const bool is_fewer = left_out > out.load(std::memory_order_relaxed);
  cost.store((is_fewer ? fewer : more).load(std::memory_order_relaxed), std::memory_order_relaxed);
  (is_fewer ? more : fewer).store(before, std::memory_order_relaxed);
  (is_fewer ? fewer : more).store(0, std::memory_order_relaxed);
  out.store(left_out, std::memory_order_relaxed);
  won.store(0, std::memory_order_relaxed);
  rest.store(kFirst, std::memory_order_relaxed);
  next.store(at + kFirst, std::memory_order_relaxed);
}

float Crowd::learn(std::atomic<float>& mean, float cost) {
  const float before = mean.load(std::memory_order_relaxed), after = before > 0 ? before + (cost - before) / 4 : cost;
  mean.store(after, std::memory_order_relaxed);
  return after;
}

Crowd::Size& Crowd::size_of(int64_t work) {
  int i = 0;
  for (; work > 1; work >>= 1) ++i;
  return sizes_[i];
}

Crowd::Size::Size() : rest(kFirst) {}

#if defined(_OPENMP) && defined(__linux__)

Helpers& Helpers::of_this_thread() {
  static thread_local Helpers helpers;
  return helpers;
}

void Helpers::call(int threads) {
  if (threads > kMost || now() - left_ < kNap) return;
  cpu_set_t others, own;
  if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) return;
  others = allowed_;
  CPU_CLR(static_cast<size_t>(sched_getcpu()), &others);
  if (CPU_COUNT(&others) == 0) return;
  for (int rank = 1; rank < threads; ++rank) {
    const pid_t id = id_[rank];
    // The thread may have ended, and its number may be another process's by now.
    if (id == 0 || syscall(SYS_tgkill, getpid(), id, 0) != 0) continue;
    if (sched_getaffinity(id, sizeof own, &own) != 0 || !CPU_EQUAL(&own, &allowed_)) continue;
    is_kept_off_[rank] = sched_setaffinity(id, sizeof others, &others) == 0;
  }
}

void Helpers::come(int rank) {
  if (rank == 0 || rank >= kMost) return;
  static thread_local const pid_t id = static_cast<pid_t>(syscall(SYS_gettid));
  if (is_kept_off_[rank]) sched_setaffinity(id_[rank], sizeof allowed_, &allowed_);
  is_kept_off_[rank] = false;
  id_[rank] = id;
}

void Helpers::leave(int threads) {
  for (int rank = threads; rank < kMost; ++rank)
    if (is_kept_off_[rank]) {
      sched_setaffinity(id_[rank], sizeof allowed_, &allowed_);
      is_kept_off_[rank] = false;
    }
  left_ = now();
}

#endif
#if !defined(_OPENMP)

// The threads of this process that help callers.
class Pool {
 public:
  // Offers a call to up to call.threads_ - 1 threads, some of which may have to be started. If the system starts no more
  // threads, fewer help.
  void offer(Call& call) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (started_ < call.threads_ - 1 && start()) ++started_;
    calls_.push_back(&call);
    offers_.fetch_add(1, std::memory_order_release);
    const bool asleep = sleeping_ > 0;
    lock.unlock();
    if (asleep) offered_.notify_all();
  }

  // Lets nobody join a call any more, and waits until those that have joined it have left.
  void withdraw(Call& call) {
    const auto left = [&] { return call.inside_.load(std::memory_order_acquire) == 0; };
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < calls_.size(); ++i)
        if (calls_[i] == &call) calls_.erase(calls_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (comes_soon(left)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    ++leaving_;
    left_.wait(lock, left);
    --leaving_;
  }

  static Pool& of_process();

 private:
  bool start() {
#if !defined(_WIN32)
    sigset_t all, before;  // signals belong to the threads of Python
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
#endif
    bool is_started = true;
    try {
      std::thread([this] { help(); }).detach();
    } catch (...) {  // no more threads, or no memory
      is_started = false;
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    return is_started;
  }

  // The oldest call that misses threads; null if none does.
  Call* wanted() const {
    for (Call* call : calls_)
      if (call->joined_ < call->threads_ - 1) return call;
    return nullptr;
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (Call* call = wanted()) {
        const int rank = ++call->joined_;
        call->inside_.fetch_add(1, std::memory_order_relaxed);
        lock.unlock();
        call->work_(call->context_, *call, rank);
        lock.lock();
        // After this the call may be gone.
        if (call->inside_.fetch_sub(1, std::memory_order_release) == 1 && leaving_ > 0) left_.notify_all();
        continue;
      }
      const uint64_t seen = offers_.load(std::memory_order_relaxed);
      lock.unlock();
      const bool soon = comes_soon([&] { return offers_.load(std::memory_order_acquire) != seen; });
      lock.lock();
      if (soon) continue;
      ++sleeping_;
      offered_.wait(lock, [&] { return offers_.load(std::memory_order_relaxed) != seen; });
      --sleeping_;
    }
  }

  std::mutex mutex_;
  std::condition_variable offered_, left_;
  std::vector<Call*> calls_;          // those that threads may join
  std::atomic<uint64_t> offers_{0};  // how many calls have been offered
  int started_ = 0, sleeping_ = 0, leaving_ = 0;
};

namespace {

// Never freed: its threads run until the process ends, and a child made by fork has a new one, since it has none of them.
Pool* pool = nullptr;

void renew() { pool = new Pool; }

}  // namespace

Pool& Pool::of_process() {
  static const bool made = [] {
    renew();
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, renew);
#endif
    return true;
  }();
  (void)made;
  return *pool;
}

void Call::run() {
  Pool& pool = Pool::of_process();
  pool.offer(*this);
  work_(context_, *this, 0);
  pool.withdraw(*this);
}

#endif

void Call::leave(int rank, int threads) {
  finished(left_, threads);
  if (rank == 0 && left_.load(std::memory_order_acquire) < threads) wait(left_, threads);
}

void Call::finished(std::atomic<int>& done, int count) {
  // In one order for all threads, so that either this thread sees the sleeper, or the sleeper sees the piece.
  if (done.fetch_add(1, std::memory_order_seq_cst) + 1 < count) return;
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  { std::lock_guard<std::mutex> lock(mutex_); }
  ended_.notify_all();
}

void Call::wait(const std::atomic<int>& done, int count) {
  const int64_t began = now();
  if (comes_soon([&] { return done.load(std::memory_order_acquire) >= count; })) return;
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  ended_.wait(lock, [&] { return done.load(std::memory_order_seq_cst) >= count; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  lost_.fetch_add(now() - began, std::memory_order_relaxed);
}

}  // namespace tz
