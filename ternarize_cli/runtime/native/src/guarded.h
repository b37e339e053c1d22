// How functions of the C interface end: with a code, and a sentence for the caller if an argument was invalid.
#pragma once
#include "arguments.h"

#define TZ_EXPORT __attribute__((visibility("default")))

namespace tz {

constexpr int kNoMemory = -1, kRefused = -2;

// What was wrong with the arguments of the last call on this thread that was refused.
const char*& why();

// Returns 0 when the work is done, and kRefused or kNoMemory when it has thrown something.
template <class Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const Refused& refused) {
    why() = refused.why;
    return kRefused;
  } catch (...) {  // std::bad_alloc, or std::length_error of a vector
    return kNoMemory;
  }
}

}  // namespace tz
