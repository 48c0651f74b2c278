// Any machine: 4 lanes in the compiler's vectors (SSE2, NEON or plain registers).
#define VL 4
#include "vectors.h"

constexpr int kTokenVectors = 1;
constexpr int kAccumulators = 8;
constexpr bool kUnshifted = false;
constexpr bool kBf16Dot = false;

INLINE F fma(F a, F b, F c) { return a * b + c; }
INLINE F maxf(F a, F b) { return a > b ? a : b; }  // b where either is NaN
INLINE F minf(F a, F b) { return a < b ? a : b; }
INLINE F absf(F a) { return (F)((I)a & 0x7FFFFFFF); }
INLINE I round_to_int(F a) {  // of numbers below 2**22; others may give any integer
  return __builtin_convertvector(((a + 12582912.0f) - 12582912.0f), I);
}
INLINE F to_floats(I a) { return __builtin_convertvector(a, F); }
typedef uint8_t B4 __attribute__((vector_size(4)));
typedef int8_t S4 __attribute__((vector_size(4)));
typedef uint16_t H4 __attribute__((vector_size(8)));
template <class V>
INLINE V read(const void* p) {
  V x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
template <class V>
INLINE void write(void* p, V x) {
  __builtin_memcpy(p, &x, sizeof x);
}
INLINE I load_u8(const void* p) { return __builtin_convertvector(read<B4>(p), I); }
INLINE I load_s8(const void* p) { return __builtin_convertvector(read<S4>(p), I); }
INLINE I load_u16(const void* p) { return __builtin_convertvector(read<H4>(p), I); }
INLINE void store_bytes(void* p, I x) { write(p, __builtin_convertvector(x, B4)); }
INLINE void store_halves(void* p, I x) { write(p, __builtin_convertvector(x, H4)); }
INLINE F load_f16(const void* p) {  // by arithmetic: the exponent moved by a product, infinity and NaN by hand
  I half = load_u16(p), magnitude = half & 0x7FFF;
  F value = (F)(magnitude << 13) * 5.192296858534828e33f;  // 2**112
  value = magnitude >= 0x7C00 ? (F)((magnitude << 13) | 0x7F800000) : value;
  return (F)((I)value | ((half & 0x8000) << 16));
}
INLINE void store_f16(void* p, F x) {
  I bits = (I)x, sign = shift_right(bits, 16) & 0x8000;
  I magnitude = bits & 0x7FFFFFFF;
  I normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  I tiny = (I)((F)magnitude + 0.5f) - (I)all(0.5f);  // adding 0.5 leaves multiples of 2**-24 in the low bits, rounded
  I half = magnitude < (113 << 23) ? tiny : normal;
  half = half > 0x7C00 ? I{} + 0x7C00 : half;
  half = magnitude > 0x7F800000 ? I{} + 0x7E00 : half;
  store_halves(p, half | sign);
}
INLINE F repeat4(F4 x) { return x; }
INLINE F exp2_lanes(F x) { return exp2_rows(x); }
INLINE void store_bytes4(void* p, I a, I b, I c, I d) {
  store_bytes(p, a), store_bytes((uint8_t*)p + 4, b), store_bytes((uint8_t*)p + 8, c), store_bytes((uint8_t*)p + 12, d);
}
INLINE F larger_magnitude(F a, F b) { return maxf(a, absf(b)); }
INLINE F4 sums(F a, F b, F c, F d) {
  F4 r;
  const F v[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) r[i] = (v[i][0] + v[i][2]) + (v[i][1] + v[i][3]);
  return r;
}
INLINE F4 maxima(F a, F b, F c, F d) {
  F4 r;
  const F v[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    float m = v[i][0];
    for (int j = 1; j < 4; ++j) m = m > v[i][j] ? m : v[i][j];
    r[i] = m;
  }
  return r;
}
typedef int16_t Shorts __attribute__((vector_size(4 * VL), may_alias));
INLINE I pair_sums(I a, I b) {  // of the products of 16-bit numbers
#ifdef __SSE2__
  return (I)__builtin_ia32_pmaddwd128((Shorts)a, (Shorts)b);
#else
  I products = (I)((Shorts)a * (Shorts)b);
  return ((products << 16) >> 16) + (products >> 16);
#endif
}
template <int BITS>
INLINE I dot(I acc, I codes, I b) {
  I even = (I)((((Shorts)b) << 8) >> 8), odd = (I)((Shorts)b >> 8);
  return acc + pair_sums(codes & 0x00FF00FF, even) + pair_sums(shift_right(codes, 8) & 0x00FF00FF, odd);
}
