// Vectors of VL lanes of 32 bits, in GCC's vector extensions: + - * / & | << >> and ?: are the compiler's. Included by each
// instruction set's file inside its own unnamed namespace, after it has set VL, so that no two files share a function.
typedef float F __attribute__((vector_size(4 * VL), may_alias));
typedef int32_t I __attribute__((vector_size(4 * VL), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * VL), may_alias));
typedef float UnalignedF __attribute__((vector_size(4 * VL), may_alias, aligned(1)));
typedef int32_t UnalignedI __attribute__((vector_size(4 * VL), may_alias, aligned(1)));
typedef float F4 __attribute__((vector_size(16), may_alias));  // one number per row of a slice
typedef int32_t I4 __attribute__((vector_size(16), may_alias));

template <bool YES, class A, class B>
struct Conditional {
  typedef A type;
};
template <class A, class B>
struct Conditional<false, A, B> {
  typedef B type;
};
template <bool YES, class A, class B>
using choose = typename Conditional<YES, A, B>::type;

#define INLINE static inline __attribute__((always_inline))

INLINE F load(const void* p) { return *(const UnalignedF*)p; }
INLINE I load_words(const void* p) { return *(const UnalignedI*)p; }
INLINE void store(void* p, F x) { *(UnalignedF*)p = x; }
INLINE void store_words(void* p, I x) { *(UnalignedI*)p = x; }
INLINE F all(float x) { return x - F{}; }  // adding to 0 would be an addition: -0 + 0 is not -0
INLINE I all(int32_t x) { return I{} + x; }
INLINE I shift_right(I x, int n) { return (I)((U)x >> n); }
INLINE int32_t word_at(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return x;
}
INLINE I lane_numbers() {
  I x;
  for (int i = 0; i < VL; ++i) x[i] = i;
  return x;
}

constexpr int32_t kScaleBias = (127 - 20) << 23;
INLINE F decode_scales(I code) { return (F)((code << 20) + kScaleBias); }
// to the nearest, ties to even, saturating; infinity and NaN give 255
INLINE I encode_scales(F x) {
  I bits = ((I)x & 0x7FFFFFFF) - kScaleBias;
  I code = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20;
  code = code < 0 ? I{} : code;
  return code > 255 ? I{} + 255 : code;
}
INLINE I round_bf16(F x) {  // in the low half of each lane; one NaN for all
  U bits = (U)x;
  U rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return x != x ? I{} + 0x7FC0 : (I)rounded;
}

// 2**x for x <= 0, within 3e-7 relative, NaN stays NaN: 2**round(x) times a polynomial in the rest; clamped at 2**-126
template <class V>
INLINE V exp2_rest(V f) {
  V p = V{} + 0.00132647261f;
  p = p * f + 0.00967151299f;
  p = p * f + 0.0555073358f;
  p = p * f + 0.240222424f;
  p = p * f + 0.693147004f;
  return p * f + 1.0f;
}
INLINE F4 exp2_rows(F4 x) {
  F4 t = x < -126.0f ? F4{} - 126.0f : x;
  F4 r = (t + 12582912.0f) - 12582912.0f;
  F4 p = exp2_rest(t - r);
  return p * (F4)((__builtin_convertvector(r, I4) + 127) << 23);
}
INLINE F4 max4(F4 a, F4 b) { return a > b ? a : b; }  // b where either is NaN
INLINE F4 or_nothing(F4 x, I4 keep) { return (F4)((I4)x & keep); }
