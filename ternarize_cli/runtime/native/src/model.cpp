// A whole text encoder behind the functions of ternarize.h: embeddings, blocks, pooling, what modules behind it do, length 1.
//
// The file of weights holds the structures of the C interface as they are laid out in memory, so opening one is reading it and
// setting pointers into it. All sizes are checked before anything is read by them (arguments.h); weights are not checked, as
// everywhere in this library. A vector equals that of the runtime in Python, bit for bit, as both call the same functions.
#include "../ternarize.h"

#include <strings.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "api.h"
#include "pooling.h"
#include "weights_file.h"

namespace tz {
namespace {

constexpr int kBudget = 8192;   // tokens in a batch, so that memory does not grow with the number of texts
constexpr int kGroup = 32;      // numbers of a row of 4 bits that share a scale
constexpr int kMostSteps = 64;  // modules behind pooling

// A table of embeddings: int8 with a scale for each row, 4 bits with a scale for each kGroup numbers, or floats.
struct Rows {
  int32_t count = 0, bits = 8;
  const uint8_t* codes = nullptr;  // [count][bytes of a row]; 4 bits: the first number lowest, value + 8
  const float* scale = nullptr;

  // Adds a row to x, times a factor, or writes it there.
  void put(int64_t row, int width, float factor, bool add, float* x) const {
    const uint8_t* const from = codes + row * row_bytes(width);
    const float* const scales = scale + (bits == 8 ? row : row * parts(width, kGroup));
    for (int i = 0; i < width; ++i) {
      float value;
      if (bits == 32)
        std::memcpy(&value, from + size_t{4} * i, 4);
      else if (bits == 8)
        value = static_cast<float>(static_cast<int8_t>(from[i])) * scales[0];
      else
        value = static_cast<float>((from[i / 2] >> i % 2 * 4 & 15) - 8) * scales[i / kGroup];
      x[i] = add ? x[i] + value * factor : value * factor;
    }
  }

  int64_t row_bytes(int64_t width) const { return bits == 32 ? 4 * width : bits == 8 ? width : parts(width, 2); }
};

// What is done with vectors behind pooling. One of the three has sizes; the others are empty.
struct Step {
  Linear linear = {};
  Dense dense = {};
  Norm norm = {};
  bool is_tanh = false;
};

enum StepKind : int32_t { kLinearStep, kDenseStep, kNormStep };

bool flag(WeightsFile& file) { return file.number(0, 1, "a flag is 0 or 1") == 1; }

Norm read_norm(WeightsFile& file, int64_t width) {
  Norm norm = {};
  norm.kind = file.number(kNone, kRmsNorm, "there is no norm of this kind");
  if (norm.kind == kNone) return norm;
  norm.eps = file.real();
  norm.gain = file.array<float>(width);
  if (norm.kind == kLayerNorm) norm.bias = file.array<float>(width);
  check(norm);
  return norm;
}

Linear read_linear(WeightsFile& file) {
  Linear w = {};
  w.inputs = file.number();
  w.outputs = file.number();
  w.bits = file.number();
  check_sizes(w.outputs, w.inputs, w.bits);
  w.blocks = static_cast<int32_t>(parts(w.inputs, kBlock));
  w.panels = static_cast<int32_t>(parts(w.outputs, kPanel));
  w.codes = file.array<uint8_t>(int64_t{w.panels} * w.blocks * 2 * tile_bytes(w.bits));
  w.scale = file.array<float>(int64_t{w.panels} * kPanel);
  w.bias = file.array<float>(int64_t{w.panels} * kPanel);
  return w;
}

Dense read_dense(WeightsFile& file) {
  Dense w = {};
  w.inputs = file.number(1, kMostInputs, "a linear has 1 to 4,194,304 inputs");
  w.outputs = file.number(1, kMostOutputs, "a linear has 1 to 16,777,216 outputs");
  const int64_t panels = parts(w.outputs, kPanel);
  w.weights = file.array<float>(panels * w.inputs * kPanel);
  w.bias = file.array<float>(panels * kPanel);
  return w;
}

Rows read_rows(WeightsFile& file, int width) {
  Rows rows;
  rows.count = file.number(1, INT32_MAX, "a table has no rows");
  rows.bits = file.number();
  require(rows.bits == 4 || rows.bits == 8 || rows.bits == 32, "a table has 4, 8 or 32 bits");
  rows.codes = file.array<uint8_t>(rows.count * rows.row_bytes(width));
  if (rows.bits != 32) rows.scale = file.array<float>(rows.bits == 8 ? rows.count : rows.count * parts(width, kGroup));
  return rows;
}

// Calls a function of the C interface, whose arguments are valid; so it fails for want of memory, or says what is wrong.
void run(int code) {
  if (code == kRefused) throw Refused{tz_why()};
  if (code != 0) throw std::bad_alloc();
}

// The instruction set that TERNARIZE_NATIVE_ISA names, in letters of any case as in Python's runtime, or the best.
int chosen_set() {
  const char* const wanted = std::getenv("TERNARIZE_NATIVE_ISA");
  if (!wanted || !*wanted) return 0;
  for (int i = 0; tz_instruction_set(i); ++i)
    if (strcasecmp(tz_instruction_set(i), wanted) == 0) return i;
  throw Refused{"this processor has no instruction set of the name in TERNARIZE_NATIVE_ISA"};
}

}  // namespace
}  // namespace tz

using namespace tz;

struct tz_model {
  explicit tz_model(const char* path) : file_(path), isa_(chosen_set()) {
    read_blocks();
    read_embeddings();
    read_vectors();
    file_.end();
  }

  int dim() const { return dim_; }
  int limit() const { return limit_; }

  void encode(const int32_t* ids, const int32_t* starts, int sequences, float* out, int threads) const {
    check_call(ids, starts, sequences, threads);
    if (!sequences) return;
    require_array(out, "there is no room for vectors, or it is not aligned");
    if (!threads) threads = std::min<int>(std::max(std::thread::hardware_concurrency(), 1u), kMostThreads);
    for (int first = 0, last = 0; first < sequences; first = last) {
      for (int room = kBudget; last < sequences; ++last) {
        const int length = std::max(starts[last + 1] - starts[last], 1);
        if (last > first && length > room) break;
        room -= length;
      }
      encode_batch(ids, starts + first, last - first, out + static_cast<size_t>(first) * dim_, threads);
    }
  }

 private:
  void read_blocks() {
    Encoder& e = encoder_;
    e.layers = file_.number(0, kMostLayers, "an encoder has 0 to 4096 layers");
    e.width = file_.number(1, kMostInputs, "an encoder is 1 to 4,194,304 wide");
    e.head = file_.number(1, kMostHead, "a head is 1 to 4096 wide");
    e.heads = file_.number(1, kMostInputs / e.head, "the heads are 1 to 4,194,304 wide together");
    for (int32_t* value : {&e.key_value_heads, &e.inner, &e.gated, &e.activation}) *value = file_.number();
    e.positions = file_.number(0, kMostLength, "there are 0 to 16,777,216 positions");
    e.rotated = file_.number(0, e.head / 2, "rotary positions turn more than a head");
    e.reach = file_.number(0, kMostLength, "a bias reaches 0 to 16,777,216 tokens");
    e.scale = file_.real();
    const float* const bias = flag(file_) ? file_.array<float>(e.heads * (2 * int64_t{e.reach} + 1)) : nullptr;
    struct Kind {
      int32_t before, after;
      const float *cos, *sin;
    };
    std::vector<Kind> kinds(file_.number(0, e.layers, "there are more kinds of layers than layers"));
    for (Kind& kind : kinds) {
      kind = {file_.number(), file_.number(), nullptr, nullptr};
      if (!flag(file_)) continue;
      kind.cos = file_.array<float>(int64_t{e.positions} * e.rotated);
      kind.sin = file_.array<float>(int64_t{e.positions} * e.rotated);
    }
    layers_.resize(e.layers);
    for (Layer& layer : layers_) {
      const int64_t most = static_cast<int64_t>(kinds.size()) - 1;
      const Kind& kind = kinds[file_.number(0, most, "there is no such kind of layers")];
      layer = {};
      layer.before = kind.before;
      layer.after = kind.after;
      layer.cos = kind.cos;
      layer.sin = kind.sin;
      layer.bias = bias;
      for (Linear* w : {&layer.qkv, &layer.output, &layer.up, &layer.down}) *w = read_linear(file_);
      for (Norms* norms : {&layer.attention, &layer.feed_forward})
        for (Norm* norm : {&norms->before, &norms->after, &norms->sum}) *norm = read_norm(file_, e.width);
      for (Norm* norm : {&layer.query, &layer.key}) *norm = read_norm(file_, e.head);
    }
    e.last = read_norm(file_, e.width);
    e.layer = layers_.data();
    check(e);
  }

  void read_embeddings() {
    limit_ = file_.number(1, kMostLength, "a text has 1 to 16,777,216 tokens at most");
    const int32_t whole[] = {0, limit_};
    check_starts(encoder_, whole, 1, limit_);
    factor_ = file_.real();
    has_types_ = flag(file_);
    has_positions_ = flag(file_);
    first_position_ = file_.number(0, kMostLength, "positions begin at 0 to 16,777,216");
    for (int i = 0; i < 1 + has_types_ + has_positions_; ++i) tables_.push_back(read_rows(file_, encoder_.width));
    require(!has_positions_ || int64_t{limit_} + first_position_ <= tables_.back().count,
            "there are fewer positions than tokens");
    embedded_ = read_norm(file_, encoder_.width);
  }

  void read_vectors() {
    const int modes = file_.number(1, kPoolings, "vectors are pooled in 1 to 6 ways");
    for (int i = 0; i < modes; ++i) modes_.push_back(file_.number(0, kPoolings - 1, "there is no such pooling"));
    int64_t width = int64_t{modes} * encoder_.width;
    steps_.resize(file_.number(0, kMostSteps, "there are 0 to 64 modules behind pooling"));
    for (Step& step : steps_) {
      require(width <= kMostInputs, "a vector has more than 4,194,304 dimensions");
      const int32_t kind = file_.number(kLinearStep, kNormStep, "there is no module of this kind");
      step.is_tanh = flag(file_);
      if (kind == kLinearStep) {
        step.linear = read_linear(file_);
        require(step.linear.inputs == width, "a module doesn't fit the one before it");
        width = step.linear.outputs;
      } else if (kind == kDenseStep) {
        step.dense = read_dense(file_);
        require(step.dense.inputs == width, "a module doesn't fit the one before it");
        width = step.dense.outputs;
      } else {
        step.norm = read_norm(file_, width);
        require(step.norm.kind != kNone, "a module norms vectors by no norm");
      }
    }
    normalizes_ = flag(file_);
    require(width <= kMostInputs, "a vector has more than 4,194,304 dimensions");
    dim_ = file_.number(1, width, "vectors are cut to more dimensions than they have");
  }

  // Checks the arguments of a call, so that nothing is written if one is invalid.
  void check_call(const int32_t* ids, const int32_t* starts, int sequences, int threads) const {
    require(threads == 0 || within(threads, 1, kMostThreads), "threads are 1 to 1024, or 0 for all processors");
    require(within(sequences, 0, kMostRows), "there are 0 to 268,435,456 sequences");
    require_array(starts, "there are no starts of sequences, or they are not aligned");
    check_rows_of(starts, sequences, starts[sequences]);
    for (int i = 0; i < sequences; ++i)
      require(starts[i + 1] - starts[i] <= limit_, "a text has more tokens than tz_model_limit");
    if (starts[sequences]) require_array(ids, "there are no ids, or they are not aligned");
    for (int i = 0; i < starts[sequences]; ++i)
      require(within(ids[i], 0, tables_[0].count - 1), "an id is no row of the model's table");
  }

  // Encodes sequences that lie in `ids` from starts[0] on.
  void encode_batch(const int32_t* ids, const int32_t* starts, int sequences, float* out, int threads) const {
    std::vector<int32_t> places(starts, starts + sequences + 1);
    for (int32_t& place : places) place -= starts[0];
    const int tokens = places.back(), width = encoder_.width, modes = static_cast<int>(modes_.size());
    std::vector<float> x(static_cast<size_t>(tokens) * width), pooled(static_cast<size_t>(sequences) * modes * width);
    embed(ids + starts[0], places, x.data(), threads);
    run(tz_encode(isa_, &encoder_, places.data(), sequences, x.data(), tokens, threads));
    for (int i = 0; i < modes; ++i)
      run(tz_pool(modes_[i], x.data(), tokens, width, places.data(), sequences, 0,
                  pooled.data() + static_cast<size_t>(i) * width, int64_t{modes} * width, threads));
    int wide = modes * width;
    for (const Step& step : steps_) wide = take(step, sequences, wide, &pooled, threads);
    if (normalizes_) run(tz_normalize(pooled.data(), sequences, wide));
    for (int i = 0; i < sequences; ++i)
      std::copy_n(pooled.data() + static_cast<size_t>(i) * wide, dim_, out + static_cast<size_t>(i) * dim_);
  }

  // Adds up a row of each table for every token, and norms the sums.
  void embed(const int32_t* ids, const std::vector<int32_t>& places, float* x, int threads) const {
    const int tokens = places.back(), width = encoder_.width;
    std::vector<std::vector<int64_t>> rows;
    rows.emplace_back(ids, ids + tokens);
    if (has_types_) rows.emplace_back(tokens, 0);
    if (has_positions_) rows.push_back(positions(ids, places));
    const bool is_int8 = std::all_of(tables_.begin(), tables_.end(), [](const Rows& table) { return table.bits == 8; });
    if (!is_int8) {
      for (int i = 0; i < tokens; ++i)
        for (size_t j = 0; j < tables_.size(); ++j)
          tables_[j].put(rows[j][i], width, j == 0 ? factor_ : 1.0f, j > 0, x + static_cast<size_t>(i) * width);
      return run(tz_norm(isa_, &embedded_, x, tokens, width, threads));
    }
    const int8_t* codes[3];
    const float* scales[3];
    int64_t counts[3];
    const int64_t* chosen[3];
    for (size_t j = 0; j < tables_.size(); ++j) {
      codes[j] = reinterpret_cast<const int8_t*>(tables_[j].codes);
      scales[j] = tables_[j].scale;
      counts[j] = tables_[j].count;
      chosen[j] = rows[j].data();
    }
    run(tz_embed(isa_, codes, scales, counts, chosen, static_cast<int>(tables_.size()), tokens, width, &embedded_, x, threads));
  }

  // The row of the table of positions for each token. With a first position, as in RoBERTa, the token before it is the padding,
  // which is not counted.
  std::vector<int64_t> positions(const int32_t* ids, const std::vector<int32_t>& places) const {
    std::vector<int64_t> rows(places.back());
    for (size_t sequence = 0; sequence + 1 < places.size(); ++sequence) {
      int64_t next = first_position_;
      for (int i = places[sequence]; i < places[sequence + 1]; ++i)
        rows[i] = first_position_ && ids[i] == first_position_ - 1 ? ids[i] : next++;
    }
    return rows;
  }

  // Does what a module does with vectors of `wide` dimensions, and returns how many they then have.
  int take(const Step& step, int rows, int wide, std::vector<float>* vectors, int threads) const {
    const int outputs = step.linear.outputs ? step.linear.outputs : step.dense.outputs;
    if (!outputs) {
      run(tz_norm(isa_, &step.norm, vectors->data(), rows, wide, threads));
      return wide;
    }
    std::vector<float> made(static_cast<size_t>(rows) * outputs);
    if (step.linear.outputs)
      run(tz_linear(isa_, &step.linear, vectors->data(), rows, made.data(), nullptr, threads));
    else
      run(tz_dense(isa_, &step.dense, vectors->data(), rows, made.data(), threads));
    if (step.is_tanh)  // in double precision, whose rounding to float does not depend on the library that computes it
      for (float& value : made) value = static_cast<float>(std::tanh(static_cast<double>(value)));
    vectors->swap(made);
    return outputs;
  }

  WeightsFile file_;
  const int isa_;
  Encoder encoder_ = {};
  std::vector<Layer> layers_;
  std::vector<Rows> tables_;  // of words, then of types of tokens and of positions, where there are such
  float factor_ = 1;          // of the table of words, where a table is not int8
  bool has_types_ = false, has_positions_ = false, normalizes_ = false;
  int32_t first_position_ = 0, limit_ = 0, dim_ = 0;
  Norm embedded_ = {};
  std::vector<int32_t> modes_;
  std::vector<Step> steps_;
};

extern "C" {

TZ_EXPORT tz_model* tz_model_open(const char* path) {
  tz_model* made = nullptr;
  const int code = guarded([&] { made = new tz_model(path); });
  if (code == kNoMemory) why() = "there is not enough memory for the weights";
  return made;
}

TZ_EXPORT int tz_model_dim(const tz_model* model) { return model->dim(); }

TZ_EXPORT int tz_model_limit(const tz_model* model) { return model->limit(); }

TZ_EXPORT int tz_model_encode(const tz_model* model, const int32_t* ids, const int32_t* starts, int sequences, float* out,
                              int threads) {
  const int code = guarded([&] {
    require(model, "there is no model");
    model->encode(ids, starts, sequences, out, threads);
  });
  if (code == kNoMemory) why() = "there is not enough memory for these texts";
  return code;
}

TZ_EXPORT void tz_model_close(tz_model* model) { delete model; }

}  // extern "C"
