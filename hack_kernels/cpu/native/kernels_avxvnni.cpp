// The kernels for avxvnni. The pragma covers this file to its end; nothing here is shared with other files.
#if defined(__x86_64__)
#include <immintrin.h>

#include "abi.h"
#pragma GCC target("avx2,fma,f16c,bmi2,avxvnni")
#define PACKHORSE_VNNI

namespace {
using namespace packhorse;
#include "isa_avx2.h"
#include "attend_pages.h"
#include "attend_exact.h"
#include "close_page.h"
#include "integer_dots.h"
}  // namespace

namespace packhorse {
extern const Kernels kAvxVnni;
const Kernels kAvxVnni = {"avxvnni", attend_coded_or_raw, attend_exact, close_page, merge, to_float, from_float, integer_dots};
}
#endif
