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

/* Puts addresses into the nodes: `values` and `gradients` (or null) have the maps behind each other and then the gate,
   `small` six of whole planes of channels a node, `sums` two, which are zero. */
void NAME(bind)(const chain *of, REAL *values, REAL *small, double *sums, REAL *gradients) {
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
    if (!of->gated) return;
    of->gated->gate = values;
    of->gated->gate_gradient = gradients;
}

/* The gate's own two convolutions of what is pooled, and its factors. */
static int NAME(gate_forward)(const chain *of) {
    NAME(pool)(of->gated, of->pooled);
    for (int i = 0; i < 2; i++) {
        if (NAME(dense_forward)(of->gate + i)) return 1;
        NAME(normalise)(of->gate[i].to);
    }
    const node *excited = of->gate[1].to;
    for (int64_t plane = 0; plane < NAME(planes)(excited->channels); plane++)
        NAME(view)(excited, plane, 0, excited->images, NAME(at)(of->gated->gate, excited, plane, 0));
    return 0;
}

static int NAME(gate_backward)(const chain *of) {
    const node *excited = of->gate[1].to;
    for (int64_t plane = 0; plane < NAME(planes)(excited->channels); plane++)
        NAME(settle)(excited, plane, 0, excited->images, NAME(at)(of->gated->gate_gradient, excited, plane, 0), 0, 1);
    for (int i = 1; i >= 0; i--) {
        NAME(differentiate)(of->gate[i].to);
        if (NAME(dense_backward)(of->gate + i)) return 1;
    }
    NAME(pool_backward)(of->gated, of->pooled);
    return 0;
}

/* 0, or 1 where there is no memory. */
int NAME(forward)(const chain *of, const REAL *rows, REAL *out) {
    NAME(enter)(of->nodes, rows);
    if (of->nodes->normalised) NAME(normalise)(of->nodes);
    for (int64_t i = 0; i < of->num_convolutions; i++) {
        const convolution *here = of->convolutions + i;
        if (here->depthwise ? NAME(depthwise_forward)(here) : NAME(dense_forward)(here)) return 1;
        if (here->to->normalised) NAME(normalise)(here->to);
        if (here->to == of->gated && NAME(gate_forward)(of)) return 1;
    }
    NAME(leave)(of->ending, out);
    return 0;
}

/* The same; `entered` is null where the input's gradient is not wanted. */
int NAME(backward)(const chain *of, const REAL *rows, REAL *entered) {
    if (of->gated)
        memset(of->gated->gate_gradient, 0, sizeof(REAL) * NAME(planes)(of->gated->channels) * LANES * of->gated->images);
    NAME(leave_backward)(of->ending, rows);
    for (int64_t i = of->num_convolutions - 1; i >= 0; i--) {
        const convolution *here = of->convolutions + i;
        if (here->to == of->gated && NAME(gate_backward)(of)) return 1;
        if (here->to->normalised) NAME(differentiate)(here->to);
        if (here->depthwise ? NAME(depthwise_backward)(here) : NAME(dense_backward)(here)) return 1;
    }
    if (of->nodes->normalised) NAME(differentiate)(of->nodes);
    if (entered) NAME(enter_backward)(of->nodes, of->ending->other && of->ending->raw ? of->ending : 0, entered);
    return 0;
}
