// Quantizes one block of K and V into a page: reference/close_pages.py to the byte. No multiplication is fused with an addition here.

struct Group {  // of VL groups: reference/_scale_and_middle and what follows it
  I scale;      // the code
  F step, inverse, half_span;
};
INLINE F numbers_or_zero(F x) { return x == x ? x : F{}; }
INLINE Group quantizer(F high, F low, float clip, float floor, int levels) {
  F spread = (high - low) * clip, least = absf((high + low) * 0.5f) * floor;
  Group g;
  g.scale = encode_scales(spread != spread || spread > least ? spread : least);
  g.step = decode_scales(g.scale);
  g.inverse = 1.0f / g.step;
  g.half_span = g.step * (levels * 0.5f);
  return g;
}
INLINE I quantize(F x, F minimum, F inverse, float levels) {
  F code = (x - minimum) * inverse;
  return round_to_int(minf(maxf(code, F{}), all(levels)));  // maxf gives 0 for NaN
}

// Values are in float32 rows of `width` numbers; what lies beyond head_dim is never stored.
template <int BITS>
static void close_k(const Format& f, const float* x, int64_t width, uint8_t* page) {
  constexpr int PER = 8 / BITS, LEVELS = (1 << BITS) - 1;
  const int64_t plane = f.head_dim / PER;
  alignas(64) float minimum[kMaxHeadDim + 64], inverse[kMaxHeadDim + 64];
  for (int64_t c = 0; c < f.head_dim; c += VL) {
    F high = load(x + c), low = high;
    I odd = high != high;
    for (int t = 1; t < kTokens; ++t) {
      F value = load(x + t * width + c);
      high = maxf(high, value), low = minf(low, value), odd |= value != value;
    }
    high = odd ? all(__builtin_nanf("")) : high;
    Group g = quantizer(high, low, f.k_clip, f.k_floor, LEVELS);
    I rounded = round_bf16((high + low) * 0.5f - g.half_span);
    store(minimum + c, (F)(rounded << 16)), store(inverse + c, g.inverse);
    alignas(64) uint8_t scales[VL], minima[2 * VL];
    store_bytes(scales, g.scale), store_halves(minima, rounded);
    const int64_t count = f.head_dim - c < VL ? f.head_dim - c : VL;
    __builtin_memcpy(page + f.k_scale + c, scales, count);
    __builtin_memcpy(page + f.k_min + 2 * c, minima, 2 * count);
  }
  for (int64_t j = 0; j < plane; j += VL) {
    F lows[PER], steps[PER];
    for (int i = 0; i < PER; ++i) lows[i] = load(minimum + i * plane + j), steps[i] = load(inverse + i * plane + j);
    const int64_t words = plane - j < VL ? (plane - j) / 4 : VL / 4;
    uint8_t* to = page + f.k_codes + j / 4 * kTokens * 4;
    for (int t = 0; t < kTokens; ++t) {
      const float* row = x + t * width + j;
      I packed = quantize(load(row), lows[0], steps[0], LEVELS);
      for (int i = 1; i < PER; ++i) packed |= quantize(load(row + i * plane), lows[i], steps[i], LEVELS) << (i * BITS);
      alignas(64) uint8_t bytes[VL];
      store_bytes(bytes, packed);
      for (int64_t c = 0; c < words; ++c) __builtin_memcpy(to + (c * kTokens + t) * 4, bytes + 4 * c, 4);
    }
  }
}

template <int BITS>
static void close_v(const Format& f, const Plan& plan, const float* x, int64_t width, uint8_t* page) {
  constexpr int PER = 8 / BITS, LEVELS = (1 << BITS) - 1;
  constexpr float unit = BITS == 2 ? 0.125f : BITS == 4 ? 0.5f : 8.0f;
  const int64_t plane = f.head_dim / PER;
  alignas(64) float minimum[kMaxGroups][kTokens], inverse[kMaxGroups][kTokens];
  alignas(64) uint8_t scales[kMaxGroups][kTokens], zeros[kMaxGroups][kTokens];
  for (int g = 0; g < plan.groups; ++g) {
    alignas(64) float highs[kTokens], lows[kTokens];
    for (int t = 0; t < kTokens; t += 4) {
      F high[4], low[4], nan[4];
      for (int n = 0; n < 4; ++n) {
        const float* row = x + (t + n) * width + g * f.group_channels;
        high[n] = low[n] = load(row);  // a group has at least VL channels
        I odd = high[n] != high[n];
        for (int64_t c = VL; c < f.group_channels; c += VL) {
          F value = load(row + (c + VL <= f.group_channels ? c : f.group_channels - VL));
          high[n] = maxf(high[n], value), low[n] = minf(low[n], value), odd |= value != value;
        }
        low[n] = -low[n];
        nan[n] = odd ? all(__builtin_nanf("")) : F{};
      }
      F4 top = maxima(high[0], high[1], high[2], high[3]) + sums(nan[0], nan[1], nan[2], nan[3]);
      F4 bottom = -maxima(low[0], low[1], low[2], low[3]);
      for (int n = 0; n < 4; ++n) highs[t + n] = top[n], lows[t + n] = bottom[n];
    }
    for (int t = 0; t < kTokens; t += VL) {
      F high = load(highs + t), low = load(lows + t);
      Group group = quantizer(high, low, f.v_clip, f.v_floor, LEVELS);
      F zero = ((high + low) * 0.5f - group.half_span) * (group.inverse * (1.0f / unit));
      I code = round_to_int(minf(maxf(numbers_or_zero(zero), all(-127.0f)), all(127.0f)));
      store(minimum[g] + t, to_floats(code) * unit * group.step), store(inverse[g] + t, group.inverse);
      store_bytes(scales[g] + t, group.scale), store_bytes(zeros[g] + t, code);
    }
  }
  for (int q = 0; q < kTokens / 4; ++q)
    for (int b = 0; b < plan.num_blocks; ++b) {  // ascending: what a block stores beyond its words, the next one or v_scale overwrites
      const Block& block = plan.blocks[b];
      I words = {};
      for (int n = 0; n < 4; ++n) {
        const int t = 4 * q + n;
        const float* row = x + t * width + block.start;
        for (int i = 0; i < PER; ++i) {
          const int g = block.group[i];
          words |= quantize(load(row + i * plane), all(minimum[g][t]), all(inverse[g][t]), LEVELS) << (8 * n + i * BITS);
        }
      }
      store_words(page + f.v_codes + (q * plane + block.start) * 4, words);
    }
  __builtin_memcpy(page + f.v_scale, scales, plan.groups * kTokens);
  __builtin_memcpy(page + f.v_zero, zeros, plan.groups * kTokens);
}

static void close_page(const Format& f, DType type, const uint8_t* k, int64_t k_stride, const uint8_t* v, int64_t v_stride,
                       uint8_t* page, void* scratch) {
  const int64_t size = type == kFloat32 ? 4 : 2;
  if (!f.k_bits) {
    const int64_t out_size = f.dtype == kFloat32 ? 4 : 2;
    float* row = (float*)scratch;
    for (int side = 0; side < 2; ++side)
      for (int64_t t = 0; t < kTokens; ++t) {
        const uint8_t* from = side ? v + t * v_stride * size : k + t * k_stride * size;
        uint8_t* to = page + (side ? f.v_codes : f.k_codes) + t * f.head_dim * out_size;
        if (type == f.dtype) {
          __builtin_memcpy(to, from, f.head_dim * size);
        } else {
          to_float(type, from, f.head_dim, 1.0f, row);
          from_float((DType)f.dtype, row, f.head_dim, to);
        }
      }
    return;
  }
  Plan& plan = *(Plan*)scratch;
  make_plan(f, plan);
  float* x = (float*)((uint8_t*)scratch + (sizeof(Plan) + 63) / 64 * 64);
  const int64_t width = padded(f.head_dim) + 16;
  __builtin_memset(x, 0, kTokens * width * 4 + 256);
  for (int64_t t = 0; t < kTokens; ++t) to_float(type, k + t * k_stride * size, f.head_dim, 1.0f, x + t * width);
  f.k_bits == 2 ? close_k<2>(f, x, width, page) : f.k_bits == 4 ? close_k<4>(f, x, width, page) : close_k<8>(f, x, width, page);
  for (int64_t t = 0; t < kTokens; ++t) to_float(type, v + t * v_stride * size, f.head_dim, 1.0f, x + t * width);
  f.v_bits == 2   ? close_v<2>(f, plan, x, width, page)
  : f.v_bits == 4 ? close_v<4>(f, plan, x, width, page)
                  : close_v<8>(f, plan, x, width, page);
}
