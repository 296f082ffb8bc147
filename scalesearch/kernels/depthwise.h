/* Depthwise convolutions: every channel with its own kernel, so that a plane is its own work. */

/* out[(m * step + phase)][(n * step + phase)] of each position of a class, from `taps` x `taps` neighbours in a padded map:
   (m * stride, n * stride) in `in` is the first of them. `in_row` and `out_row` are widths of the maps. */
static INLINE void NAME(correlate_taps)(
    const REAL *in, int64_t in_row, int64_t stride, REAL *out, int64_t out_row, int64_t step, int64_t rows, int64_t columns,
    const REAL *weights, int taps_y, int taps_x) {
    for (int64_t m = 0; m < rows; m++) {
        const REAL *line = in + m * stride * in_row * LANES;
        REAL *to = out + m * step * out_row * LANES;
        int64_t n = 0;
        for (; n + 4 <= columns; n += 4) {
            VECTOR sum[4] = {{0}};
            for (int j = 0; j < taps_y; j++)
#pragma GCC unroll 8
                for (int k = 0; k < taps_x; k++) {
                    const VECTOR weight = NAME(load)(weights + (j * taps_x + k) * LANES);
                    const REAL *here = line + (j * in_row + n * stride + k) * LANES;
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) sum[i] += NAME(load)(here + i * stride * LANES) * weight;
                }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) NAME(store)(to + (n + i) * step * LANES, sum[i]);
        }
        for (; n < columns; n++) {
            VECTOR sum[2] = {{0}};
            for (int j = 0; j < taps_y; j++)
#pragma GCC unroll 8
                for (int k = 0; k < taps_x; k++)
                    sum[k & 1] += NAME(load)(line + (j * in_row + n * stride + k) * LANES) *
                                  NAME(load)(weights + (j * taps_x + k) * LANES);
            NAME(store)(to + n * step * LANES, sum[0] + sum[1]);
        }
    }
}

static void NAME(correlate)(
    const REAL *in, int64_t in_row, int64_t stride, REAL *out, int64_t out_row, int64_t step, int64_t rows, int64_t columns,
    const REAL *weights, int64_t taps_y, int64_t taps_x) {
#define TAPS(y, x) NAME(correlate_taps)(in, in_row, stride, out, out_row, step, rows, columns, weights, y, x)
    if (taps_y == 3 && taps_x == 3) TAPS(3, 3);
    else if (taps_y == 5 && taps_x == 5) TAPS(5, 5);
    else TAPS(taps_y, taps_x);
#undef TAPS
}

/* weights[tap] += in[(y * stride, x * stride) + tap] * gradient[(y, x)], over all y and x. */
static INLINE void NAME(weigh_taps)(
    const REAL *in, int64_t in_row, int64_t stride, const REAL *gradient, int64_t gradient_row, int64_t rows, int64_t columns,
    REAL *weights, int taps_y, int taps_x) {
    for (int j = 0; j < taps_y; j++) {
        VECTOR sum[8] = {{0}};
        for (int from = 0; from < taps_x; from += 8) {
            const int here = taps_x - from < 8 ? taps_x - from : 8;
#pragma GCC unroll 8
            for (int k = 0; k < here; k++) sum[k] = NAME(load)(weights + (j * taps_x + from + k) * LANES);
            for (int64_t y = 0; y < rows; y++)
                for (int64_t x = 0; x < columns; x++) {
                    const VECTOR value = NAME(load)(gradient + (y * gradient_row + x) * LANES);
                    const REAL *line = in + ((y * stride + j) * in_row + x * stride + from) * LANES;
#pragma GCC unroll 8
                    for (int k = 0; k < here; k++) sum[k] += NAME(load)(line + k * LANES) * value;
                }
#pragma GCC unroll 8
            for (int k = 0; k < here; k++) NAME(store)(weights + (j * taps_x + from + k) * LANES, sum[k]);
        }
    }
}

static INLINE void NAME(weigh_three)(
    const REAL *in, int64_t in_row, int64_t stride, const REAL *gradient, int64_t gradient_row, int64_t rows, int64_t columns,
    REAL *weights) {
    VECTOR sum[9];
#pragma GCC unroll 9
    for (int k = 0; k < 9; k++) sum[k] = NAME(load)(weights + k * LANES);
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < columns; x++) {
            const VECTOR value = NAME(load)(gradient + (y * gradient_row + x) * LANES);
            const REAL *line = in + (y * stride * in_row + x * stride) * LANES;
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++)
#pragma GCC unroll 3
                for (int k = 0; k < 3; k++) sum[j * 3 + k] += NAME(load)(line + (j * in_row + k) * LANES) * value;
        }
#pragma GCC unroll 9
    for (int k = 0; k < 9; k++) NAME(store)(weights + k * LANES, sum[k]);
}

static void NAME(weigh)(
    const REAL *in, int64_t in_row, int64_t stride, const REAL *gradient, int64_t gradient_row, int64_t rows, int64_t columns,
    REAL *weights, int64_t kernel) {
    if (kernel == 3) NAME(weigh_three)(in, in_row, stride, gradient, gradient_row, rows, columns, weights);
    else if (kernel == 5) NAME(weigh_taps)(in, in_row, stride, gradient, gradient_row, rows, columns, weights, 5, 5);
    else NAME(weigh_taps)(in, in_row, stride, gradient, gradient_row, rows, columns, weights, kernel, kernel);
}

static shape NAME(depthwise_shape)(const convolution *of) {
    const node *from = of->from, *to = of->to;
    return with_margins((shape){
        .images = from->images, .height = from->height, .width = from->width, .out_height = to->height,
        .out_width = to->width, .kernel = of->kernel, .stride = of->stride, .padding = of->padding});
}

static void NAME(read_map)(const convolution *of, const shape *s, int64_t plane, int64_t image, REAL *to) {
    for (int64_t y = 0; y < s->height; y++)
        NAME(view)(of->from, plane, (image * s->height + y) * s->width, s->width,
                   to + ((y + s->padding) * s->padded_width + s->padding) * LANES);
}

static void NAME(read_gradient)(const convolution *of, const shape *s, int64_t plane, int64_t image, REAL *to) {
    for (int64_t y = 0; y < s->out_height; y++)
        NAME(gradient_of)(of->to, plane, (image * s->out_height + y) * s->out_width, s->out_width,
                          to + ((y + s->before_y) * s->wide_width + s->before_x) * LANES);
}

/* A plane's kernels as vectors: [tap][lane], zero beyond the last channel. */
static void NAME(read_kernels)(const convolution *of, int64_t plane, REAL *weights) {
    for (int64_t tap = 0; tap < of->kernel * of->kernel; tap++)
        PER_LANE {
            const int64_t channel = plane * LANES + lane;
            weights[tap * LANES + lane] = channel < of->from->channels ? NAME(weight_at)(of, channel, 0, tap) : 0;
        }
}

static int NAME(depthwise_forward)(const convolution *of) {
    const shape s = NAME(depthwise_shape)(of);
    const int64_t map = s.padded_height * s.padded_width * LANES, taps = s.kernel * s.kernel;
    arena a = begin_arena(sizeof(REAL) * (map + taps * LANES));
    if (!a.at) return 1;
    REAL *input = take(&a, sizeof(REAL) * map), *weights = take(&a, sizeof(REAL) * taps * LANES);
    memset(input, 0, sizeof(REAL) * map);
    for (int64_t plane = 0; plane < NAME(planes)(of->from->channels); plane++) {
        NAME(read_kernels)(of, plane, weights);
        for (int64_t image = 0; image < s.images; image++) {
            const int64_t position = image * s.out_height * s.out_width;
            NAME(read_map)(of, &s, plane, image, input);
            NAME(correlate)(input, s.padded_width, s.stride, NAME(at)(of->to->values, of->to, plane, position), s.out_width, 1,
                            s.out_height, s.out_width, weights, s.kernel, s.kernel);
            if (of->to->normalised) NAME(add_moments)(of->to, plane, position, s.out_height * s.out_width);
        }
    }
    return 0;
}

/* The gradient of one image's plane of the input, without what it is activated by. */
static void NAME(spread)(const shape *s, const REAL *wide, const REAL *weights, REAL *picked, REAL *to) {
    for (int64_t one = 0; one < s->stride * s->stride; one++) {
        const phase_class y = class_of(one / s->stride, s->height, s->kernel, s->stride, s->padding);
        const phase_class x = class_of(one % s->stride, s->width, s->kernel, s->stride, s->padding);
        for (int64_t j = 0; j < y.taps; j++)
            for (int64_t k = 0; k < x.taps; k++)
                NAME(store)(picked + (j * x.taps + k) * LANES,
                            NAME(load)(weights + ((y.tap - j * s->stride) * s->kernel + x.tap - k * s->stride) * LANES));
        NAME(correlate)(wide + ((y.first + s->before_y) * s->wide_width + x.first + s->before_x) * LANES, s->wide_width, 1,
                        to + (y.phase * s->width + x.phase) * LANES, s->width, s->stride, y.count, x.count, picked, y.taps,
                        x.taps);
    }
}

/* Gradients of the weights and, where it is wanted, of the input. */
static int NAME(depthwise_backward)(const convolution *of) {
    const shape s = NAME(depthwise_shape)(of);
    const int64_t map = s.padded_height * s.padded_width * LANES, wide_map = s.wide_height * s.wide_width * LANES;
    const int64_t taps = s.kernel * s.kernel, plain = s.height * s.width * LANES, channels = of->from->channels;
    arena a = begin_arena(sizeof(REAL) * (map + wide_map + plain + 3 * taps * LANES));
    if (!a.at) return 1;
    REAL *input = take(&a, sizeof(REAL) * map), *wide = take(&a, sizeof(REAL) * wide_map);
    REAL *result = take(&a, sizeof(REAL) * plain), *weights = take(&a, sizeof(REAL) * taps * LANES);
    REAL *picked = take(&a, sizeof(REAL) * taps * LANES), *sums = take(&a, sizeof(REAL) * taps * LANES);
    memset(input, 0, sizeof(REAL) * map);
    memset(wide, 0, sizeof(REAL) * wide_map);
    for (int64_t plane = 0; plane < NAME(planes)(channels); plane++) {
        NAME(read_kernels)(of, plane, weights);
        memset(sums, 0, sizeof(REAL) * taps * LANES);
        for (int64_t image = 0; image < s.images; image++) {
            NAME(read_map)(of, &s, plane, image, input);
            NAME(read_gradient)(of, &s, plane, image, wide);
            NAME(weigh)(input, s.padded_width, s.stride, wide + (s.before_y * s.wide_width + s.before_x) * LANES, s.wide_width,
                        s.out_height, s.out_width, sums, s.kernel);
            if (!of->wanted) continue;
            NAME(spread)(&s, wide, weights, picked, result);
            NAME(settle)(of->from, plane, image * s.height * s.width, s.height * s.width, result, of->more, of->last);
        }
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t channel = plane * LANES; channel < channels && channel < (plane + 1) * LANES; channel++)
                ((REAL *)of->weight_gradient)[NAME(weight_offset)(of, channel, 0, tap)] = sums[tap * LANES + channel % LANES];
    }
    return 0;
}
