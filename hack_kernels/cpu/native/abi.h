// The C interface between Python (hack_kernels/cpu/library.py mirrors these structs) and the kernels. Strides are in elements of
// the tensor's own type, except those of page pools, which are in bytes. Every last dimension is contiguous.
#pragma once
#include <cstdint>

namespace packhorse {

enum DType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int kPageTokens = 64;
constexpr int kSplitPages = 32;  // pages of one task: fixed, so that a result depends on neither the batch nor the threads
constexpr int kMaxHeadDim = 512;
constexpr int kQueryRows = 32;  // rows of one task of `prefill`
constexpr int kMaxRows = 128;   // 16 query heads of a KV head times 8 query tokens

// What page_format.PageFormat says. Raw pages have bits 0, and k, v at the offsets of the codes.
struct Format {
  int64_t head_dim, k_bits, v_bits, dtype, group_channels, sink_tokens, residual_slots, page_bytes;
  int64_t k_codes, k_scale, k_min, v_codes, v_scale, v_zero;  // offsets
  float k_clip, k_floor, v_clip, v_floor;                     // factors of the quantizer
};

// `threads` workers on instruction set `isa`; `dequant` 1 dequantizes in registers instead of computing on codes.
struct Run {
  int64_t isa, threads, dequant;
};

struct Pool {
  uint8_t* data;
  int64_t slot_stride, head_stride;
};

struct Residual {
  uint8_t* data;  // of Format::dtype
  int64_t row_stride, kv_stride, head_stride, slot_stride;
};

struct Decode {
  Format format;
  Run run;
  Pool pool;
  Residual residual;
  int64_t batch, queries, kv_heads, group;
  const uint8_t* q;
  uint8_t* out;
  int64_t q_dtype, q_batch_stride, q_token_stride, q_head_stride, out_batch_stride, out_token_stride, out_head_stride;
  const int64_t *page_table, *num_pages, *residual_rows, *residual_tokens;
  int64_t page_table_stride, max_pages, num_slots, num_rows;
  float scale;
};

// A chunk of queries [chunk, kv_heads * group, head_dim] over the pages `slots` of its sequence and then exact tokens [kv_heads,
// tokens, head_dim], whose last `chunk` are the chunk's own: query i sees tokens - chunk + i + 1. `out` is contiguous.
struct Prefill {
  Format format;
  Run run;
  Pool pool;
  int64_t kv_heads, group, chunk, tokens, num_pages;
  const uint8_t *q, *k, *v;
  uint8_t* out;
  const int64_t* slots;
  int64_t q_dtype, kv_dtype, q_token_stride, q_head_stride, kv_head_stride, kv_token_stride;
  float scale;
};

struct Close {
  Format format;
  Run run;
  Pool pool;
  int64_t num_blocks, kv_heads, dtype;
  const uint8_t *k, *v;
  int64_t k_block_stride, k_head_stride, k_token_stride, v_block_stride, v_head_stride, v_token_stride;
  const int64_t *k_rows, *slots;  // block i reads k + k_rows[i] * k_block_stride (null: i) and writes slots[i] (null: i)
};

struct Append {
  Format format;
  Run run;
  Residual residual;
  int64_t batch, kv_heads, dtype;
  const uint8_t *k, *v;
  int64_t k_batch_stride, k_head_stride, v_batch_stride, v_head_stride;
  const int64_t *residual_rows, *num_tokens;
};

// One KV head's rows over some pages, or over a run of exact tokens: what a task computes.
struct AttendPages {
  const Format* format;
  const float* q;  // [rows, padded head_dim], zeros beyond head_dim
  int64_t rows, num_pages, dequant;
  const uint8_t* base;  // pages of the head: base + slots[i] * slot_stride
  int64_t slot_stride;
  const int64_t* slots;
  float *top, *total, *out;  // [rows], [rows], [rows, head_dim]
  void* scratch;             // kScratchBytes(rows)
  // The first pages of this thread's next task, asked for beforehand: following + following_slots[i] * slot_stride.
  const uint8_t* following;
  const int64_t* following_slots;
  int64_t num_following;
};

struct AttendExact {
  const Format* format;
  const float* q;
  int64_t rows;
  const uint8_t *k, *v;
  int64_t token_stride;
  const int64_t* tokens;  // [rows], how many leading tokens each row sees, at least 1
  float *top, *total, *out;
  void* scratch;
};

struct Kernels {
  const char* name;
  void (*attend_pages)(const AttendPages&);
  void (*attend_exact)(const AttendExact&);
  void (*close_page)(const Format&, DType, const uint8_t* k, int64_t k_stride, const uint8_t* v, int64_t v_stride, uint8_t* page,
                     void* scratch);
  // the normalized sum of `parts` partials, part_stride rows apart
  void (*merge)(int64_t head_dim, int64_t parts, int64_t part_stride, const float* top, const float* total, const float* out,
                float* merged);
  void (*to_float)(DType, const uint8_t* from, int64_t n, float scale, float* to);
  void (*from_float)(DType, const float* from, int64_t n, uint8_t* to);
  // integer dot products as attention uses them and nothing else, `rounds` times; the multiply-adds of it
  int64_t (*integer_dots)(int64_t rounds);
};

constexpr int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }
constexpr int kMaxBlocks = 160;  // runs of channels that share a word of codes in every field

// Every array that a task needs: rows of accumulators and operands, and one page in float32 for closing.
constexpr int64_t scratch_bytes(int64_t rows) {
  return (rows + 3) * (kMaxHeadDim * 8 + 1024) * 4 + 4 * kMaxHeadDim * 64 + 2 * kPageTokens * (kMaxHeadDim + 64) * 4 + 262144;
}

}  // namespace packhorse
