// Weights of a slice of rows for a batch of pages, 2**(score - the largest so far) folded with V's scales, and the sums of V's codes.

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
INLINE void fold_weights(const Format& f, const uint8_t* page, int64_t ahead, int groups, Operands& s, Rows& rows) {
  constexpr int N = kTokens / VL;
  for (int g = 0; g < groups; ++g) {
    F largest[4] = {};
    F scale[N], zero[N];
    prefetch(page + f.v_scale + g * kTokens, ahead);
    prefetch(page + f.v_zero + g * kTokens, ahead);
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

template <int BITS, int FIELD, int SPAN, int R, int N, bool DEQUANT, class A>
INLINE void value_fields(A (&acc)[8 / BITS][R][N], const I (&words)[N], const uint8_t* const* weights, int64_t at) {
  constexpr int64_t row_bytes = kMaxGroups * kTokens * kOperandBytes<DEQUANT>;
  multiply<BITS, FIELD, R, N, DEQUANT>(acc[FIELD], words, weights[FIELD / SPAN] + at, row_bytes);
  if constexpr (FIELD + 1 < 8 / BITS) value_fields<BITS, FIELD + 1, SPAN, R, N, DEQUANT>(acc, words, weights, at);
}

template <int BITS, int SPAN, int R, int N, bool DEQUANT>
static void weigh_blocks(const Format& f, const Block* blocks, const uint8_t* codes, int64_t ahead, const Operands& s,
                         int row, float* out, int64_t lanes) {
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
    for (int n = 0; n < N; ++n) {
      prefetch(first[n] + q * plane * 4, ahead);
      words[n] = load_words(first[n] + q * plane * 4);
    }
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
static void weigh_rows(const Format& f, const Plan& plan, const uint8_t* page, int64_t ahead, const Operands& s, int row, float* out) {
  constexpr int PER = 8 / BITS, MOST = kAccumulators / PER, ROWS = R < MOST ? R : MOST;
  constexpr int WIDE = MOST / ROWS >= 4 ? 4 : MOST / ROWS >= 2 ? 2 : 1;
  for (int segment = 0, b = 0; segment < plan.num_segments; ++segment) {
    for (; b + WIDE <= plan.segment_ends[segment]; b += WIDE)
      weigh_blocks<BITS, SPAN, ROWS, WIDE, DEQUANT>(f, plan.blocks + b, page + f.v_codes, ahead, s, row, out + b * PER * VL, plan.lanes);
    for (; b < plan.segment_ends[segment]; ++b)
      weigh_blocks<BITS, SPAN, ROWS, 1, DEQUANT>(f, plan.blocks + b, page + f.v_codes, ahead, s, row, out + b * PER * VL, plan.lanes);
  }
  if constexpr (R > ROWS) weigh_rows<BITS, SPAN, R - ROWS, DEQUANT>(f, plan, page, 0, s, row + ROWS, out + ROWS * plan.lanes);
}

template <int BITS, int R, bool DEQUANT>
static void weigh(const Format& f, const Plan& plan, const uint8_t* const* pages, int count, Work& work, Rows& rows, float* out) {
  constexpr int PER = 8 / BITS;
  raise_top<R>(count, work, plan, rows, out);
  for (int p = 0; p < count; ++p) {
    soften<R>(work.pages[p], rows);
    fold_weights<BITS, R, DEQUANT>(f, pages[p], work.ahead[p], plan.groups, work.pages[p], rows);
  }
  auto weigh_page = weigh_rows<BITS, 1, R, DEQUANT>;
  if (plan.groups == 1)
    weigh_page = weigh_rows<BITS, PER, R, DEQUANT>;
  else if (PER == 4 && f.group_channels == 2 * (f.head_dim / PER))
    weigh_page = weigh_rows<BITS, (PER + 1) / 2, R, DEQUANT>;
  for (int p = 0; p < count; ++p) weigh_page(f, plan, pages[p], work.ahead[p], work.pages[p], 0, out);
}

