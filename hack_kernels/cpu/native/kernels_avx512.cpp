// The kernels for avx512. The pragma covers this file to its end; nothing here is shared with other files.
#if defined(__x86_64__)
#include <immintrin.h>

#include "abi.h"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")

namespace {
using namespace packhorse;
#include "isa_avx512.h"
#include "attend_pages.h"
#include "attend_exact.h"
#include "close_page.h"
#include "integer_dots.h"
}  // namespace

namespace packhorse {
extern const Kernels kAvx512;
const Kernels kAvx512 = {"avx512", attend_coded_or_raw, attend_exact, close_page, merge, to_float, from_float, integer_dots};
}
#endif
