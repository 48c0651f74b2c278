// Fields of the 32-bit words that codes lie in, as operands of dot products: in place or shifted for int8, or expanded to bf16 or
// float32 for `dequant`.
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

