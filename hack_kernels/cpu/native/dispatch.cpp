// The entry points: which kernels this CPU can run, and how a call is divided among threads. A task of decode_attention is one KV
// head of one sequence over kSplitPages pages or over the residual; its result does not depend on who computes it or on the rest
// of the batch, and the parts of a sequence are merged in their order, so neither does the output, to the bit.
#include <omp.h>

#include <cstdlib>
#include <cstring>

#include "abi.h"

namespace packhorse {
extern const Kernels kPortable, kAvx2, kAvxVnni, kAvx512, kAvx512Bf16;

namespace {

#if defined(__x86_64__)
const Kernels* const kAll[] = {&kPortable, &kAvx2, &kAvxVnni, &kAvx512, &kAvx512Bf16};
bool runs(int64_t isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (isa == 1) return avx2;
  if (isa == 2) return avx2 && __builtin_cpu_supports("avxvnni");
  if (isa == 3) return avx512;
  if (isa == 4) return avx512 && __builtin_cpu_supports("avx512bf16");
  return isa == 0;
}
#else
const Kernels* const kAll[] = {&kPortable};
bool runs(int64_t isa) { return isa == 0; }
#endif
constexpr float kLog2E = 1.44269504f;  // scores are in base 2 inside
constexpr int64_t kCount = sizeof kAll / sizeof *kAll;

int64_t size_of(int64_t dtype) { return dtype == kFloat32 ? 4 : 2; }
int64_t splits(int64_t pages) { return (pages + kSplitPages - 1) / kSplitPages; }

// A thread's own memory for one purpose, kept from call to call: fresh memory costs a page fault for every 4 KiB. A failed
// allocation is reported, never thrown through C.
class Memory {
 public:
  Memory() = default;
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* at_least(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + bytes / 4 + 127) / 64 * 64;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_));
      if (!data_) size_ = 0;
    }
    return data_;
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};
thread_local Memory lists, partials, scratch;

// Threads for `work` of which one deserves at least `least`: waking the others costs microseconds.
int64_t useful_threads(int64_t threads, int64_t work, int64_t least) {
  const int64_t most = work / least;
  return most < 1 ? 1 : most < threads ? most : threads;
}

enum Status { kDone = 0, kNoMemory = 1, kBadValue = 2 };

struct Part {  // one task of decode_attention
  int32_t sequence, head, split;  // split 0 is the residual
  int64_t row;                    // of the partials
};

class Decoding {
 public:
  Decoding(const Decode& call, const Kernels& kernels) : c_(call), k_(kernels), rows_(call.queries * call.group) {}

  // Every value that is an index or a count is one that may be used.
  bool valid() const {
    for (int64_t b = 0; b < c_.batch; ++b) {
      if (c_.num_pages[b] < 0 || c_.num_pages[b] > c_.max_pages) return false;
      if (c_.residual_rows[b] < 0 || c_.residual_rows[b] >= c_.num_rows) return false;
      if (c_.residual_tokens[b] < c_.queries || c_.residual_tokens[b] > c_.format.residual_slots) return false;
      const int64_t* slots = c_.page_table + b * c_.page_table_stride;
      for (int64_t i = 0; i < c_.num_pages[b]; ++i)
        if (slots[i] < 0 || slots[i] >= c_.num_slots) return false;
    }
    return true;
  }

  int run() {
    if (!valid()) return kBadValue;
    int64_t parts = 0;
    int64_t pages = 0;
    for (int64_t b = 0; b < c_.batch; ++b) {
      parts += (1 + splits(c_.num_pages[b])) * c_.kv_heads;
      pages += (1 + c_.num_pages[b]) * c_.kv_heads;
    }
    const int64_t threads = useful_threads(c_.run.threads, pages * ((rows_ + 3) / 4), 64);
    const int64_t dim = c_.format.head_dim, heads = c_.batch * c_.kv_heads;
    const int64_t list_bytes = (parts * sizeof(Part) + 63) / 64 * 64;
    uint8_t* list = lists.at_least(list_bytes + (c_.batch + heads) * 8);
    top_ = reinterpret_cast<float*>(partials.at_least(parts * rows_ * (dim + 2) * 4));
    if (!list || !top_) return kNoMemory;
    list_ = reinterpret_cast<Part*>(list);
    first_ = reinterpret_cast<int64_t*>(list + list_bytes);
    left_ = first_ + c_.batch;
    total_ = top_ + parts * rows_;
    out_ = total_ + parts * rows_;
    list_parts();
    int failed = 0;
    int64_t unclaimed = 0;
#pragma omp parallel num_threads(threads)
    {
      uint8_t* own = scratch.at_least(scratch_bytes(rows_) + rows_ * padded(dim) * 4 + kMaxRows * 8);
      if (!own) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      // A thread claims its next task before it computes one, so that it can ask for that one's first pages in time.
      int64_t next = 0;
      for (int64_t i = own ? claim(unclaimed) : parts; i < parts; i = next) {
        next = claim(unclaimed);
        const int64_t b = list_[i].sequence, head = list_[i].head;
        attend(list_[i], next < parts ? &list_[next] : nullptr, own);
        if (__atomic_sub_fetch(&left_[b * c_.kv_heads + head], 1, __ATOMIC_ACQ_REL) == 0) finish(b, head, own);
      }
    }
    if (failed) return kNoMemory;
    return kDone;
  }

 private:
  // Partials of a sequence: [kv_heads, 1 + splits, rows]. Tasks over pages come first, residuals, which are short, last.
  void list_parts() {
    Part* at = list_;
    int64_t row = 0;
    for (int64_t b = 0; b < c_.batch; ++b) {
      first_[b] = row;
      for (int64_t h = 0; h < c_.kv_heads; ++h) left_[b * c_.kv_heads + h] = 1 + splits(c_.num_pages[b]);
      row += (1 + splits(c_.num_pages[b])) * c_.kv_heads * rows_;
    }
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t b = 0; b < c_.batch; ++b) {
        const int64_t n = 1 + splits(c_.num_pages[b]);
        for (int64_t split = pass ? 0 : 1; split < (pass ? 1 : n); ++split)
          for (int64_t h = 0; h < c_.kv_heads; ++h)
            *at++ = {(int32_t)b, (int32_t)h, (int32_t)split, first_[b] + (h * n + split) * rows_};
      }
  }

  static int64_t claim(int64_t& unclaimed) { return __atomic_fetch_add(&unclaimed, 1, __ATOMIC_RELAXED); }

  int64_t pages_of(const Part& part) const {
    const int64_t left = c_.num_pages[part.sequence] - (part.split - 1) * (int64_t)kSplitPages;
    return part.split == 0 ? 0 : left < kSplitPages ? left : kSplitPages;
  }
  const int64_t* slots_of(const Part& part) const {
    return c_.page_table + part.sequence * c_.page_table_stride + (part.split - 1) * (int64_t)kSplitPages;
  }
  const uint8_t* base_of(const Part& part) const { return c_.pool.data + part.head * c_.pool.head_stride; }

  void attend(const Part& part, const Part* following, uint8_t* own) const {
    const Format& f = c_.format;
    const int64_t dp = padded(f.head_dim), b = part.sequence;
    float* q = reinterpret_cast<float*>(own);
    int64_t* tokens = reinterpret_cast<int64_t*>(q + rows_ * dp);
    void* scratch = tokens + kMaxRows;
    for (int64_t r = 0; r < rows_; ++r) {  // rows: [queries, group]
      const int64_t query = r / c_.group, head = part.head * c_.group + r % c_.group;
      const int64_t at = b * c_.q_batch_stride + query * c_.q_token_stride + head * c_.q_head_stride;
      std::memset(q + r * dp, 0, dp * 4);
      k_.to_float((DType)c_.q_dtype, c_.q + at * size_of(c_.q_dtype), f.head_dim, c_.scale * kLog2E, q + r * dp);
      tokens[r] = c_.residual_tokens[b] - (c_.queries - 1 - query);
    }
    float *top = top_ + part.row, *total = total_ + part.row, *out = out_ + part.row * f.head_dim;
    if (part.split == 0) {
      const Residual& r = c_.residual;
      const uint8_t* k = r.data + (c_.residual_rows[b] * r.row_stride + part.head * r.head_stride) * size_of(f.dtype);
      k_.attend_exact({&f, q, rows_, k, k + r.kv_stride * size_of(f.dtype), r.slot_stride, tokens, top, total, out, scratch});
      return;
    }
    AttendPages task = {&f, q, rows_, pages_of(part), c_.run.dequant, base_of(part), c_.pool.slot_stride, slots_of(part), top, total, out,
                        scratch};
    if (following && following->split) {
      task.following = base_of(*following), task.following_slots = slots_of(*following);
      task.num_following = pages_of(*following);
    }
    k_.attend_pages(task);
  }

  void finish(int64_t b, int64_t head, uint8_t* own) const {
    const int64_t dim = c_.format.head_dim, n = 1 + splits(c_.num_pages[b]);
    float* merged = reinterpret_cast<float*>(own);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t row = first_[b] + head * n * rows_ + r;
      k_.merge(dim, n, rows_, top_ + row, total_ + row, out_ + row * dim, merged);
      const int64_t at = b * c_.out_batch_stride + r / c_.group * c_.out_token_stride +
                         (head * c_.group + r % c_.group) * c_.out_head_stride;
      k_.from_float((DType)c_.q_dtype, merged, dim, c_.out + at * size_of(c_.q_dtype));
    }
  }

  const Decode& c_;
  const Kernels& k_;
  const int64_t rows_;
  Part* list_ = nullptr;
  int64_t *first_ = nullptr, *left_ = nullptr;  // left_: tasks of a sequence's head that are not done; the last one merges
  float *top_ = nullptr, *total_ = nullptr, *out_ = nullptr;
};

// A task is kQueryRows rows of a KV head's [chunk, group] queries: over the exact tokens that they see, over the pages, and merged. The
// last queries, which see most, come first.
class Prefilling {
 public:
  Prefilling(const Prefill& call, const Kernels& kernels) : c_(call), k_(kernels), exact_(call.format), rows_(call.chunk * call.group) {
    exact_.dtype = call.kv_dtype;
  }
  int64_t tasks() const { return c_.kv_heads * blocks(); }
  int64_t bytes() const { return kQueryRows * (padded(c_.format.head_dim) * 3 + 6) * 4 + scratch_bytes(kQueryRows); }

  void attend(int64_t task, uint8_t* own) const {
    const Format& f = c_.format;
    const int64_t head = task % c_.kv_heads, start = (blocks() - 1 - task / c_.kv_heads) * kQueryRows, dim = f.head_dim, dp = padded(dim);
    const int64_t rows = rows_ - start < kQueryRows ? rows_ - start : kQueryRows;
    float *q = reinterpret_cast<float*>(own), *out = q + kQueryRows * dp, *top = out + 2 * kQueryRows * dp, *total = top + 2 * kQueryRows;
    int64_t* tokens = reinterpret_cast<int64_t*>(total + 2 * kQueryRows);
    void* rest = tokens + kQueryRows;
    std::memset(q, 0, rows * dp * 4);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t query = (start + r) / c_.group, at = query * c_.q_token_stride + head_of(head, start + r) * c_.q_head_stride;
      k_.to_float((DType)c_.q_dtype, c_.q + at * size_of(c_.q_dtype), dim, c_.scale * kLog2E, q + r * dp);
      tokens[r] = c_.tokens - c_.chunk + query + 1;
    }
    const int64_t kv = head * c_.kv_head_stride * size_of(c_.kv_dtype);
    k_.attend_exact({&exact_, q, rows, c_.k + kv, c_.v + kv, c_.kv_token_stride, tokens, top, total, out, rest});
    k_.attend_pages({&f, q, rows, c_.num_pages, c_.run.dequant, c_.pool.data + head * c_.pool.head_stride, c_.pool.slot_stride, c_.slots,
                     top + kQueryRows, total + kQueryRows, out + kQueryRows * dim, rest});
    for (int64_t r = 0; r < rows; ++r) {
      k_.merge(dim, 2, kQueryRows, top + r, total + r, out + r * dim, q);
      const int64_t at = ((start + r) / c_.group * c_.kv_heads * c_.group + head_of(head, start + r)) * dim;
      k_.from_float((DType)c_.q_dtype, q, dim, c_.out + at * size_of(c_.q_dtype));
    }
  }

 private:
  int64_t blocks() const { return (rows_ + kQueryRows - 1) / kQueryRows; }
  int64_t head_of(int64_t kv_head, int64_t row) const { return kv_head * c_.group + row % c_.group; }

  const Prefill& c_;
  const Kernels& k_;
  Format exact_;
  const int64_t rows_;
};

}  // namespace
}  // namespace packhorse

using namespace packhorse;

#define EXPORT __attribute__((visibility("default")))

extern "C" {

#ifndef PACKHORSE_SOURCES
#define PACKHORSE_SOURCES "unknown"
#endif
EXPORT const char* packhorse_sources() { return PACKHORSE_SOURCES; }

// The name of instruction set `isa`, null where there is none or this CPU cannot run it. Higher is better.
EXPORT const char* packhorse_isa(int64_t isa) { return isa >= 0 && isa < kCount && runs(isa) ? kAll[isa]->name : nullptr; }
EXPORT int64_t packhorse_num_isas() { return kCount; }

// `plan` lacks the addresses of q, pages and residual: the same call is made for every layer, with other tensors.
EXPORT int packhorse_decode(const Decode* plan, const void* q, void* pages, void* residual) {
  Decode call = *plan;
  call.q = static_cast<const uint8_t*>(q);
  call.pool.data = static_cast<uint8_t*>(pages), call.residual.data = static_cast<uint8_t*>(residual);
  return Decoding(call, *kAll[call.run.isa]).run();
}

// Multiply-adds of integer dot products, and no other work, on `threads` threads: what a machine's bound is measured with.
EXPORT int64_t packhorse_integer_dots(int64_t isa, int64_t threads, int64_t rounds) {
  int64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  total += kAll[isa]->integer_dots(rounds);
  return total;
}

EXPORT int packhorse_prefill(const Prefill* call) {
  const Prefilling chunk(*call, *kAll[call->run.isa]);
  int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(call->run.threads)
  for (int64_t task = 0; task < chunk.tasks(); ++task) {
    uint8_t* own = scratch.at_least(chunk.bytes());
    if (own)
      chunk.attend(task, own);
    else
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  }
  return failed ? kNoMemory : kDone;
}

EXPORT int packhorse_close(const Close* call) {
  const Close& c = *call;
  const Kernels& k = *kAll[c.run.isa];
  const int64_t size = size_of(c.dtype);
  const int64_t threads = useful_threads(c.run.threads, c.num_blocks * c.kv_heads, 16);
  int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < c.num_blocks * c.kv_heads; ++task) {
    const int64_t block = task / c.kv_heads, head = task % c.kv_heads;
    const int64_t from = c.k_rows ? c.k_rows[block] : block, to = c.slots ? c.slots[block] : block;
    uint8_t* own = scratch.at_least(scratch_bytes(0));
    if (!own) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      continue;
    }
    uint8_t* page = c.pool.data + to * c.pool.slot_stride + head * c.pool.head_stride;
    k.close_page(c.format, (DType)c.dtype, c.k + (from * c.k_block_stride + head * c.k_head_stride) * size, c.k_token_stride,
                 c.v + (from * c.v_block_stride + head * c.v_head_stride) * size, c.v_token_stride, page, own);
  }
  return failed ? kNoMemory : kDone;
}

EXPORT int packhorse_append(const Append* call) {
  const Append& c = *call;
  const Format& f = c.format;
  const Kernels& k = *kAll[c.run.isa];
  const int64_t in = size_of(c.dtype), out = size_of(f.dtype);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t n = c.num_tokens[b];
    const int64_t slot = n < f.sink_tokens ? n : f.sink_tokens + (n - f.sink_tokens) % kPageTokens;
    for (int64_t h = 0; h < c.kv_heads; ++h)
      for (int side = 0; side < 2; ++side) {
        const Residual& r = c.residual;
        const uint8_t* from = side ? c.v + (b * c.v_batch_stride + h * c.v_head_stride) * in
                                   : c.k + (b * c.k_batch_stride + h * c.k_head_stride) * in;
        uint8_t* to = r.data + (c.residual_rows[b] * r.row_stride + side * r.kv_stride + h * r.head_stride + slot * r.slot_stride) * out;
        if (c.dtype == f.dtype) {
          std::memcpy(to, from, f.head_dim * in);
        } else {
          alignas(64) float row[kMaxHeadDim];
          k.to_float((DType)c.dtype, from, f.head_dim, 1.0f, row);
          k.from_float((DType)f.dtype, row, f.head_dim, to);
        }
      }
  }
  return kDone;
}

}  // extern "C"
