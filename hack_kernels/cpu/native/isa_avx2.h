// AVX2: 8 lanes; vpmaddubsw and vpmaddwd, or vpdpbusd with PACKHORSE_VNNI.
#define VL 8
#include "vectors.h"

constexpr int kTokenVectors = 2;
constexpr int kAccumulators = 8;
#ifdef PACKHORSE_VNNI
constexpr bool kUnshifted = true;
#else
constexpr bool kUnshifted = false;  // vpmaddubsw saturates at 16 bits
#endif
constexpr bool kBf16Dot = false;

INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F maxf(F a, F b) { return _mm256_max_ps(a, b); }  // b where either is NaN
INLINE F minf(F a, F b) { return _mm256_min_ps(a, b); }
INLINE F absf(F a) { return (F)((I)a & 0x7FFFFFFF); }
INLINE I round_to_int(F a) { return (I)_mm256_cvtps_epi32(a); }
INLINE F to_floats(I a) { return _mm256_cvtepi32_ps((__m256i)a); }
INLINE I load_u8(const void* p) { return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
INLINE I load_s8(const void* p) { return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
INLINE I load_u16(const void* p) { return (I)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE F load_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE __m128i low_halves(I x) {
  __m256i picked = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi64x(0x0D0C090805040100));
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(picked, 0x08));
}
INLINE void store_halves(void* p, I x) { _mm_storeu_si128((__m128i*)p, low_halves(x)); }
INLINE void store_bytes(void* p, I x) {
  _mm_storel_epi64((__m128i*)p, _mm_shuffle_epi8(low_halves(x), _mm_set1_epi64x(0x0E0C0A0806040200)));
}
INLINE void store_f16(void* p, F x) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
INLINE F repeat4(F4 x) { return (F)_mm256_broadcastsi128_si256((__m128i)x); }
INLINE F exp2_lanes(F x) {
  F t = maxf(all(-126.0f), x);
  F r = _mm256_round_ps(t, 8), f = t - r, p = all(0.00132647261f);
  p = fma(p, f, all(0.00967151299f));
  p = fma(p, f, all(0.0555073358f));
  p = fma(p, f, all(0.240222424f));
  p = fma(p, f, all(0.693147004f));
  p = fma(p, f, all(1.0f));
  return p * (F)((round_to_int(r) + 127) << 23);
}
INLINE void store_bytes4(void* p, I a, I b, I c, I d) {
  __m256i ab = _mm256_packs_epi32((__m256i)a, (__m256i)b), cd = _mm256_packs_epi32((__m256i)c, (__m256i)d);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order));
}
INLINE F larger_magnitude(F a, F b) { return maxf(a, absf(b)); }

INLINE F4 sums(F a, F b, F c, F d) {
  __m256 z = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return (F4)_mm_add_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1));
}
INLINE F4 maxima(F w, F x, F y, F z) {
  __m256 wx = _mm256_max_ps(_mm256_unpacklo_ps(w, x), _mm256_unpackhi_ps(w, x));
  __m256 yz = _mm256_max_ps(_mm256_unpacklo_ps(y, z), _mm256_unpackhi_ps(y, z));
  __m256 all4 = _mm256_max_ps(_mm256_shuffle_ps(wx, yz, 0x44), _mm256_shuffle_ps(wx, yz, 0xEE));
  return (F4)_mm_max_ps(_mm256_castps256_ps128(all4), _mm256_extractf128_ps(all4, 1));
}

#ifdef PACKHORSE_VNNI
template <int BITS>
INLINE I dot(I acc, I codes, I b) {
  return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)codes, (__m256i)b);
}
#else
INLINE I four_products(I codes, I b) {  // codes below 16, so that two products fit 16 bits
  return (I)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)codes, (__m256i)b), _mm256_set1_epi16(1));
}
template <int BITS>
INLINE I dot(I acc, I codes, I b) {
  if constexpr (BITS < 8) return acc + four_products(codes, b);
  I low = codes & 0x0F0F0F0F, high = shift_right(codes, 4) & 0x0F0F0F0F;
  return acc + four_products(low, b) + (four_products(high, b) << 4);
}
#endif
