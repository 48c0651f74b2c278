// AVX-512 with VNNI: 16 lanes, vpdpbusd. With PACKHORSE_BF16 also vdpbf16ps, which only `dequant` uses.
#define VL 16
#include "vectors.h"

constexpr int kTokenVectors = 4;  // accumulators: 4 rows x 4 vectors of 16 tokens
constexpr int kAccumulators = 16;
constexpr bool kUnshifted = true;  // dpbusd takes a field where it stands: no product saturates

INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F maxf(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
INLINE F minf(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F absf(F a) { return _mm512_abs_ps(a); }
INLINE I round_to_int(F a) { return (I)_mm512_cvtps_epi32(a); }
INLINE F to_floats(I a) { return _mm512_cvtepi32_ps((__m512i)a); }
INLINE I load_u8(const void* p) { return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE I load_s8(const void* p) { return (I)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE I load_u16(const void* p) { return (I)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
INLINE F load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE void store_bytes(void* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)x)); }
INLINE void store_halves(void* p, I x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)x)); }
INLINE void store_f16(void* p, F x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
INLINE F repeat4(F4 x) { return _mm512_broadcast_f32x4((__m128)x); }
INLINE F exp2_lanes(F x) {  // vectors.h's, with the rest in 0..1, and no clamp: scalef underflows to 0
  F f = _mm512_reduce_ps(x, 1), p = all(0.00186713017f);
  p = fma(p, f, all(0.00901702978f));
  p = fma(p, f, all(0.0557999127f));
  p = fma(p, f, all(0.240164444f));
  p = fma(p, f, all(0.693151295f));
  p = fma(p, f, all(1.0f));
  return _mm512_scalef_ps(p, x);
}
INLINE void store_bytes4(void* p, I a, I b, I c, I d) {
  __m512i ab = _mm512_packs_epi32((__m512i)a, (__m512i)b), cd = _mm512_packs_epi32((__m512i)c, (__m512i)d);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(ab, cd)));
}
INLINE F larger_magnitude(F a, F b) { return _mm512_range_ps(a, b, 0x0B); }
INLINE F negative_fma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }

INLINE __m256 halves_added(F x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
INLINE __m256 halves_maxed(F x) { return _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
INLINE F4 sums(F a, F b, F c, F d) {
  __m256 x = _mm256_hadd_ps(halves_added(a), halves_added(b)), y = _mm256_hadd_ps(halves_added(c), halves_added(d));
  __m256 z = _mm256_hadd_ps(x, y);
  return (F4)_mm_add_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1));
}
INLINE F4 maxima(F a, F b, F c, F d) {
  __m256 w = halves_maxed(a), x = halves_maxed(b), y = halves_maxed(c), z = halves_maxed(d);
  __m256 wx = _mm256_max_ps(_mm256_unpacklo_ps(w, x), _mm256_unpackhi_ps(w, x));
  __m256 yz = _mm256_max_ps(_mm256_unpacklo_ps(y, z), _mm256_unpackhi_ps(y, z));
  __m256 all4 = _mm256_max_ps(_mm256_shuffle_ps(wx, yz, 0x44), _mm256_shuffle_ps(wx, yz, 0xEE));
  return (F4)_mm_max_ps(_mm256_castps256_ps128(all4), _mm256_extractf128_ps(all4, 1));
}

template <int BITS>
INLINE I dot(I acc, I codes, I b) {
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, (__m512i)b);
}

#ifdef PACKHORSE_BF16
constexpr bool kBf16Dot = true;
INLINE F dot_bf16(F acc, I x, I b) { return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)b); }
// rounded, with every four numbers in the order 0, 2, 1, 3: the pairs that a word of codes yields; returned as float32
INLINE I store_pairs(void* p, F x) {
  __m256i pairs = (__m256i)_mm512_cvtneps_pbh(_mm512_permute_ps(x, 0xD8));
  _mm256_storeu_si256((__m256i*)p, pairs);
  return (I)_mm512_cvtepu16_epi32(pairs) << 16;
}
#else
constexpr bool kBf16Dot = false;
#endif
