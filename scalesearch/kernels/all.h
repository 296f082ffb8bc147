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

/* Puts addresses into the nodes: `values` and `gradients` (or null) have the maps behind each other, `small` six of
   whole planes of channels a node, `sums` two, which are zero. */
int NAME(bind)(const chain *of, REAL *values, REAL *small, double *sums, REAL *gradients) {
    for (int64_t i = 0; i < of->num_nodes; i++) {
        node *to = of->nodes + i;
        const int64_t width = NAME(planes)(to->channels) * LANES, size = NAME(positions)(to) * width;
        to->values = values;
        to->gradient = gradients;
        to->sums = sums;
        to->scale = small;
        to->shift = small + width;
        to->mean = small + 2 * width;
        to->inverse = small + 3 * width;
        to->slopes = small + 4 * width;
        values += size;
        small += 6 * width;
        sums += 2 * width;
        if (gradients) gradients += size;
    }
    return 0;
}

/* Convolutions `first` to `end`; the input is taken in before the first of all, the output written after the last. */
int NAME(forward)(const chain *of, const REAL *rows, REAL *out, int64_t first, int64_t end) {
    if (first == 0) {
        NAME(enter)(of->nodes, rows);
        if (of->nodes->normalised) NAME(normalise)(of->nodes);
    }
    for (int64_t i = first; i < end; i++) {
        const convolution *here = of->convolutions + i;
        if (here->depthwise ? NAME(depthwise_forward)(here) : NAME(dense_forward)(here)) return 1;
        if (here->to->normalised) NAME(normalise)(here->to);
    }
    if (end == of->num_convolutions) NAME(leave)(of->ending, out);
    return 0;
}

/* The same backward, from `end` down to `first`; `entered` is null where the input's gradient is not wanted. */
int NAME(backward)(const chain *of, const REAL *rows, REAL *entered, int64_t end, int64_t first) {
    if (end == of->num_convolutions) NAME(leave_backward)(of->ending, rows);
    for (int64_t i = end - 1; i >= first; i--) {
        const convolution *here = of->convolutions + i;
        if (here->to->normalised) NAME(differentiate)(here->to);
        if (here->depthwise ? NAME(depthwise_backward)(here) : NAME(dense_backward)(here)) return 1;
    }
    if (first > 0) return 0;
    if (of->nodes->normalised) NAME(differentiate)(of->nodes);
    if (entered) NAME(enter_backward)(of->nodes, of->ending->other && of->ending->raw ? of->ending : 0, entered);
    return 0;
}
