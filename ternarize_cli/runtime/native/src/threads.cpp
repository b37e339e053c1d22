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
constexpr int kFewCalls = 3;                   // a run of calls is long enough to be compared with so many,
constexpr double kFewMoments = 80.0 * kMilli;  // and so many nanoseconds
constexpr int kRuns = 16, kPatience = 4;       // runs of calls until something is tried again, and how often this may double
constexpr double kGain = .95;                  // of the time, below which a number of threads is better than another

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
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) != 0) return now();
  return time.tv_sec * 1000 * kMilli + time.tv_nsec;
#endif
}

int Crowd::admit(int threads, int64_t work) {
  if (threads <= 1) return threads;
  Size& size = size_of(work);
  const std::unique_lock<std::mutex> lock(size.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return threads;
  if (size.wanted != threads) size.start(threads);
  return size.tried;
}

void Crowd::note(int wanted, int used, int64_t work, int64_t lost, int64_t total) {
  Size& size = size_of(work);
  const std::unique_lock<std::mutex> lock(size.mutex, std::try_to_lock);
  if (!lock.owns_lock() || size.wanted != wanted || size.tried != used) return;
  if (!size.is_warm) {
    size.is_warm = true;
    return;
  }
  size.now.add(total, work, lost);
  size.waited += static_cast<double>(total);
  if (size.now.is_long_enough()) size.conclude();
}

void Crowd::Run::add(int64_t total, int64_t done, int64_t missed) {
  ++calls;
  time += static_cast<double>(total);
  work += static_cast<double>(done);
  lost += static_cast<double>(missed);
}

bool Crowd::Run::is_long_enough() const { return calls >= kFewCalls && time >= kFewMoments; }

void Crowd::Size::start(int threads) {
  wanted = usual = tried = threads;
  is_warm = tries_more = false;
  now = before = Run();
  waited = wait = 0;
  patience = 1;
}

// Something is known of the calls of now: they are the usual ones, or try something.
void Crowd::Size::conclude() {
  if (tried == usual) {
    const bool is_crowded = now.lost * 8 > now.time * usual;
    before = now;
    if (waited >= wait && (is_crowded || usual < wanted)) tried = next(is_crowded);
  } else {
    const bool is_better = now.cost() < kGain * before.cost();
    patience = is_better ? 1 : patience < kPatience ? 2 * patience : kPatience;
    wait = kRuns * patience * now.time;
    waited = 0;
    tries_more = is_better ? tried > usual : !tries_more;
    usual = is_better ? tried : usual;
    tried = usual;
  }
  now = Run();
}

// The number of threads to try: a quarter fewer, or a third more. `usual` is `wanted` only where calls are crowded.
int Crowd::Size::next(bool is_crowded) const {
  const int fewer = usual - (usual + 3) / 4, more = usual + (usual + 2) / 3;
  if (usual < wanted && (tries_more || !is_crowded || fewer < 1)) return more < wanted ? more : wanted;
  return fewer < 1 ? usual : fewer;
}

Crowd::Size& Crowd::size_of(int64_t work) {
  int i = 0;
  for (; work > 1; work >>= 1) ++i;
  return sizes_[i];
}

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
