// The functions of the C interface that model.cpp calls; api.cpp describes them.
#pragma once
#include "encoder.h"

extern "C" {
const char* tz_why();
const char* tz_instruction_set(int i);
int tz_linear(int isa, const tz::Linear* w, const float* x, int rows, float* y, int32_t* sums, int threads);
int tz_embed(int isa, const int8_t* const* tables, const float* const* scales, const int64_t* table_rows,
             const int64_t* const* ids, int count, int rows, int width, const tz::Norm* norm, float* x, int threads);
int tz_dense(int isa, const tz::Dense* w, const float* x, int rows, float* y, int threads);
int tz_norm(int isa, const tz::Norm* norm, float* x, int rows, int width, int threads);
int tz_pool(int mode, const float* x, int tokens, int width, const int32_t* starts, int sequences, int skipped, float* out,
            int64_t stride, int threads);
int tz_normalize(float* x, int rows, int width);
int tz_encode(int isa, const tz::Encoder* encoder, const int32_t* starts, int sequences, float* x, int tokens, int threads);
}
