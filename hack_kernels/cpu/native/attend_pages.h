// Attention of some rows (queries of one KV head) over coded pages, page after page; the formulas are those of
// reference/history.py. Rows are taken in slices of up to 4, whose accumulators fit the registers. Two ways: on the codes (queries
// and weights in int8), or `dequant`, the yardstick: codes become bf16 or float32 in registers, scales are folded just the same.
constexpr int kTokens = kPageTokens;

// A run of words of V in which every field lies in one group of channels. Blocks of a segment have the same groups.
struct Block {
  int32_t start, count;  // words, of which the first `count` (at most VL) are this block's
  int32_t group[4];      // of each field
};

struct Plan {
  Block blocks[kMaxBlocks];
  int32_t segment_ends[kMaxBlocks], num_segments, num_blocks, lanes, groups;
};

static void make_plan(const Format& f, Plan& plan) {
  const int per = 8 / f.v_bits, plane = f.head_dim / per, size = f.group_channels;
  plan.num_blocks = plan.num_segments = 0;
  for (int start = 0; start < plane;) {
    int end = plane;
    for (int i = 0; i < per; ++i) {
      int next = ((start + i * plane) / size + 1) * size - i * plane;
      end = next < end ? next : end;
    }
    for (int at = start; at < end; at += VL) {
      Block& b = plan.blocks[plan.num_blocks++];
      b.start = at, b.count = end - at < VL ? end - at : VL;
      for (int i = 0; i < per; ++i) b.group[i] = (at + i * plane) / size;
    }
    plan.segment_ends[plan.num_segments++] = plan.num_blocks;
    start = end;
  }
  plan.lanes = plan.num_blocks * per * VL;
  plan.groups = f.head_dim / size;
}

constexpr int kMaxGroups = 8;
constexpr int kBatch = 4;  // pages of a slice at a time, so that one page's chains of dependent steps overlap the next one's

// What a slice of rows holds for one page. Operands are bytes, bf16 or float32, by the way of computing.
struct Operands {
  alignas(64) float scores[4][kTokens];
  alignas(64) uint8_t queries[4 * (kMaxHeadDim + 16) * 4];
  alignas(64) uint8_t weights[4 * kMaxGroups * kTokens * 4];
  F4 query_step, query_bias;
  F4 weight_step[kMaxGroups][4];  // of each field
};

struct Work {
  Operands pages[kBatch];
  const uint8_t* next[kBatch];  // pages of the next batch, null where there is none
  int64_t page_bytes;
  alignas(64) float folded[4 * (kMaxHeadDim + 16)];
  alignas(64) float offsets[kMaxHeadDim + 16];  // what `dequant` adds to the codes of a channel of K
};

// A quarter of page p of the next batch is asked for in each phase of page p of this one: more at once would stall the loads.
INLINE void prefetch_quarter(const Work& work, int p, int quarter) {
  if (const uint8_t* page = work.next[p]) {
    const int64_t size = (work.page_bytes + 255) / 256 * 64, end = (quarter + 1) * size;
    for (int64_t at = quarter * size; at < end && at < work.page_bytes; at += 64) __builtin_prefetch(page + at, 0, 3);
  }
}

// What a slice of rows has come to: w relative to 2**top.
struct Rows {
  F4 top;
  F total[4];              // of w, by lane
  F zeros[kMaxGroups][4];  // of w~ * v_zero, by lane
  F sums[kMaxGroups][4];   // of w~, by lane, for `dequant`
};

// ---- fields of a word

template <int BITS, int FIELD>
INLINE I codes_of(I word) {
  constexpr int32_t mask = (BITS == 2 ? 0x03030303 : 0x0F0F0F0F);
  if constexpr (BITS == 8) return word;
  if constexpr (kUnshifted) return word & (int32_t)((uint32_t)mask << (FIELD * BITS));
  return shift_right(word, FIELD * BITS) & mask;
}

// `dequant` in bf16: a field becomes the mantissa of a number, at bit `at` of 16, in an exponent that makes its step 1 (of the
// upper half of an 8-bit code, 16): `offset` + code, exactly.
template <int BITS, int FIELD, int PART>
struct Bf16Field {
  static constexpr int at = BITS == 2 ? (FIELD < 3 ? 2 * FIELD : 5) : (FIELD + PART ? 3 : 0);
  static constexpr int shift = BITS == 2 ? (FIELD < 3 ? 0 : 1) : (FIELD + PART ? 1 : 0);
  static constexpr int exponent = 7 - at + (PART ? 4 : 0);
  static constexpr float offset = 1 << exponent;
  static constexpr int32_t mask = (BITS == 2 ? 3 : 15) << at, magic = (127 + exponent) << 7;
};
template <class FIELD, int ODD>
INLINE I expand(I word) {
  constexpr int shift = FIELD::shift + 8 * ODD;
  return (shift_right(word, shift) & (FIELD::mask | FIELD::mask << 16)) | (FIELD::magic | FIELD::magic << 16);
}
template <int BITS, int FIELD>
constexpr float dequant_offset() {
  if constexpr (!kBf16Dot) return 0;
  if constexpr (BITS == 8) return Bf16Field<8, 0, 0>::offset + Bf16Field<8, 0, 1>::offset;
  return Bf16Field<BITS, FIELD, 0>::offset;
}
INLINE float dequant_offset_of(int bits, int field) {
  if (bits == 8) return dequant_offset<8, 0>();
  if (bits == 4) return field ? dequant_offset<4, 1>() : dequant_offset<4, 0>();
  return field == 0 ? dequant_offset<2, 0>() : field == 1 ? dequant_offset<2, 1>() : field == 2 ? dequant_offset<2, 2>() : dequant_offset<2, 3>();
}

constexpr int kDequantBytes = kBf16Dot ? 2 : 4;  // of an operand
template <bool DEQUANT>
constexpr int kOperandBytes = DEQUANT ? kDequantBytes : 1;

// R accumulators of one word's field against four numbers of R rows; `operand` + r * stride are the rows'.
template <int BITS, int FIELD, int R, int N, bool DEQUANT, class A>
INLINE void multiply(A (&acc)[R][N], const I (&words)[N], const uint8_t* operand, int64_t stride) {
  if constexpr (!DEQUANT) {
    I codes[N];
    for (int j = 0; j < N; ++j) codes[j] = codes_of<BITS, FIELD>(words[j]);
    for (int r = 0; r < R; ++r) {
      I b = all(word_at(operand + r * stride));
      for (int j = 0; j < N; ++j) acc[r][j] = dot<BITS>(acc[r][j], codes[j], b);
    }
  } else {
#ifdef PACKHORSE_BF16
    for (int j = 0; j < N; ++j) {
      I even = expand<Bf16Field<BITS, FIELD, 0>, 0>(words[j]);
      I odd = expand<Bf16Field<BITS, FIELD, 0>, 1>(words[j]);
      for (int r = 0; r < R; ++r) {
        acc[r][j] = dot_bf16(acc[r][j], even, all(word_at(operand + r * stride)));
        acc[r][j] = dot_bf16(acc[r][j], odd, all(word_at(operand + r * stride + 4)));
      }
      if constexpr (BITS == 8) {
        even = expand<Bf16Field<BITS, FIELD, 1>, 0>(words[j]);
        odd = expand<Bf16Field<BITS, FIELD, 1>, 1>(words[j]);
        for (int r = 0; r < R; ++r) {
          acc[r][j] = dot_bf16(acc[r][j], even, all(word_at(operand + r * stride)));
          acc[r][j] = dot_bf16(acc[r][j], odd, all(word_at(operand + r * stride + 4)));
        }
      }
    }
#else
    for (int n = 0; n < 4; ++n)
      for (int j = 0; j < N; ++j) {
        F x = to_floats(shift_right(words[j], 8 * n + FIELD * BITS) & ((1 << BITS) - 1));
        for (int r = 0; r < R; ++r) acc[r][j] = fma(x, all(((const float*)(operand + r * stride))[n]), acc[r][j]);
      }
#endif
  }
}

// ---- scores: <q, k> for the page's tokens

template <int R, bool DEQUANT>
static void fold_queries(const Format& f, const float* q, int64_t dp, const uint8_t* page, Operands& s, Work& work) {
  F largest[4] = {}, bias[4] = {};
  for (int64_t i = 0; i < dp; i += VL) {
    F scale = decode_scales(load_u8(page + f.k_scale + i));
    F minimum = (F)(load_u16(page + f.k_min + 2 * i) << 16);
    if (__builtin_expect(i + VL > f.head_dim, 0)) minimum = lane_numbers() < (int32_t)(f.head_dim - i) ? minimum : F{};
    for (int r = 0; r < R; ++r) {
      F x = load(q + r * dp + i), folded = x * scale;
      bias[r] = fma(x, minimum, bias[r]);
      if constexpr (!DEQUANT) {
        largest[r] = larger_magnitude(largest[r], folded);
        store(work.folded + r * dp + i, folded);
      } else {
#ifdef PACKHORSE_BF16
        I rounded = store_pairs(s.queries + (r * dp + i) * 2, folded);
        bias[r] = negative_fma((F)rounded, load(work.offsets + i), bias[r]);
#else
        store((float*)s.queries + r * dp + i, folded);
#endif
      }
    }
  }
  s.query_bias = sums(bias[0], bias[1], bias[2], bias[3]);
  if constexpr (!DEQUANT) {
    F4 top = maxima(largest[0], largest[1], largest[2], largest[3]);
    s.query_step = top * (1.0f / 127);
    F4 inverse = or_nothing(127.0f / top, s.query_step >= 1.17549435e-38f);
    for (int r = 0; r < R; ++r) {
      F factor = all(inverse[r]);
      const float* from = work.folded + r * dp;
      uint8_t* to = s.queries + r * dp;
      int64_t i = 0;
      for (; i + 4 * VL <= dp; i += 4 * VL) {
        I x[4];
        for (int j = 0; j < 4; ++j) x[j] = round_to_int(load(from + i + j * VL) * factor);
        store_bytes4(to + i, x[0], x[1], x[2], x[3]);
      }
      for (; i < dp; i += VL) store_bytes(to + i, round_to_int(load(from + i) * factor));
    }
  }
}

template <int BITS, int FIELD, int R, bool DEQUANT, class A>
INLINE void score_field(A (&acc)[R][kTokenVectors], const uint8_t* codes, const uint8_t* queries, int64_t row_bytes, int64_t words) {
  const uint8_t* operand = queries + FIELD * words * 4 * kOperandBytes<DEQUANT>;
  for (int64_t c = 0; c < words; ++c) {
    I word[kTokenVectors];
    for (int j = 0; j < kTokenVectors; ++j) word[j] = load_words(codes + (c * kTokens + j * VL) * 4);
    multiply<BITS, FIELD, R, kTokenVectors, DEQUANT>(acc, word, operand + c * 4 * kOperandBytes<DEQUANT>, row_bytes);
  }
  if constexpr (FIELD > 0) {
    if constexpr (kUnshifted && !DEQUANT)
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kTokenVectors; ++j) acc[r][j] >>= BITS;
    score_field<BITS, FIELD - 1, R, DEQUANT>(acc, codes, queries, row_bytes, words);
  }
}

template <int BITS, int R, bool DEQUANT>
static void score_page(const Format& f, int64_t dp, const uint8_t* page, Operands& s) {
  const int64_t words = f.head_dim * BITS / 32;
  for (int t = 0; t < kTokens; t += kTokenVectors * VL) {
    using A = choose<DEQUANT, F, I>;
    A acc[R][kTokenVectors] = {};
    score_field<BITS, 8 / BITS - 1, R, DEQUANT>(acc, page + f.k_codes + t * 4, s.queries, dp * kOperandBytes<DEQUANT>, words);
    for (int r = 0; r < R; ++r) {
      F step = all(s.query_step[r]), bias = all(s.query_bias[r]);
      for (int j = 0; j < kTokenVectors; ++j) {
        if constexpr (DEQUANT)
          store(s.scores[r] + t + j * VL, acc[r][j] + bias);
        else
          store(s.scores[r] + t + j * VL, fma(to_floats(acc[r][j]), step, bias));
      }
    }
  }
}

template <int BITS, int R, bool DEQUANT>
static void score(const Format& f, const float* q, int64_t dp, const uint8_t* const* pages, int count, Work& work) {
  for (int p = 0; p < count; ++p) {
    prefetch_quarter(work, p, 0);
    fold_queries<R, DEQUANT>(f, q, dp, pages[p], work.pages[p], work);
  }
  for (int p = 0; p < count; ++p) {
    prefetch_quarter(work, p, 1);
    score_page<BITS, R, DEQUANT>(f, dp, pages[p], work.pages[p]);
  }
}

// ---- weights: 2**(score - the largest so far) times the scales of V

// Raises the rows' top to these pages' and scales what they have come to, where it rises at all.
template <int R>
static void raise_top(int count, const Work& work, const Plan& plan, Rows& rows, float* out) {
  F largest[4];
  for (int r = 0; r < 4; ++r) {
    largest[r] = load(work.pages[0].scores[r < R ? r : 0]);
    for (int p = 0; p < count; ++p)
      for (int t = p ? 0 : VL; t < kTokens; t += VL) largest[r] = maxf(largest[r], load(work.pages[p].scores[r < R ? r : 0] + t));
  }
  F4 top = max4(maxima(largest[0], largest[1], largest[2], largest[3]), rows.top);
  I4 same = top == rows.top;
  if (same[0] & same[1] & same[2] & same[3]) return;
  F4 keep = exp2_rows(rows.top - top);
  rows.top = top;
  for (int r = 0; r < R; ++r) {
    F factor = all(keep[r]);
    rows.total[r] *= factor;
    for (int g = 0; g < plan.groups; ++g) rows.zeros[g][r] *= factor, rows.sums[g][r] *= factor;
    for (int64_t i = 0; i < plan.lanes; i += VL) store(out + r * plan.lanes + i, load(out + r * plan.lanes + i) * factor);
  }
}

template <int R>
INLINE void soften(Operands& s, Rows& rows) {
  for (int r = 0; r < R; ++r) {
    F subtract = all(rows.top[r]), sum = rows.total[r];
    for (int t = 0; t < kTokens; t += VL) {
      F w = exp2_lanes(load(s.scores[r] + t) - subtract);
      sum += w;
      store(s.scores[r] + t, w);
    }
    rows.total[r] = sum;
  }
}

template <int BITS, int R, bool DEQUANT>
INLINE void fold_weights(const Format& f, const uint8_t* page, int groups, Operands& s, Rows& rows) {
  constexpr int N = kTokens / VL;
  for (int g = 0; g < groups; ++g) {
    F largest[4] = {};
    F scale[N], zero[N];
    for (int j = 0; j < N; ++j) {
      scale[j] = decode_scales(load_u8(page + f.v_scale + g * kTokens + j * VL));
      zero[j] = to_floats(load_s8(page + f.v_zero + g * kTokens + j * VL));
    }
    for (int r = 0; r < R; ++r) {
      F zeros = rows.zeros[g][r], sum = rows.sums[g][r];
      for (int j = 0; j < N; ++j) {
        F w = load(s.scores[r] + j * VL) * scale[j];
        zeros = fma(w, zero[j], zeros);
        if constexpr (!DEQUANT) {
          largest[r] = maxf(largest[r], w);
        } else {
          uint8_t* p = s.weights + ((r * kMaxGroups + g) * kTokens + j * VL) * kDequantBytes;
#ifdef PACKHORSE_BF16
          sum += (F)store_pairs(p, w);
#else
          store(p, w);
#endif
        }
      }
      rows.zeros[g][r] = zeros;
      if constexpr (DEQUANT) rows.sums[g][r] = sum;
    }
    if constexpr (!DEQUANT) {
      F4 top = maxima(largest[0], largest[1], largest[2], largest[3]), step = top * (1.0f / 127);
      F4 inverse = or_nothing(127.0f / top, step >= 1.17549435e-38f);
      for (int i = 0; i < 8 / BITS; ++i) s.weight_step[g][i] = step * (kUnshifted ? 1.0f / (1 << (BITS * i)) : 1.0f);
      for (int r = 0; r < R; ++r) {
        F factor = all(inverse[r]);
        uint8_t* to = s.weights + (r * kMaxGroups + g) * kTokens;
        for (int j = 0; j < N; j += 4) {
          I x[4];
          for (int n = 0; n < 4; ++n) x[n] = round_to_int(load(s.scores[r] + (j + n) * VL) * scale[j + n] * factor);
          store_bytes4(to + j * VL, x[0], x[1], x[2], x[3]);
        }
      }
    }
  }
}

// ---- values: the weighted sum of V's codes, added to the rows' accumulators

template <int BITS, int FIELD, int SPAN, int R, int N, bool DEQUANT, class A>
INLINE void value_fields(A (&acc)[8 / BITS][R][N], const I (&words)[N], const uint8_t* const* weights, int64_t at) {
  constexpr int64_t row_bytes = kMaxGroups * kTokens * kOperandBytes<DEQUANT>;
  multiply<BITS, FIELD, R, N, DEQUANT>(acc[FIELD], words, weights[FIELD / SPAN] + at, row_bytes);
  if constexpr (FIELD + 1 < 8 / BITS) value_fields<BITS, FIELD + 1, SPAN, R, N, DEQUANT>(acc, words, weights, at);
}

template <int BITS, int SPAN, int R, int N, bool DEQUANT>
static void weigh_blocks(const Format& f, const Block* blocks, const uint8_t* codes, const Operands& s, int row, float* out, int64_t lanes) {
  constexpr int PER = 8 / BITS;
  const int64_t plane = f.head_dim / PER;
  const uint8_t* weights[PER / SPAN];
  for (int i = 0; i < PER / SPAN; ++i)
    weights[i] = s.weights + (row * kMaxGroups + blocks->group[i * SPAN]) * kTokens * kOperandBytes<DEQUANT>;
  using A = choose<DEQUANT, F, I>;
  A acc[PER][R][N] = {};
  const uint8_t* first[N];
  for (int n = 0; n < N; ++n) first[n] = codes + blocks[n].start * 4;
  for (int q = 0; q < kTokens / 4; ++q) {
    I words[N];
    for (int n = 0; n < N; ++n) words[n] = load_words(first[n] + q * plane * 4);
    value_fields<BITS, 0, SPAN, R, N, DEQUANT>(acc, words, weights, q * 4 * kOperandBytes<DEQUANT>);
  }
  for (int i = 0; i < PER; ++i)
    for (int r = 0; r < R; ++r) {
      F step = all(DEQUANT ? 1.0f : s.weight_step[blocks->group[i]][i][row + r]);
      for (int n = 0; n < N; ++n) {
        float* p = out + r * lanes + (n * PER + i) * VL;
        if constexpr (DEQUANT)
          store(p, load(p) + acc[i][r][n]);
        else
          store(p, fma(to_floats(acc[i][r][n]), step, load(p)));
      }
    }
}

template <int BITS, int SPAN, int R, bool DEQUANT>
static void weigh_rows(const Format& f, const Plan& plan, const uint8_t* page, const Operands& s, int row, float* out) {
  constexpr int PER = 8 / BITS, MOST = kAccumulators / PER, ROWS = R < MOST ? R : MOST;
  constexpr int WIDE = MOST / ROWS >= 4 ? 4 : MOST / ROWS >= 2 ? 2 : 1;
  for (int segment = 0, b = 0; segment < plan.num_segments; ++segment) {
    for (; b + WIDE <= plan.segment_ends[segment]; b += WIDE)
      weigh_blocks<BITS, SPAN, ROWS, WIDE, DEQUANT>(f, plan.blocks + b, page + f.v_codes, s, row, out + b * PER * VL, plan.lanes);
    for (; b < plan.segment_ends[segment]; ++b)
      weigh_blocks<BITS, SPAN, ROWS, 1, DEQUANT>(f, plan.blocks + b, page + f.v_codes, s, row, out + b * PER * VL, plan.lanes);
  }
  if constexpr (R > ROWS) weigh_rows<BITS, SPAN, R - ROWS, DEQUANT>(f, plan, page, s, row + ROWS, out + ROWS * plan.lanes);
}

template <int BITS, int R, bool DEQUANT>
static void weigh(const Format& f, const Plan& plan, const uint8_t* const* pages, int count, Work& work, Rows& rows, float* out) {
  constexpr int PER = 8 / BITS;
  raise_top<R>(count, work, plan, rows, out);
  for (int p = 0; p < count; ++p) {
    prefetch_quarter(work, p, 2);
    soften<R>(work.pages[p], rows);
    fold_weights<BITS, R, DEQUANT>(f, pages[p], plan.groups, work.pages[p], rows);
  }
  auto weigh_page = weigh_rows<BITS, 1, R, DEQUANT>;
  if (plan.groups == 1)
    weigh_page = weigh_rows<BITS, PER, R, DEQUANT>;
  else if (PER == 4 && f.group_channels == 2 * (f.head_dim / PER))
    weigh_page = weigh_rows<BITS, (PER + 1) / 2, R, DEQUANT>;
  for (int p = 0; p < count; ++p) {
    prefetch_quarter(work, p, 3);
    weigh_page(f, plan, pages[p], work.pages[p], 0, out);
  }
}

// ---- pages

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
    for (int i = 0; i < kBatch; ++i) {
      const int64_t next = p + kBatch + i;
      work.next[i] = next < a.num_pages ? a.base + a.slots[next] * a.slot_stride : nullptr;
    }
    work.page_bytes = f.page_bytes;
    for (int64_t i = 0; i < slices; ++i) {
      const int64_t n = a.rows - 4 * i < 4 ? a.rows - 4 * i : 4;
      score_slice[n - 1](f, a.q + 4 * i * dp, dp, pages, count, work);
      weigh_slice[n - 1](f, plan, pages, count, work, rows[i], out + 4 * i * plan.lanes);
      if (i == 0) __builtin_memset(work.next, 0, sizeof work.next);
    }
  }
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t n = a.rows - 4 * i < 4 ? a.rows - 4 * i : 4;
    write_rows(f, plan, a.dequant, n, rows[i], out + 4 * i * plan.lanes, a.top + 4 * i, a.total + 4 * i, a.out + 4 * i * f.head_dim);
  }
}
