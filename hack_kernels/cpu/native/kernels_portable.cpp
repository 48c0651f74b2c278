// The kernels for any machine.
#include "abi.h"

namespace {
using namespace packhorse;
#include "isa_portable.h"
#include "attend_pages.h"
#include "attend_exact.h"
#include "close_page.h"
#include "integer_dots.h"
}  // namespace

namespace packhorse {
extern const Kernels kPortable;
const Kernels kPortable = {"portable", attend_coded_or_raw, attend_exact, close_page, merge, to_float, from_float, integer_dots};
}
