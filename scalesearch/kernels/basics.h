/* Maps in planes, and how a convolution reads and differentiates them. Included once for each type of number.

   A map of C channels at P positions (images x rows x columns) lies as ceil(C / LANES) planes of P vectors of LANES
   channels; lanes beyond the last channel are zero. A convolution writes its raw output and the moments of it; the
   batch norm and the activation are applied where the next convolution reads. */

typedef REAL NAME(vector) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAME(mask) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define VECTOR NAME(vector)
#define MASK NAME(mask)
#define PER_LANE for (int lane = 0; lane < LANES; lane++)

static INLINE VECTOR NAME(load)(const REAL *from) { return *(const VECTOR *)from; }
static INLINE void NAME(store)(REAL *to, VECTOR value) { *(VECTOR *)to = value; }

static INLINE VECTOR NAME(choose)(MASK where, VECTOR then, VECTOR otherwise) {
    return (VECTOR)((where & (MASK)then) | (~where & (MASK)otherwise));
}

/* e to the x within two units of the last place; of numbers of 64 bits the C library's. */
static INLINE VECTOR NAME(exponential)(VECTOR x) {
    if (sizeof(REAL) == 8) {
        PER_LANE x[lane] = exp(x[lane]);
        return x;
    }
    x = NAME(choose)(x < -87, (VECTOR){0} - 87, x); /* a nan stays one */
    x = NAME(choose)(x > 88, (VECTOR){0} + 88, x);
    const VECTOR n = (x * (REAL)1.44269504 + 12582912) - 12582912; /* rounds to a whole number */
    const VECTOR r = x - n * (REAL)0.693359375 + n * (REAL)2.12194440e-4;
    VECTOR y = r * (REAL)1.9875691500e-4 + (REAL)1.3981999507e-3;
    y = y * r + (REAL)8.3334519073e-3;
    y = y * r + (REAL)4.1665795894e-2;
    y = y * r + (REAL)1.6666665459e-1;
    y = y * r + (REAL)5.0000001201e-1;
    y = y * r * r + r + 1;
    return y * (VECTOR)((__builtin_convertvector(n, MASK) + 127) << 23);
}

static INLINE VECTOR NAME(activate)(VECTOR u, int kind) {
    const VECTOR zero = {0};
    switch (kind) { /* comparisons are such that a nan stays one */
        case RELU: return NAME(choose)(u < 0, zero, u);
        case RELU6: return NAME(choose)(u < 0, zero, NAME(choose)(u > 6, zero + 6, u));
        case SILU: return u / (1 + NAME(exponential)(-u));
        case SIGMOID: return 1 / (1 + NAME(exponential)(-u));
        case HARDSIGMOID: return NAME(choose)(u < -3, zero, NAME(choose)(u > 3, zero + 6, u + 3)) * (REAL)(1.0 / 6);
        case HARDSWISH: return u * NAME(choose)(u < -3, zero, NAME(choose)(u > 3, zero + 6, u + 3)) * (REAL)(1.0 / 6);
        default: return u;
    }
}

static INLINE VECTOR NAME(slope)(VECTOR u, int kind) {
    const VECTOR zero = {0}, one = zero + 1;
    VECTOR s;
    switch (kind) {
        case RELU: return NAME(choose)(u > 0, one, zero);
        case RELU6: return NAME(choose)((u > 0) & (u < 6), one, zero);
        case SILU: s = 1 / (1 + NAME(exponential)(-u)); return s * (1 + u * (1 - s));
        case SIGMOID: s = 1 / (1 + NAME(exponential)(-u)); return s * (1 - s);
        case HARDSIGMOID: return NAME(choose)((u > -3) & (u < 3), zero + (REAL)(1.0 / 6), zero);
        case HARDSWISH: return NAME(choose)(u < -3, zero, NAME(choose)(u > 3, one, u * (REAL)(1.0 / 3) + (REAL)0.5));
        default: return one;
    }
}

/* Calls BODY(kind) with the activation as a constant, so that its loops are vectorised. */
#define WITH_ACTIVATION(kind, BODY) \
    switch (kind) { \
        case RELU: BODY(RELU); break; \
        case RELU6: BODY(RELU6); break; \
        case SILU: BODY(SILU); break; \
        case HARDSWISH: BODY(HARDSWISH); break; \
        case SIGMOID: BODY(SIGMOID); break; \
        case HARDSIGMOID: BODY(HARDSIGMOID); break; \
        default: BODY(NONE); break; \
    }

static INLINE int64_t NAME(planes)(int64_t channels) { return (channels + LANES - 1) / LANES; }
static INLINE int64_t NAME(positions)(const node *of) { return of->images * of->height * of->width; }
static INLINE REAL *NAME(at)(void *map, const node *of, int64_t plane, int64_t position) {
    return (REAL *)map + (plane * NAME(positions)(of) + position) * LANES;
}

static INLINE void NAME(view_kind)(
    REAL *restrict to, const REAL *restrict from, int64_t count, VECTOR scale, VECTOR shift, const REAL *gate, int kind) {
    VECTOR factor = {0};
    if (gate) factor = NAME(load)(gate);
    for (int64_t i = 0; i < count; i++) {
        VECTOR value = NAME(activate)(scale * NAME(load)(from + i * LANES) + shift, kind);
        if (gate) value *= factor;
        NAME(store)(to + i * LANES, value);
    }
}

/* `count` vectors of a plane from `position` on, all of one image where there is a gate, as a convolution reads them. */
static void NAME(view)(const node *of, int64_t plane, int64_t position, int64_t count, REAL *to) {
    const REAL *from = NAME(at)(of->values, of, plane, position);
    if (!of->normalised) {
        memcpy(to, from, count * LANES * sizeof(REAL));
        return;
    }
    const VECTOR scale = NAME(load)((REAL *)of->scale + plane * LANES), shift = NAME(load)((REAL *)of->shift + plane * LANES);
    const int64_t image = position / (of->height * of->width);
    const REAL *gate = of->gate ? (REAL *)of->gate + (plane * of->images + image) * LANES : 0;
#define BODY(kind) \
    if (gate) NAME(view_kind)(to, from, count, scale, shift, gate, kind); \
    else NAME(view_kind)(to, from, count, scale, shift, 0, kind)
    WITH_ACTIVATION(of->activation, BODY)
#undef BODY
}

/* Adds `count` vectors of a plane to the moments of it, which are taken about its first vector. */
static void NAME(add_moments)(const node *of, int64_t plane, int64_t position, int64_t count) {
    const REAL *from = NAME(at)(of->values, of, plane, position);
    const VECTOR origin = NAME(load)(NAME(at)(of->values, of, plane, 0));
    VECTOR sum[4] = {{0}}, square[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; j++) {
            VECTOR value = NAME(load)(from + (i + j) * LANES) - origin;
            sum[j] += value;
            square[j] += value * value;
        }
    for (; i < count; i++) {
        VECTOR value = NAME(load)(from + i * LANES) - origin;
        sum[0] += value;
        square[0] += value * value;
    }
    sum[0] += sum[1] + (sum[2] + sum[3]);
    square[0] += square[1] + (square[2] + square[3]);
    double *sums = of->sums + plane * LANES, *squares = sums + NAME(planes)(of->channels) * LANES;
    PER_LANE {
        sums[lane] += sum[0][lane];
        squares[lane] += square[0][lane];
    }
}

/* Mean, deviation, scale and shift of a node from its moments, and its running statistics as torch keeps them. */
static void NAME(normalise)(const node *of) {
    const int64_t width = NAME(planes)(of->channels) * LANES, count = NAME(positions)(of);
    REAL *mean = of->mean, *inverse = of->inverse, *scale = of->scale, *shift = of->shift;
    REAL *running_mean = of->running_mean, *running_variance = of->running_variance;
    const REAL *weight = of->weight, *bias = of->bias;
    if (of->normalised == BIASED) {
        for (int64_t c = 0; c < width; c++) {
            scale[c] = c < of->channels;
            shift[c] = c < of->channels ? bias[c] : 0;
            mean[c] = inverse[c] = 0;
        }
        return;
    }
    for (int64_t c = 0; c < width; c++) {
        const double origin = NAME(at)(of->values, of, c / LANES, 0)[c % LANES];
        const double offset = of->sums[c] / count, at = origin + offset;
        double variance = of->sums[width + c] / count - offset * offset;
        if (variance < 0) variance = 0;
        const double deviation = 1 / sqrt(variance + of->epsilon);
        mean[c] = at;
        inverse[c] = deviation;
        scale[c] = c < of->channels ? weight[c] * deviation : 0;
        shift[c] = c < of->channels ? bias[c] - at * weight[c] * deviation : 0;
        if (c < of->channels) {
            running_mean[c] += of->momentum * (at - running_mean[c]);
            running_variance[c] += of->momentum * (variance * count / (count - 1) - running_variance[c]);
        }
    }
}

static INLINE void NAME(settle_kind)(
    const node *of, int64_t plane, int64_t count, const REAL *gradient, const REAL *values, REAL *to, int kind) {
    const int64_t width = NAME(planes)(of->channels) * LANES;
    const VECTOR scale = NAME(load)((REAL *)of->scale + plane * LANES), shift = NAME(load)((REAL *)of->shift + plane * LANES);
    const VECTOR mean = NAME(load)((REAL *)of->mean + plane * LANES);
    const REAL *inverse = (REAL *)of->inverse + plane * LANES;
    VECTOR sum = {0}, product = {0};
    for (int64_t i = 0; i < count; i++) {
        const VECTOR value = NAME(load)(values + i * LANES);
        const VECTOR here = NAME(load)(gradient + i * LANES) * NAME(slope)(scale * value + shift, kind);
        NAME(store)(to + i * LANES, here);
        sum += here;
        product += here * (value - mean);
    }
    PER_LANE {
        of->sums[plane * LANES + lane] += sum[lane];
        of->sums[width + plane * LANES + lane] += product[lane] * inverse[lane];
    }
}

static INLINE void NAME(settle_gated_kind)(
    const node *of, int64_t plane, int64_t position, int64_t count, const REAL *restrict gradient, int kind) {
    const REAL *values = NAME(at)(of->values, of, plane, position);
    const VECTOR scale = NAME(load)((REAL *)of->scale + plane * LANES), shift = NAME(load)((REAL *)of->shift + plane * LANES);
    const int64_t map = of->height * of->width;
    for (int64_t i = 0; i < count;) {
        const int64_t image = (position + i) / map;
        int64_t end = (image + 1) * map - position;
        if (end > count) end = count;
        VECTOR sum = {0};
        for (; i < end; i++)
            sum += NAME(load)(gradient + i * LANES) *
                   NAME(activate)(scale * NAME(load)(values + i * LANES) + shift, kind);
        REAL *to = (REAL *)of->gate_gradient + (plane * of->images + image) * LANES;
        NAME(store)(to, NAME(load)(to) + sum);
    }
}

/* Takes `count` vectors of the gradient of what convolutions read of a node, and keeps that of its normalised values
   with the sums which the batch norm's gradient needs. Of a gradient that others still add to, it keeps the sum. */
static void NAME(settle)(const node *of, int64_t plane, int64_t position, int64_t count, REAL *gradient, int more, int last) {
    REAL *to = NAME(at)(of->gradient, of, plane, position);
    if (more)
        for (int64_t i = 0; i < count * LANES; i++) gradient[i] += to[i];
    if (!last || !of->normalised || of->gate) {
        memcpy(to, gradient, count * LANES * sizeof(REAL));
        if (of->gate) { /* `pool_backward` goes on once the gate's own gradient is known */
#define BODY(kind) NAME(settle_gated_kind)(of, plane, position, count, gradient, kind)
            WITH_ACTIVATION(of->activation, BODY)
#undef BODY
        }
        return;
    }
    const REAL *values = NAME(at)(of->values, of, plane, position);
#define BODY(kind) NAME(settle_kind)(of, plane, count, gradient, values, to, kind)
    WITH_ACTIVATION(of->activation, BODY)
#undef BODY
}

static INLINE void NAME(pool_kind)(const node *of, const node *to, int kind) {
    const int64_t map = of->height * of->width;
    for (int64_t plane = 0; plane < NAME(planes)(of->channels); plane++) {
        const VECTOR scale = NAME(load)((REAL *)of->scale + plane * LANES), shift = NAME(load)((REAL *)of->shift + plane * LANES);
        for (int64_t image = 0; image < of->images; image++) {
            const REAL *values = NAME(at)(of->values, of, plane, image * map);
            VECTOR sum = {0};
            for (int64_t i = 0; i < map; i++) sum += NAME(activate)(scale * NAME(load)(values + i * LANES) + shift, kind);
            NAME(store)(NAME(at)(to->values, to, plane, image), sum / (REAL)map);
        }
    }
}

/* The mean over each image of what comes before the gate. */
static void NAME(pool)(const node *of, const node *to) {
#define BODY(kind) NAME(pool_kind)(of, to, kind)
    WITH_ACTIVATION(of->activation, BODY)
#undef BODY
}

/* From the gradients of what was gated and of the means to that of the normalised values. */
static void NAME(pool_backward)(const node *of, const node *pooled) {
    const int64_t map = of->height * of->width;
    for (int64_t plane = 0; plane < NAME(planes)(of->channels); plane++)
        for (int64_t image = 0; image < of->images; image++) {
            REAL *gradient = NAME(at)(of->gradient, of, plane, image * map);
            const VECTOR gate = NAME(load)((REAL *)of->gate + (plane * of->images + image) * LANES);
            const VECTOR added = NAME(load)(NAME(at)(pooled->gradient, pooled, plane, image)) / (REAL)map;
            for (int64_t i = 0; i < map; i++)
                NAME(store)(gradient + i * LANES, NAME(load)(gradient + i * LANES) * gate + added);
            const REAL *values = NAME(at)(of->values, of, plane, image * map);
#define BODY(kind) NAME(settle_kind)(of, plane, map, gradient, values, gradient, kind)
            WITH_ACTIVATION(of->activation, BODY)
#undef BODY
        }
}

/* Gradients of a batch norm's weight and bias, and the coefficients by which `gradient_of` goes on. */
static void NAME(differentiate)(const node *of) {
    const int64_t width = NAME(planes)(of->channels) * LANES, count = NAME(positions)(of);
    const REAL *inverse = of->inverse, *scale = of->scale;
    REAL *slopes = of->slopes, *weight_gradient = of->weight_gradient, *bias_gradient = of->bias_gradient;
    for (int64_t c = 0; c < width; c++) {
        if (of->normalised == BIASED) {
            slopes[c] = slopes[width + c] = 0;
            if (c < of->channels) bias_gradient[c] = of->sums[c];
            continue;
        }
        const double sum = of->sums[c], product = of->sums[width + c];
        slopes[c] = -(double)scale[c] * inverse[c] * product / count;
        slopes[width + c] = -(double)scale[c] * sum / count;
        if (c < of->channels) {
            weight_gradient[c] = product;
            bias_gradient[c] = sum;
        }
    }
}

/* `count` vectors of the gradient of a node's raw values. */
static void NAME(gradient_of)(const node *of, int64_t plane, int64_t position, int64_t count, REAL *restrict to) {
    const REAL *restrict gradient = NAME(at)(of->gradient, of, plane, position);
    if (!of->normalised) {
        memcpy(to, gradient, count * LANES * sizeof(REAL));
        return;
    }
    const int64_t width = NAME(planes)(of->channels) * LANES;
    const REAL *restrict values = NAME(at)(of->values, of, plane, position);
    const REAL *slopes = (REAL *)of->slopes + plane * LANES;
    const VECTOR mean = NAME(load)((REAL *)of->mean + plane * LANES), scale = NAME(load)((REAL *)of->scale + plane * LANES);
    const VECTOR by_value = NAME(load)(slopes), constant = NAME(load)(slopes + width);
    for (int64_t i = 0; i < count; i++)
        NAME(store)(to + i * LANES, scale * NAME(load)(gradient + i * LANES) +
                                        (by_value * (NAME(load)(values + i * LANES) - mean) + constant));
}

/* `count` rows of `lanes` channels, `channels` apart, as vectors. `whole` of them are followed by enough to read. */
static INLINE void NAME(read_rows)(
    REAL *restrict to, const REAL *restrict rows, int64_t count, int64_t channels, int64_t lanes, int64_t whole) {
    INTEGER kept[LANES];
    PER_LANE kept[lane] = lane < lanes ? -1 : 0;
    const MASK mask = *(const MASK *)kept;
    int64_t i = 0;
    for (; i < count && i < whole; i++)
        NAME(store)(to + i * LANES, (VECTOR)((MASK)NAME(load)(rows + i * channels) & mask));
    for (; i < count; i++)
        PER_LANE to[i * LANES + lane] = lane < lanes ? rows[i * channels + lane] : 0;
}

/* The reverse. What is written beyond `lanes` belongs to a later row, or to a later plane of this one: so the last
   plane comes first, and rows in their order. */
static INLINE void NAME(write_rows)(
    REAL *restrict rows, const REAL *restrict from, int64_t count, int64_t channels, int64_t lanes, int64_t whole) {
    int64_t i = 0;
    for (; i < count && i < whole; i++) NAME(store)(rows + i * channels, NAME(load)(from + i * LANES));
    for (; i < count; i++)
        for (int64_t lane = 0; lane < lanes; lane++) rows[i * channels + lane] = from[i * LANES + lane];
}

/* Of the rows from `position` on, those in which a whole vector of the plane ends within the tensor. */
static INLINE int64_t NAME(whole_rows)(int64_t count, int64_t channels, int64_t plane, int64_t position) {
    const int64_t room = count * channels - plane * LANES - LANES;
    return room < 0 ? 0 : room / channels + 1 - position;
}

/* A torch tensor in channels_last, (positions, channels), into a node's planes. */
static void NAME(enter)(const node *into, const REAL *restrict rows) {
    const int64_t channels = into->channels, count = NAME(positions)(into);
    for (int64_t plane = 0; plane < NAME(planes)(channels); plane++) {
        const int64_t left = channels - plane * LANES, lanes = left < LANES ? left : LANES;
        for (int64_t i = 0; i < count; i += 256) {
            const int64_t here = count - i < 256 ? count - i : 256;
            NAME(read_rows)(NAME(at)(into->values, into, plane, i), rows + i * channels + plane * LANES, here, channels, lanes,
                            NAME(whole_rows)(count, channels, plane, i));
            if (into->normalised) NAME(add_moments)(into, plane, i, here);
        }
    }
}

#define BLOCK 64

/* What stands before the last activation: the main branch, and what is added to it. */
static INLINE void NAME(sum_of)(const ending *of, int64_t plane, int64_t position, int64_t count, REAL *to) {
    NAME(view)(of->main, plane, position, count, to);
    if (!of->other) return;
    REAL added[BLOCK * LANES];
    if (of->raw) memcpy(added, NAME(at)(of->other->values, of->other, plane, position), count * LANES * sizeof(REAL));
    else NAME(view)(of->other, plane, position, count, added);
    for (int64_t i = 0; i < count * LANES; i++) to[i] += added[i];
}

static INLINE void NAME(activate_all)(REAL *values, int64_t count, int kind) {
    for (int64_t i = 0; i < count * LANES; i += LANES) NAME(store)(values + i, NAME(activate)(NAME(load)(values + i), kind));
}

/* The chain's output as a torch tensor in channels_last. */
static void NAME(leave)(const ending *of, REAL *restrict rows) {
    const int64_t channels = of->main->channels, count = NAME(positions)(of->main);
    REAL block[BLOCK * LANES];
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t here = count - i < BLOCK ? count - i : BLOCK;
        for (int64_t plane = NAME(planes)(channels) - 1; plane >= 0; plane--) {
            const int64_t left = channels - plane * LANES, lanes = left < LANES ? left : LANES;
            NAME(sum_of)(of, plane, i, here, block);
#define BODY(kind) NAME(activate_all)(block, here, kind)
            WITH_ACTIVATION(of->activation, BODY)
#undef BODY
            NAME(write_rows)(rows + i * channels + plane * LANES, block, here, channels, lanes,
                             NAME(whole_rows)(count, channels, plane, i));
        }
    }
}

static INLINE void NAME(multiply_slopes)(REAL *restrict gradient, const REAL *restrict values, int64_t count, int kind) {
    for (int64_t i = 0; i < count * LANES; i += LANES)
        NAME(store)(gradient + i, NAME(load)(gradient + i) * NAME(slope)(NAME(load)(values + i), kind));
}

/* From the gradient of the chain's output to that of what was added up. */
static void NAME(leave_backward)(const ending *of, const REAL *restrict rows) {
    const int64_t channels = of->main->channels, count = NAME(positions)(of->main);
    REAL block[BLOCK * LANES], values[BLOCK * LANES];
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t here = count - i < BLOCK ? count - i : BLOCK;
        for (int64_t plane = 0; plane < NAME(planes)(channels); plane++) {
            const int64_t left = channels - plane * LANES, lanes = left < LANES ? left : LANES;
            NAME(read_rows)(block, rows + i * channels + plane * LANES, here, channels, lanes,
                            NAME(whole_rows)(count, channels, plane, i));
            if (of->activation != NONE) {
                NAME(sum_of)(of, plane, i, here, values);
#define BODY(kind) NAME(multiply_slopes)(block, values, here, kind)
                WITH_ACTIVATION(of->activation, BODY)
#undef BODY
            }
            NAME(settle)(of->main, plane, i, here, block, 0, 1);
            if (of->other && !of->raw) NAME(settle)(of->other, plane, i, here, block, 0, 1);
        }
    }
}

/* The gradient of the chain's input as a torch tensor in channels_last; `added` is an ending whose main gradient is the
   input's too, or null. */
static void NAME(enter_backward)(const node *of, const ending *added, REAL *restrict rows) {
    const int64_t channels = of->channels, count = NAME(positions)(of);
    REAL block[BLOCK * LANES];
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t here = count - i < BLOCK ? count - i : BLOCK;
        for (int64_t plane = NAME(planes)(channels) - 1; plane >= 0; plane--) {
            const int64_t left = channels - plane * LANES, lanes = left < LANES ? left : LANES;
            NAME(gradient_of)(of, plane, i, here, block);
            if (added) {
                const REAL *other = NAME(at)(added->main->gradient, of, plane, i);
                for (int64_t k = 0; k < here * LANES; k++) block[k] += other[k];
            }
            NAME(write_rows)(rows + i * channels + plane * LANES, block, here, channels, lanes,
                             NAME(whole_rows)(count, channels, plane, i));
        }
    }
}
