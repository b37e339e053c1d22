// Reads a file of weights, as `ternarize export --to c` writes it (ternarize_cli/export/weights_file.py). Everything is
// little-endian:
//
//     byte   0   8 bytes     "TERNARIZ"
//            8   uint32      version of the format
//           12   uint32      CRC-32 (as zlib computes it) of all bytes from 24 on
//           16   int64       bytes of the file
//           24   values      numbers of 4 bytes, and arrays
//
// Values follow each other in the order in which model.cpp reads them. An array begins at the next multiple of 64 bytes. A file
// holds no places, only sizes, so no value can lie outside of it, or upon another.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "guarded.h"

namespace tz {

constexpr uint32_t kWeightsVersion = 1;

class WeightsFile {
 public:
  // Reads a file into memory, and checks its head and its checksum. It is read and not mapped: a file that is cut while it is
  // mapped ends the process.
  explicit WeightsFile(const char* path);

  // Each of these reads the next value.
  int32_t number();
  float real();

  // Reads a number, and requires that it lies within bounds.
  int32_t number(int64_t least, int64_t most, const char* why);

  // Reads an array of numbers, or of structures without pointers. It lies in the file's memory.
  template <class T>
  const T* array(int64_t count) {
    at_ = static_cast<size_t>(parts(static_cast<int64_t>(at_), kLine)) * kLine;
    require(at_ <= size_ && count >= 0 && static_cast<uint64_t>(count) <= (size_ - at_) / sizeof(T), kShort);
    const T* made = reinterpret_cast<const T*>(bytes_.get() + at_);
    at_ += static_cast<size_t>(count) * sizeof(T);
    return made;
  }

  // Requires that all has been read.
  void end() const { require(at_ == size_, "the file of weights holds more than a model"); }

 private:
  static constexpr int kLine = 64;
  static constexpr const char* kShort = "the file of weights ends too early";

  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };

  std::unique_ptr<uint8_t, Free> bytes_;
  size_t size_ = 0, at_ = 0;
};

}  // namespace tz
