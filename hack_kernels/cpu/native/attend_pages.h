// Attention of some rows (queries of one KV head) over coded pages, page after page; the formulas are those of
// reference/history.py. Rows are taken in slices of up to 4, whose accumulators fit the registers. Two ways: on the codes (queries
// and weights in int8), or `dequant`, the yardstick: codes become bf16 or float32 in registers, scales are folded just the same.
#include "work.h"
#include "fields.h"
#include "scores.h"
#include "values.h"

using Score = void (*)(const Format&, const float*, int64_t, const uint8_t* const*, int, Work&);
using Weigh = void (*)(const Format&, const Plan&, const uint8_t* const*, int, Work&, Rows&, float*);

template <bool DEQUANT, int BITS>
static Score score_of(int64_t rows) {
  static constexpr Score by_rows[] = {score<BITS, 1, DEQUANT>, score<BITS, 2, DEQUANT>, score<BITS, 3, DEQUANT>, score<BITS, 4, DEQUANT>};
  return by_rows[rows - 1];
}
template <bool DEQUANT, int BITS>
static Weigh weigh_of(int64_t rows) {
  static constexpr Weigh by_rows[] = {weigh<BITS, 1, DEQUANT>, weigh<BITS, 2, DEQUANT>, weigh<BITS, 3, DEQUANT>, weigh<BITS, 4, DEQUANT>};
  return by_rows[rows - 1];
}
template <bool DEQUANT>
static Score score_of(int64_t bits, int64_t rows) {
  return bits == 2 ? score_of<DEQUANT, 2>(rows) : bits == 4 ? score_of<DEQUANT, 4>(rows) : score_of<DEQUANT, 8>(rows);
}
template <bool DEQUANT>
static Weigh weigh_of(int64_t bits, int64_t rows) {
  return bits == 2 ? weigh_of<DEQUANT, 2>(rows) : bits == 4 ? weigh_of<DEQUANT, 4>(rows) : weigh_of<DEQUANT, 8>(rows);
}

// What a slice has come to, as rows of head_dim numbers: the zeros of V, and `dequant`'s offsets, are added to the sums of codes.
static void write_rows(const Format& f, const Plan& plan, bool dequant, int64_t count, const Rows& rows, const float* lanes, float* top,
                       float* total, float* out) {
  const int per = 8 / f.v_bits, plane = f.head_dim / per;
  const F4 totals = sums(rows.total[0], rows.total[1], rows.total[2], rows.total[3]);
  F4 rest[kMaxGroups][4];  // of each field
  for (int g = 0; g < plan.groups; ++g) {
    const F4 zeros = sums(rows.zeros[g][0], rows.zeros[g][1], rows.zeros[g][2], rows.zeros[g][3]) * ((float)(1 << f.v_bits) / 32);
    const F4 weights = sums(rows.sums[g][0], rows.sums[g][1], rows.sums[g][2], rows.sums[g][3]);
    for (int i = 0; i < per; ++i) rest[g][i] = dequant ? zeros - weights * dequant_offset_of(f.v_bits, i) : zeros;
  }
  for (int64_t r = 0; r < count; ++r) {
    top[r] = rows.top[r], total[r] = totals[r];
    for (int b = 0; b < plan.num_blocks; ++b)
      for (int i = 0; i < per; ++i) {
        const Block& block = plan.blocks[b];
        const float* from = lanes + r * plan.lanes + (b * per + i) * VL;
        const float more = rest[block.group[i]][i][r];
        for (int c = 0; c < block.count; ++c) out[r * f.head_dim + i * plane + block.start + c] = from[c] + more;
      }
  }
}

template <class T>
INLINE T* take(uint8_t*& at, int64_t count) {
  T* here = (T*)at;
  at += (count * sizeof(T) + 63) / 64 * 64;
  return here;
}

// Page n of this task or, beyond its end, of the thread's next one; null where there is none.
static const uint8_t* page_ahead(const AttendPages& a, int64_t n) {
  if (n < a.num_pages) return a.base + a.slots[n] * a.slot_stride;
  n -= a.num_pages;
  return n < a.num_following ? a.following + a.following_slots[n] * a.slot_stride : nullptr;
}

static void attend_pages(const AttendPages& a) {
  const Format& f = *a.format;
  const int64_t dp = padded(f.head_dim), slices = (a.rows + 3) / 4;
  uint8_t* at = (uint8_t*)a.scratch;
  Work& work = *take<Work>(at, 1);
  Plan& plan = *take<Plan>(at, 1);
  make_plan(f, plan);
  Rows* rows = take<Rows>(at, slices);
  float* out = take<float>(at, a.rows * plan.lanes);
  __builtin_memset(out, 0, a.rows * plan.lanes * 4);
  for (int64_t i = 0; i < slices; ++i) {
    rows[i] = Rows{};
    rows[i].top -= 3e38f;
  }
  for (Operands& page : work.pages) page.query_step = page.query_bias = F4{};
  if (a.dequant)
    for (int64_t c = 0; c < dp; ++c)
      work.offsets[c] = c < f.head_dim ? dequant_offset_of(f.k_bits, c / (f.head_dim * f.k_bits / 8)) : 0;

  Score score_slice[4];
  Weigh weigh_slice[4];
  for (int r = 1; r <= 4; ++r) {
    score_slice[r - 1] = a.dequant ? score_of<true>(f.k_bits, r) : score_of<false>(f.k_bits, r);
    weigh_slice[r - 1] = a.dequant ? weigh_of<true>(f.v_bits, r) : weigh_of<false>(f.v_bits, r);
  }
  for (int64_t p = 0; p < a.num_pages; p += kBatch) {
    const int count = a.num_pages - p < kBatch ? a.num_pages - p : kBatch;
    const uint8_t* pages[kBatch];
    for (int i = 0; i < count; ++i) pages[i] = a.base + a.slots[p + i] * a.slot_stride;
    for (int i = 0; i < count; ++i) {
      const uint8_t* next = page_ahead(a, p + kBatch + i);
      work.ahead[i] = next ? next - pages[i] : 0;
    }
    for (int64_t i = 0; i < slices; ++i) {
      const int64_t n = a.rows - 4 * i < 4 ? a.rows - 4 * i : 4;
      score_slice[n - 1](f, a.q + 4 * i * dp, dp, pages, count, work);
      weigh_slice[n - 1](f, plan, pages, count, work, rows[i], out + 4 * i * plan.lanes);
      if (i == 0) __builtin_memset(work.ahead, 0, sizeof work.ahead);
    }
  }
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t n = a.rows - 4 * i < 4 ? a.rows - 4 * i : 4;
    write_rows(f, plan, a.dequant, n, rows[i], out + 4 * i * plan.lanes, a.top + 4 * i, a.total + 4 * i, a.out + 4 * i * f.head_dim);
  }
}
