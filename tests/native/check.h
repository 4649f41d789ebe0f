// What the checks of all families share: a seeded generator of codes, guarded outputs, and comparisons that are counted.
//
// The checks need no torch, so that they run wherever a C++ compiler is: also for another processor, under an emulator.
#pragma once

#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace native {

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers with every compiler and library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // An integer of [low, high].
  int64_t between(int64_t low, int64_t high) { return low + (int64_t)(next() % (uint64_t)(high - low + 1)); }

  // A number of [low, high).
  double real(double low, double high) { return low + (double)(next() >> 11) * 0x1p-53 * (high - low); }

  bool coin() { return next() >> 63; }

 private:
  uint64_t state_;
};

// How codes are chosen. The last two give the largest and the smallest sums that are possible.
enum class Fill { kRandom, kExtreme, kHighest, kLowest };

constexpr Fill kFills[] = {Fill::kRandom, Fill::kExtreme, Fill::kHighest, Fill::kLowest};

inline const char* name_of(Fill fill) {
  static const char* const names[] = {"random", "extreme", "highest", "lowest"};
  return names[(int)fill];
}

inline int64_t chosen(Random& random, Fill fill, int64_t lowest, int64_t highest) {
  switch (fill) {
    case Fill::kRandom: return random.between(lowest, highest);
    case Fill::kExtreme: return random.coin() ? lowest : highest;
    case Fill::kHighest: return highest;
    default: return lowest;
  }
}

// Activations: unsigned codes of `bits` bits. `kLowest` means the lowest products, so the codes stay the highest.
inline std::vector<uint8_t> codes(Random& random, size_t count, int bits, Fill fill) {
  std::vector<uint8_t> all(count);
  for (uint8_t& code : all) code = (uint8_t)chosen(random, fill == Fill::kLowest ? Fill::kHighest : fill, 0, (1 << bits) - 1);
  return all;
}

// The signed form of a code: the odd numbers 2 code - (2^bits - 1) up to 7 bits, code - 128 for 8.
inline int64_t centred(int64_t code, int bits) { return bits == 8 ? code - 128 : 2 * code - ((1 << bits) - 1); }

// Weights: signed codes of `bits` bits.
inline std::vector<int8_t> weights(Random& random, size_t count, int bits, Fill fill) {
  std::vector<int8_t> all(count);
  for (int8_t& weight : all) weight = (int8_t)centred(chosen(random, fill, 0, (1 << bits) - 1), bits);
  return all;
}

inline std::vector<float> reals(Random& random, size_t count, double low, double high) {
  std::vector<float> all(count);
  for (float& x : all) x = (float)random.real(low, high);
  return all;
}

// Numbers in whole groups of 64, as epilogues read them; the padding is zero.
inline std::vector<float> padded_reals(Random& random, size_t count, double low, double high) {
  std::vector<float> all = reals(random, count, low, high);
  all.resize((count + 63) / 64 * 64);
  return all;
}

// An output with bytes around it that a kernel must not write.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count), bytes_((count * sizeof(T)) + 2 * kGuard, kMark) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes_[i] != kMark || bytes_[bytes_.size() - 1 - i] != kMark) return false;
    }
    return true;
  }
  size_t size() const { return count_; }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kMark = 0xa5;
  size_t count_;
  std::vector<uint8_t> bytes_;
};

// A value in double with the error that float arithmetic may have.
struct Expected {
  double value, error;
};

// Counts comparisons and prints those that fail.
class Checks {
 public:
  void that(bool holds, const std::string& what) { count(holds, what, "does not hold"); }

  template <class T, class U>
  void equal(const std::string& what, const T* got, const U* want, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      if ((int64_t)got[i] == (int64_t)want[i]) continue;
      return count(false, what, place(i) + std::to_string((int64_t)got[i]) + ", not " + std::to_string((int64_t)want[i]));
    }
    count(true, what, "");
  }

  void near(const std::string& what, const float* got, const std::vector<Expected>& want) {
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::fabs(got[i] - want[i].value) <= want[i].error) continue;
      return count(false, what, place(i) + std::to_string(got[i]) + ", not " + std::to_string(want[i].value));
    }
    count(true, what, "");
  }

  // Codes are nearest integers; where the value is a tie within its error, both neighbours are right.
  void rounded(const std::string& what, const uint8_t* got, const std::vector<Expected>& want) {
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::fabs(got[i] - want[i].value) <= 0.5 + want[i].error) continue;
      return count(false, what, place(i) + std::to_string(got[i]) + ", the code of " + std::to_string(want[i].value));
    }
    count(true, what, "");
  }

  template <class T>
  void intact(const std::string& what, const Guarded<T>& out) {
    count(out.intact(), what, "writes outside its output");
  }

  int done() const { return done_; }
  int failed() const { return failed_; }

 private:
  static std::string place(size_t i) { return "element " + std::to_string(i) + " is "; }

  void count(bool holds, const std::string& what, const std::string& why) {
    ++done_;
    if (holds) return;
    if (++failed_ <= 20) std::printf("FAILED %s: %s\n", what.c_str(), why.c_str());
  }

  int done_ = 0, failed_ = 0;
};

// The families, each in a file of its own.
void check_vectors(Checks& checks);
void check_linear(Checks& checks);
void check_convolution(Checks& checks);
void check_attention(Checks& checks);
void check_elementwise(Checks& checks);
void check_fakequant(Checks& checks);

}  // namespace native
