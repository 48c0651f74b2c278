// Exact attention of some rows over contiguous tokens in float32, bf16 or fp16 (a residual, or a raw page), the conversions of
// rows, and the merging of partial attentions. Queries come times log2(e) too: weights are 2**(score - top) everywhere.

template <DType TYPE>
INLINE F load_as_float(const uint8_t* p, int64_t i) {
  if constexpr (TYPE == kFloat32) return load(p + 4 * i);
  if constexpr (TYPE == kBFloat16) return (F)(load_u16(p + 2 * i) << 16);
  return load_f16(p + 2 * i);
}

template <DType TYPE>
static void to_float_of(const uint8_t* from, int64_t n, float scale, float* to) {
  constexpr int size = TYPE == kFloat32 ? 4 : 2;
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(to + i, load_as_float<TYPE>(from, i) * scale);
  if (i < n) {
    alignas(64) uint8_t last[VL * 4] = {};
    alignas(64) float numbers[VL];
    __builtin_memcpy(last, from + i * size, (n - i) * size);
    store(numbers, load_as_float<TYPE>(last, 0) * scale);
    __builtin_memcpy(to + i, numbers, (n - i) * 4);
  }
}
static void to_float(DType type, const uint8_t* from, int64_t n, float scale, float* to) {
  if (type == kFloat32) return to_float_of<kFloat32>(from, n, scale, to);
  if (type == kBFloat16) return to_float_of<kBFloat16>(from, n, scale, to);
  to_float_of<kFloat16>(from, n, scale, to);
}

static void from_float(DType type, const float* from, int64_t n, uint8_t* to) {
  if (type == kFloat32) {
    __builtin_memcpy(to, from, n * 4);
    return;
  }
  for (int64_t i = 0; i < n; i += VL) {
    alignas(64) float numbers[VL] = {};
    alignas(64) uint8_t halves[VL * 2];
    const int64_t count = n - i < VL ? n - i : VL;
    __builtin_memcpy(numbers, from + i, count * 4);
    if (type == kBFloat16)
      store_halves(halves, round_bf16(load(numbers)));
    else
      store_f16(halves, load(numbers));
    __builtin_memcpy(to + 2 * i, halves, count * 2);
  }
}

constexpr int kExactTokens = 64;  // attended at a time

// Scores lie as [token][row of the slice], 4 rows.
template <DType TYPE, int R>
static void attend_exact_slice(const float* q, int64_t dp, int64_t head_dim, const uint8_t* k, const uint8_t* v, int64_t stride,
                               int64_t n, const int64_t* tokens, int64_t before, F4& top, F4& total, float* out, float* row) {
  alignas(64) F4 w[kExactTokens];
  constexpr int size = TYPE == kFloat32 ? 4 : 2;
  const bool whole = head_dim % VL == 0;
  I4 sees;
  for (int r = 0; r < 4; ++r) sees[r] = (int32_t)(tokens[r < R ? r : 0] - before);
  F4 chunk_top = F4{} - 3e38f;
  for (int64_t t = 0; t < n; ++t) {
    F acc[4] = {};
    if (!whole) to_float_of<TYPE>(k + t * stride * size, head_dim, 1.0f, row);
    for (int64_t i = 0; i < dp; i += VL) {
      F x = whole ? load_as_float<TYPE>(k + t * stride * size, i) : load(row + i);
      for (int r = 0; r < R; ++r) acc[r] = fma(x, load(q + r * dp + i), acc[r]);
    }
    F4 score = sums(acc[0], acc[1], acc[2], acc[3]);
    score = (int32_t)t < sees ? score : F4{} - 3e38f;
    w[t] = score;
    chunk_top = max4(score, chunk_top);
  }
  const F4 new_top = max4(chunk_top, top), keep = exp2_rows(top - new_top), share = exp2_rows(chunk_top - new_top);
  F4 sum = {};
  const int64_t even = n + (-n & (VL / 4 - 1));
  for (int64_t t = n; t < even; ++t) w[t] = chunk_top;
  for (int64_t t = 0; t < even; t += VL / 4) store(w + t, exp2_lanes(load(w + t) - repeat4(chunk_top)));
  for (int64_t t = 0; t < n; ++t) {
    w[t] = (int32_t)t < sees ? w[t] : F4{};
    sum += w[t];
  }
  total = total * keep + share * sum;
  top = new_top;

  constexpr int N = kAccumulators / 4;
  for (int64_t c = 0; c < dp; c += N * VL) {
    F acc[R][N] = {};
    const int64_t width = dp - c < N * VL ? dp - c : N * VL;
    const bool full = width == N * VL && whole;
    for (int64_t t = 0; t < n; ++t) {
      F x[N];
      if (full) {
        for (int j = 0; j < N; ++j) x[j] = load_as_float<TYPE>(v + t * stride * size, c + j * VL);
      } else {
        const int64_t have = head_dim - c < N * VL ? head_dim - c : N * VL;
        to_float_of<TYPE>(v + (t * stride + c) * size, have, 1.0f, row);
        for (int j = 0; j < N; ++j) x[j] = load(row + j * VL);
      }
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < N; ++j) acc[r][j] = fma(all(((const float*)&w[t])[r]), x[j], acc[r][j]);
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < N; ++j) {  // to a fixed end, which keeps the accumulators in registers
        float* p = out + r * dp + c + j * VL;
        if (j * VL < width) store(p, fma(load(p), all(keep[r]), acc[r][j] * all(share[r])));
      }
  }
}

template <DType TYPE>
static void attend_exact_of(const Format& f, const float* q, int64_t rows, const uint8_t* k, const uint8_t* v, int64_t stride,
                            int64_t count, const int64_t* tokens, F4* tops, F4* totals, float* out, float* row) {
  constexpr int size = TYPE == kFloat32 ? 4 : 2;
  const int64_t dp = padded(f.head_dim);
  for (int64_t before = 0; before < count; before += kExactTokens) {
    const int64_t n = count - before < kExactTokens ? count - before : kExactTokens;
    const uint8_t *k_at = k + before * stride * size, *v_at = v + before * stride * size;
    for (int64_t r = 0; r < rows; r += 4) {
      const int64_t left = rows - r;
      auto attend = left >= 4   ? attend_exact_slice<TYPE, 4>
                    : left == 3 ? attend_exact_slice<TYPE, 3>
                    : left == 2 ? attend_exact_slice<TYPE, 2>
                                : attend_exact_slice<TYPE, 1>;
      attend(q + r * dp, dp, f.head_dim, k_at, v_at, stride, n, tokens + r, before, tops[r / 4], totals[r / 4], out + r * dp, row);
    }
  }
}

struct ExactState {
  F4 *tops, *totals;
  float *out, *row;
};
static ExactState exact_state(const Format& f, int64_t rows, void* scratch) {
  const int64_t slices = (rows + 3) / 4, dp = padded(f.head_dim);
  ExactState s;
  s.tops = (F4*)scratch;
  s.totals = s.tops + slices;
  s.out = (float*)(s.totals + slices + (-2 * slices & 3));
  s.row = s.out + rows * dp;
  __builtin_memset(s.out, 0, (rows * dp + kMaxHeadDim + 64) * 4);
  for (int64_t i = 0; i < slices; ++i) s.tops[i] = F4{} - 3e38f, s.totals[i] = F4{};
  return s;
}
static void write_exact(const Format& f, const ExactState& s, int64_t rows, float* top, float* total, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    top[r] = s.tops[r / 4][r % 4], total[r] = s.totals[r / 4][r % 4];
    __builtin_memcpy(out + r * f.head_dim, s.out + r * padded(f.head_dim), f.head_dim * 4);
  }
}
static void attend_any(const Format& f, const float* q, int64_t rows, const uint8_t* k, const uint8_t* v, int64_t stride,
                       int64_t count, const int64_t* tokens, const ExactState& s) {
  auto attend = f.dtype == kFloat32 ? attend_exact_of<kFloat32> : f.dtype == kBFloat16 ? attend_exact_of<kBFloat16> : attend_exact_of<kFloat16>;
  attend(f, q, rows, k, v, stride, count, tokens, s.tops, s.totals, s.out, s.row);
}

static void attend_exact(const AttendExact& a) {
  const ExactState s = exact_state(*a.format, a.rows, a.scratch);
  int64_t count = 0;
  for (int64_t r = 0; r < a.rows; ++r) count = a.tokens[r] > count ? a.tokens[r] : count;
  attend_any(*a.format, a.q, a.rows, a.k, a.v, a.token_stride, count, a.tokens, s);
  write_exact(*a.format, s, a.rows, a.top, a.total, a.out);
}

static void attend_raw_pages(const AttendPages& a) {
  const Format& f = *a.format;
  const ExactState s = exact_state(f, a.rows, a.scratch);
  int64_t tokens[kMaxRows];
  for (int64_t r = 0; r < a.rows; ++r) tokens[r] = kPageTokens;
  for (int64_t p = 0; p < a.num_pages; ++p) {
    const uint8_t* page = a.base + a.slots[p] * a.slot_stride;
    if (p + 1 < a.num_pages)
      for (int64_t at = 0; at < f.page_bytes; at += 64) __builtin_prefetch(a.base + a.slots[p + 1] * a.slot_stride + at, 0, 2);
    attend_any(f, a.q, a.rows, page + f.k_codes, page + f.v_codes, f.head_dim, kPageTokens, tokens, s);
  }
  write_exact(f, s, a.rows, a.top, a.total, a.out);
}

static void attend_coded_or_raw(const AttendPages& a) { a.format->k_bits ? attend_pages(a) : attend_raw_pages(a); }

static void merge(int64_t head_dim, int64_t parts, int64_t part_stride, const float* top, const float* total, const float* out,
                  float* merged) {
  float highest = top[0], sum = 0;
  for (int64_t i = 1; i < parts; ++i) highest = top[i * part_stride] > highest ? top[i * part_stride] : highest;
  for (int64_t c = 0; c < head_dim; ++c) merged[c] = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const float share = exp2_rows(F4{} + (top[i * part_stride] - highest))[0];
    const float* from = out + i * part_stride * head_dim;
    sum += share * total[i * part_stride];
    for (int64_t c = 0; c < head_dim; ++c) merged[c] += share * from[c];
  }
  const float inverse = 1.0f / sum;
  for (int64_t c = 0; c < head_dim; ++c) merged[c] *= inverse;
}
