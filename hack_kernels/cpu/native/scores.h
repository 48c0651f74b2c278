// Scores of a slice of rows for a batch of pages: <q, k>, from queries folded with K's scales.

template <int R, bool DEQUANT>
static void fold_queries(const Format& f, const float* q, int64_t dp, const uint8_t* page, int64_t ahead, Operands& s, Work& work) {
  F largest[4] = {}, bias[4] = {};
  for (int64_t i = 0; i < dp; i += VL) {
    prefetch(page + f.k_scale + i, ahead);
    prefetch(page + f.k_min + 2 * i, ahead);
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

// Each pass over the words, one per field, asks for its share of their lines.
template <int BITS, int FIELD>
INLINE void prefetch_share(const uint8_t* words, int64_t c, int64_t ahead) {
  constexpr int PASSES = 8 / BITS, LINES = kTokenVectors * VL * 4 / 64;
  if constexpr (LINES >= PASSES) {
    for (int i = FIELD * LINES / PASSES; i < (FIELD + 1) * LINES / PASSES; ++i) prefetch(words + 64 * i, ahead);
  } else {
    if (c % PASSES == FIELD) prefetch(words, ahead);
  }
}

template <int BITS, int FIELD, int R, bool DEQUANT, class A>
INLINE void score_field(A (&acc)[R][kTokenVectors], const uint8_t* codes, int64_t ahead, const uint8_t* queries, int64_t row_bytes,
                        int64_t words) {
  const uint8_t* operand = queries + FIELD * words * 4 * kOperandBytes<DEQUANT>;
  for (int64_t c = 0; c < words; ++c) {
    I word[kTokenVectors];
    prefetch_share<BITS, FIELD>(codes + c * kTokens * 4, c, ahead);
    for (int j = 0; j < kTokenVectors; ++j) word[j] = load_words(codes + (c * kTokens + j * VL) * 4);
    multiply<BITS, FIELD, R, kTokenVectors, DEQUANT>(acc, word, operand + c * 4 * kOperandBytes<DEQUANT>, row_bytes);
  }
  if constexpr (FIELD > 0) {
    if constexpr (kUnshifted && !DEQUANT)
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kTokenVectors; ++j) acc[r][j] >>= BITS;
    score_field<BITS, FIELD - 1, R, DEQUANT>(acc, codes, ahead, queries, row_bytes, words);
  }
}

template <int BITS, int R, bool DEQUANT>
static void score_page(const Format& f, int64_t dp, const uint8_t* page, int64_t ahead, Operands& s) {
  const int64_t words = f.head_dim * BITS / 32;
  for (int t = 0; t < kTokens; t += kTokenVectors * VL) {
    using A = choose<DEQUANT, F, I>;
    A acc[R][kTokenVectors] = {};
    score_field<BITS, 8 / BITS - 1, R, DEQUANT>(acc, page + f.k_codes + t * 4, ahead, s.queries, dp * kOperandBytes<DEQUANT>, words);
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
  for (int p = 0; p < count; ++p) fold_queries<R, DEQUANT>(f, q, dp, pages[p], work.ahead[p], work.pages[p], work);
  for (int p = 0; p < count; ++p) score_page<BITS, R, DEQUANT>(f, dp, pages[p], work.ahead[p], work.pages[p]);
}
