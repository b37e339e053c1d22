#include "weights_file.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <new>

#include <sys/stat.h>

namespace tz {
namespace {

constexpr char kMagic[] = "TERNARIZ";
constexpr size_t kHead = 24;

using Table = std::array<std::array<uint32_t, 256>, 8>;

// For each of 8 bytes in a row, what a value of it does to the checksum (Intel's "slicing by 8").
Table crc_table() {
  Table table;
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    table[0][i] = crc;
  }
  for (int k = 1; k < 8; ++k)
    for (int i = 0; i < 256; ++i) table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
  return table;
}

uint32_t crc32(const uint8_t* bytes, size_t count) {
  static const Table table = crc_table();
  uint32_t crc = ~0u;
  for (; count >= 8; bytes += 8, count -= 8) {
    uint32_t low, high;
    std::memcpy(&low, bytes, 4);
    std::memcpy(&high, bytes + 4, 4);
    low ^= crc;
    crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
          table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
  }
  for (; count > 0; ++bytes, --count) crc = crc >> 8 ^ table[0][(crc ^ *bytes) & 255];
  return ~crc;
}

template <class T>
T value_at(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

}  // namespace

WeightsFile::WeightsFile(const char* path) {
  require(path, "there is no name of a file");
  struct stat status;
  require(stat(path, &status) == 0, "there is no such file of weights, or it can't be read");
  require(S_ISREG(status.st_mode), "the weights are no regular file");
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path, "rb"), std::fclose);
  require(file != nullptr, "the file of weights can't be read");
  uint8_t head[kHead];
  require(std::fread(head, 1, kHead, file.get()) == kHead && std::memcmp(head, kMagic, 8) == 0, "the file holds no weights");
  require(value_at<uint32_t>(head + 8) == kWeightsVersion, "the weights are of another version than the library");
  const int64_t size = value_at<int64_t>(head + 16);
  require(size == status.st_size && size >= static_cast<int64_t>(kHead),
          "the file of weights is shorter or longer than it was");
  size_ = static_cast<size_t>(size);
  bytes_.reset(static_cast<uint8_t*>(std::aligned_alloc(kLine, static_cast<size_t>(parts(size, kLine)) * kLine)));
  if (!bytes_) throw std::bad_alloc();
  std::memcpy(bytes_.get(), head, kHead);
  const size_t rest = size_ - kHead;
  require(std::fread(bytes_.get() + kHead, 1, rest, file.get()) == rest, kShort);
  require(crc32(bytes_.get() + kHead, rest) == value_at<uint32_t>(head + 12),
          "the file of weights is damaged: its checksum differs");
  at_ = kHead;
}

int32_t WeightsFile::number() {
  require(size_ - at_ >= 4, kShort);
  const int32_t value = value_at<int32_t>(bytes_.get() + at_);
  at_ += 4;
  return value;
}

float WeightsFile::real() {
  const int32_t bits = number();
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

int32_t WeightsFile::number(int64_t least, int64_t most, const char* why) {
  const int32_t value = number();
  require(within(value, least, most), why);
  return value;
}

}  // namespace tz
