/* Everything, for one type of number. */
#include "basics.h"

static INLINE int64_t NAME(weight_offset)(const convolution *of, int64_t out, int64_t in, int64_t tap) {
    return out * of->out_stride + in * of->in_stride + tap / of->kernel * of->row_stride + tap % of->kernel * of->column_stride;
}
static INLINE REAL NAME(weight_at)(const convolution *of, int64_t out, int64_t in, int64_t tap) {
    return ((const REAL *)of->weight)[NAME(weight_offset)(of, out, in, tap)];
}

#include "dense.h"
#include "depthwise.h"
