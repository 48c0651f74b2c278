// The rate of integer dot products that this instruction set can reach: kAccumulators chains of them, operands in registers.

static int64_t integer_dots(int64_t rounds) {
  alignas(64) const int32_t operands[2 * VL] = {};
  I acc[kAccumulators] = {};
  for (int64_t n = 0; n < rounds; ++n) {
    asm volatile("" ::"r"(operands) : "memory");  // what they hold may have changed: no round may be taken from the one before
    const I codes = load_words(operands), b = load_words(operands + VL);
    for (int i = 0; i < kAccumulators; ++i) acc[i] = dot<2>(acc[i], codes, b);
  }
  I sum = {};
  for (int i = 0; i < kAccumulators; ++i) sum += acc[i];
  return rounds * kAccumulators * VL * 4 + sum[0];  // the sum is 0, which the compiler cannot know
}
