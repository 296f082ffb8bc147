/* Chains of convolution, batch norm and activation on the CPU: forward, and backward. `chain.py` calls these. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))
enum { NONE, RELU, RELU6, SILU, HARDSWISH, SIGMOID, HARDSIGMOID };
enum { RAW, NORMALISED, BIASED }; /* what is done to a map before its activation */

/* A map between two convolutions. `values` are raw; a convolution reads activation(scale * values + shift) * gate. */
typedef struct {
    void *values, *gradient;           /* planes */
    void *scale, *shift, *mean, *inverse, *slopes; /* whole planes of channels; slopes has two of these */
    void *weight, *bias, *running_mean, *running_variance, *weight_gradient, *bias_gradient; /* channels */
    void *gate, *gate_gradient;        /* planes of one vector an image, or null */
    double *sums;                      /* two of whole planes of channels, zero at first */
    int64_t channels, images, height, width, activation, normalised;
    double epsilon, momentum;
} node;

typedef struct {
    const node *from, *to;
    void *weight, *weight_gradient;    /* by strides */
    int64_t out_stride, in_stride, row_stride, column_stride, kernel, stride, padding, depthwise;
    int64_t wanted, more, last;        /* whether the input's gradient is wanted, added to, and then complete */
} convolution;

typedef struct {
    const node *main, *other;          /* other: what is added, or null */
    int64_t raw, activation;           /* raw: the other is added as it came in */
} ending;

typedef struct {
    node *nodes;
    const convolution *convolutions;
    const ending *ending;
    int64_t num_nodes, num_convolutions;
    node *gated, *pooled;              /* null where there is no gate */
    const convolution *gate;           /* from what is pooled to what is squeezed, and from there to the gate */
} chain;

/* Memory of one call; each thread keeps its own for the next. */
typedef struct { char *at; } arena;

static arena begin_arena(int64_t bytes) {
    static _Thread_local char *kept;
    static _Thread_local int64_t size;
    bytes += 64 * 16; /* each of what is taken is aligned */
    if (bytes > size) {
        free(kept);
        kept = aligned_alloc(64, (bytes + 63) / 64 * 64);
        size = kept ? bytes : 0;
    }
    return (arena){kept};
}

static void *take(arena *from, int64_t bytes) {
    void *taken = from->at;
    from->at += (bytes + 63) / 64 * 64;
    return taken;
}

#if defined(__AVX512F__)
#define BYTES 64
#define ROWS 8
#define VECTORS 3
#elif defined(__AVX__)
#define BYTES 32
#define ROWS 4
#define VECTORS 3
#else
#define BYTES 16
#define ROWS 4
#define VECTORS 3
#endif

#define JOINED(name, type) name##_##type
#define EXPANDED(name, type) JOINED(name, type)
#define NAME(name) EXPANDED(name, REAL)

#define REAL float
#define INTEGER int32_t
#define LANES (BYTES / 4)
#include "all.h"
#undef REAL
#undef INTEGER
#undef LANES
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O1") /* trainings are in float32; this one serves comparisons, and compiles in less time */
#endif
#define REAL double
#define INTEGER int64_t
#define LANES (BYTES / 8)
#include "all.h"

int lanes_float(void) { return BYTES / 4; }
int lanes_double(void) { return BYTES / 8; }
