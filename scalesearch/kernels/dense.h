/* Convolutions of all channels with all channels, as products of matrices: a position is a row, and each of the
   kernel's taps adds its channels to the columns. */

/* A run of columns that lie behind each other: `lanes` channels at `offset` from where a row begins. */
#ifndef SEGMENT
#define SEGMENT
typedef struct { int64_t offset, lanes; } segment;
#endif

static INLINE void NAME(product_tile)(
    int rows, int vectors, const REAL *in, const int32_t *in_at, REAL *out, const int32_t *out_at, int64_t out_plane,
    const segment *segments, int64_t num_segments, const REAL *weights, int64_t weights_row) {
    VECTOR sum[ROWS][VECTORS];
    const REAL *row[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        row[r] = in + in_at[r];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = (VECTOR){0};
    }
    for (int64_t s = 0; s < num_segments; s++) {
        const int64_t begin = segments[s].offset, end = begin + segments[s].lanes;
        for (int64_t k = begin; k < end; k++, weights += weights_row) {
            VECTOR weight[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) weight[v] = NAME(load)(weights + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) sum[r][v] += row[r][k] * weight[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) NAME(store)(out + out_at[r] + v * out_plane, sum[r][v]);
}

/* out[out_at[r]] = in[in_at[r]] . weights, for `rows` rows and `planes` planes of the output. */
static void NAME(product)(
    const REAL *in, const int32_t *in_at, int64_t rows, REAL *out, const int32_t *out_at, int64_t out_plane, int64_t planes,
    const segment *segments, int64_t num_segments, const REAL *weights) {
    const int64_t tiles = (planes + VECTORS - 1) / VECTORS, width = planes * LANES;
    for (int64_t plane = 0, tile = 0; tile < tiles; tile++) {
        const int64_t vectors = (planes - plane) / (tiles - tile) + ((planes - plane) % (tiles - tile) > 0);
#define TILE(rows, vectors) \
    NAME(product_tile)(rows, vectors, in, in_at + r, out + plane * out_plane, out_at + r, out_plane, segments, \
                       num_segments, weights + plane * LANES, width)
#define ALL(vectors) \
    { \
        int64_t r = 0; \
        for (; r + ROWS <= rows; r += ROWS) TILE(ROWS, vectors); \
        for (; r < rows; r++) TILE(1, vectors); \
    }
        if (vectors == 1) ALL(1)
        else if (vectors == 2) ALL(2)
        else ALL(3)
#undef ALL
#undef TILE
        plane += vectors;
    }
}

static INLINE void NAME(outer_tile)(
    int lanes, int vectors, const REAL *one, const int32_t *one_at, const REAL *other, const int32_t *other_at,
    int64_t other_plane, int64_t rows, REAL *sums, int64_t sums_row) {
    VECTOR sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int l = 0; l < lanes; l++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[l][v] = NAME(load)(sums + l * sums_row + v * LANES);
    for (int64_t r = 0; r < rows; r++) {
        const REAL *left = one + one_at[r], *right = other + other_at[r];
        VECTOR value[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) value[v] = NAME(load)(right + v * other_plane);
#pragma GCC unroll 8
        for (int l = 0; l < lanes; l++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[l][v] += left[l] * value[v];
    }
#pragma GCC unroll 8
    for (int l = 0; l < lanes; l++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) NAME(store)(sums + l * sums_row + v * LANES, sum[l][v]);
}

/* sums[channel of one][channel of other] += the products of both over all rows. `sums` has whole planes of both. */
static void NAME(outer)(
    const REAL *one, const int32_t *one_at, int64_t one_plane, int64_t one_channels, const REAL *other,
    const int32_t *other_at, int64_t other_plane, int64_t other_planes, int64_t rows, REAL *sums) {
    const int64_t tiles = (other_planes + VECTORS - 1) / VECTORS, width = other_planes * LANES;
    for (int64_t plane = 0, tile = 0; tile < tiles; tile++) {
        const int64_t vectors = (other_planes - plane) / (tiles - tile) + ((other_planes - plane) % (tiles - tile) > 0);
        for (int64_t channel = 0; channel < one_channels;) {
            const int64_t left = one_channels - channel;
            const REAL *from = one + channel / LANES * one_plane + channel % LANES;
#define TILE(lanes, vectors) \
    NAME(outer_tile)(lanes, vectors, from, one_at, other + plane * other_plane, other_at, other_plane, rows, \
                     sums + channel * width + plane * LANES, width)
#define ALL(vectors) \
    if (ROWS == 8 && LANES >= 8 && left > 4) { TILE(ROWS, vectors); channel += ROWS; } \
    else if (LANES >= 4) { TILE(4, vectors); channel += 4; } \
    else { TILE(LANES, vectors); channel += LANES; }
            if (vectors == 1) { ALL(1) }
            else if (vectors == 2) { ALL(2) }
            else { ALL(3) }
#undef ALL
#undef TILE
        }
        plane += vectors;
    }
}

/* One output class of a strided convolution's gradient, in one dimension: input positions `phase`, `phase` + stride,
   ..., each of which `taps` output positions from `first` on contribute to, with kernel positions `tap`, `tap` - stride ... */
#ifndef CLASSES
#define CLASSES
typedef struct { int64_t phase, count, first, taps, tap; } phase_class;

static phase_class class_of(int64_t phase, int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
    phase_class of = {phase, (size - phase + stride - 1) / stride, 0, 0, 0};
    for (int64_t tap = 0; tap < kernel; tap++)
        if ((phase + padding - tap) % stride == 0) {
            of.taps++;
            of.tap = tap;
            of.first = (phase + padding - tap) / stride;
        }
    return of;
}

/* How far the classes of one dimension reach beyond `out` positions: before the first, and behind the last. */
static void margins(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t padding, int64_t *before, int64_t *behind) {
    *before = *behind = 0;
    for (int64_t phase = 0; phase < stride && phase < size; phase++) {
        const phase_class of = class_of(phase, size, kernel, stride, padding);
        if (!of.taps) continue;
        if (-of.first > *before) *before = -of.first;
        const int64_t last = of.count - 1 + of.first + of.taps - 1 - (out - 1);
        if (last > *behind) *behind = last;
    }
}
#endif

/* The sizes of a dense convolution's work. A pointwise one sees each position as an image of its own. */
#ifndef SHAPE
#define SHAPE
typedef struct {
    int64_t images, height, width, out_height, out_width, kernel, stride, padding; /* of what it goes over */
    int64_t padded_height, padded_width;    /* of the input with its margin */
    int64_t before_y, before_x, wide_height, wide_width; /* of the output's gradient with its margin */
    int64_t group; /* images at a time */
} shape;

/* With the sizes of the margins, from those of the maps. */
static shape with_margins(shape s) {
    int64_t behind_y, behind_x;
    margins(s.height, s.out_height, s.kernel, s.stride, s.padding, &s.before_y, &behind_y);
    margins(s.width, s.out_width, s.kernel, s.stride, s.padding, &s.before_x, &behind_x);
    s.wide_height = s.before_y + s.out_height + behind_y;
    s.wide_width = s.before_x + s.out_width + behind_x;
    s.padded_height = (s.out_height - 1) * s.stride + s.kernel;
    s.padded_width = (s.out_width - 1) * s.stride + s.kernel;
    if (s.padded_height < s.height + s.padding) s.padded_height = s.height + s.padding;
    if (s.padded_width < s.width + s.padding) s.padded_width = s.width + s.padding;
    return s;
}
#endif

static shape NAME(shape_of)(const convolution *of) {
    const node *from = of->from, *to = of->to;
    const int simple = of->kernel == 1 && of->stride == 1 && of->padding == 0;
    shape s = with_margins((shape){
        .images = simple ? NAME(positions)(from) : from->images, .height = simple ? 1 : from->height,
        .width = simple ? 1 : from->width, .out_height = simple ? 1 : to->height, .out_width = simple ? 1 : to->width,
        .kernel = of->kernel, .stride = of->stride, .padding = of->padding});
    const int64_t bytes = sizeof(REAL) * LANES *
        (NAME(planes)(from->channels) * s.padded_height * s.padded_width +
         NAME(planes)(to->channels) * s.wide_height * s.wide_width);
    s.group = 196608 / bytes; /* so that a group stays in the cache */
    const int64_t least = (32 + s.out_height * s.out_width - 1) / (s.out_height * s.out_width);
    if (s.group < least) s.group = least;
    if (s.group > 512) s.group = 512;
    if (s.group > s.images) s.group = s.images;
    if (simple && s.group > ROWS) s.group -= s.group % ROWS;
    return s;
}

/* The input of images `first` to `first` + `count` as the convolution reads it, within its margin of zeros. */
static void NAME(read_padded)(const convolution *of, const shape *s, int64_t first, int64_t count, REAL *to, int64_t plane_size) {
    const node *from = of->from;
    for (int64_t plane = 0; plane < NAME(planes)(from->channels); plane++) {
        if (s->padded_width == 1 && s->padded_height == 1) {
            const int64_t map = from->gate ? from->height * from->width : count;
            for (int64_t i = 0; i < count;) { /* a gate is another one for each image */
                int64_t here = from->gate ? map - (first + i) % map : count;
                if (here > count - i) here = count - i;
                NAME(view)(from, plane, first + i, here, to + plane * plane_size + i * LANES);
                i += here;
            }
            continue;
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t y = 0; y < s->height; y++)
                NAME(view)(from, plane, ((first + i) * s->height + y) * s->width, s->width,
                           to + plane * plane_size +
                               ((i * s->padded_height + y + s->padding) * s->padded_width + s->padding) * LANES);
    }
}

static void NAME(read_wide)(const convolution *of, const shape *s, int64_t first, int64_t count, REAL *to, int64_t plane_size) {
    const node *from = of->to;
    for (int64_t plane = 0; plane < NAME(planes)(from->channels); plane++) {
        if (s->wide_width == 1 && s->wide_height == 1) {
            NAME(gradient_of)(from, plane, first, count, to + plane * plane_size);
            continue;
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t y = 0; y < s->out_height; y++)
                NAME(gradient_of)(from, plane, ((first + i) * s->out_height + y) * s->out_width, s->out_width,
                                  to + plane * plane_size +
                                      ((i * s->wide_height + y + s->before_y) * s->wide_width + s->before_x) * LANES);
    }
}

/* Where each output position of `count` images begins: in the padded input, in the wide gradient, in a plane. */
static void NAME(rows_of)(const shape *s, int64_t count, int32_t *input, int32_t *wide, int32_t *plain) {
    int64_t row = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t y = 0; y < s->out_height; y++)
            for (int64_t x = 0; x < s->out_width; x++, row++) {
                input[row] = ((i * s->padded_height + y * s->stride) * s->padded_width + x * s->stride) * LANES;
                if (wide) wide[row] = ((i * s->wide_height + y + s->before_y) * s->wide_width + x + s->before_x) * LANES;
                if (plain) plain[row] = row * LANES;
            }
}

static int NAME(dense_forward)(const convolution *of) {
    const node *from = of->from, *to = of->to;
    const shape s = NAME(shape_of)(of);
    const int64_t in_planes = NAME(planes)(from->channels), out_planes = NAME(planes)(to->channels);
    const int64_t taps = s.kernel * s.kernel, per_image = s.out_height * s.out_width, rows = s.group * per_image;
    const int64_t plane_size = s.group * s.padded_height * s.padded_width * LANES;
    const int64_t num_segments = taps * in_planes, depth = taps * from->channels, out_width = out_planes * LANES;
    arena a = begin_arena(sizeof(REAL) * (in_planes * plane_size + depth * out_width) + 8 * rows + 16 * num_segments);
    if (!a.at) return 1;
    REAL *input = take(&a, sizeof(REAL) * in_planes * plane_size), *weights = take(&a, sizeof(REAL) * depth * out_width);
    segment *segments = take(&a, sizeof(segment) * num_segments);
    int32_t *input_at = take(&a, 4 * rows), *plain = take(&a, 4 * rows);
    REAL *weight = weights;
    for (int64_t tap = 0, segment_of = 0; tap < taps; tap++)
        for (int64_t plane = 0; plane < in_planes; plane++, segment_of++) {
            const int64_t left = from->channels - plane * LANES, lanes = left < LANES ? left : LANES;
            segments[segment_of].offset = plane * plane_size + (tap / s.kernel * s.padded_width + tap % s.kernel) * LANES;
            segments[segment_of].lanes = lanes;
            for (int64_t lane = 0; lane < lanes; lane++, weight += out_width)
                for (int64_t out = 0; out < out_width; out++)
                    weight[out] = out < to->channels ? NAME(weight_at)(of, out, plane * LANES + lane, tap) : 0;
        }
    memset(input, 0, sizeof(REAL) * in_planes * plane_size);
    NAME(rows_of)(&s, s.group, input_at, 0, plain);
    for (int64_t first = 0; first < s.images; first += s.group) {
        const int64_t count = s.images - first < s.group ? s.images - first : s.group;
        NAME(read_padded)(of, &s, first, count, input, plane_size);
        NAME(product)(input, input_at, count * per_image, NAME(at)(to->values, to, 0, first * per_image), plain,
                      NAME(positions)(to) * LANES, out_planes, segments, num_segments, weights);
        if (to->normalised)
            for (int64_t plane = 0; plane < out_planes; plane++)
                NAME(add_moments)(to, plane, first * per_image, count * per_image);
    }
    return 0;
}

/* Writes the gradient of the weights from its sums: [tap][channel of one][channel of the other]. */
static void NAME(write_weight_gradient)(const convolution *of, const REAL *sums, int by_input) {
    const int64_t in = of->from->channels, out = of->to->channels, taps = of->kernel * of->kernel;
    const int64_t in_width = NAME(planes)(in) * LANES, out_width = NAME(planes)(out) * LANES;
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++)
                ((REAL *)of->weight_gradient)[NAME(weight_offset)(of, o, i, tap)] =
                    by_input ? sums[(tap * in_width + i) * out_width + o] : sums[(tap * out_width + o) * in_width + i];
}

/* Rows, segments and packed weights of one class of input positions. */
static void NAME(input_class)(
    const convolution *of, const shape *s, int64_t count, phase_class y, phase_class x, int64_t plane_size, int32_t *in_at,
    int32_t *out_at, segment *segments, REAL *weights) {
    const int64_t out_planes = NAME(planes)(of->to->channels), in_width = NAME(planes)(of->from->channels) * LANES;
    int64_t rows = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t m = 0; m < y.count; m++)
            for (int64_t n = 0; n < x.count; n++, rows++) {
                in_at[rows] = ((i * s->wide_height + m + y.first + s->before_y) * s->wide_width + n + x.first + s->before_x) * LANES;
                out_at[rows] = ((i * s->height + m * s->stride + y.phase) * s->width + n * s->stride + x.phase) * LANES;
            }
    for (int64_t j = 0; j < y.taps; j++)
        for (int64_t k = 0; k < x.taps; k++) {
            const int64_t tap = (y.tap - j * s->stride) * s->kernel + x.tap - k * s->stride;
            for (int64_t plane = 0; plane < out_planes; plane++, segments++) {
                const int64_t left = of->to->channels - plane * LANES, lanes = left < LANES ? left : LANES;
                segments->offset = plane * plane_size + (j * s->wide_width + k) * LANES;
                segments->lanes = lanes;
                for (int64_t lane = 0; lane < lanes; lane++, weights += in_width)
                    for (int64_t in = 0; in < in_width; in++)
                        weights[in] = in < of->from->channels ? NAME(weight_at)(of, plane * LANES + lane, in, tap) : 0;
            }
        }
}

/* Gradients of the weights and, where it is wanted, of the input. */
static int NAME(dense_backward)(const convolution *of) {
    const node *from = of->from, *to = of->to;
    const shape s = NAME(shape_of)(of);
    const int64_t in_planes = NAME(planes)(from->channels), out_planes = NAME(planes)(to->channels);
    const int64_t in_width = in_planes * LANES, out_width = out_planes * LANES, taps = s.kernel * s.kernel;
    const int64_t per_image = s.out_height * s.out_width, rows = s.group * per_image;
    const int64_t in_rows = s.group * s.height * s.width, num_classes = s.stride * s.stride;
    const int64_t input_size = s.group * s.padded_height * s.padded_width * LANES;
    const int64_t wide_size = s.group * s.wide_height * s.wide_width * LANES;
    const int64_t total = sizeof(REAL) * (in_planes * input_size + out_planes * wide_size + taps * in_width * out_width +
                                          in_planes * in_rows * LANES + taps * to->channels * in_width);
    arena a = begin_arena(total + 8 * rows + 8 * in_rows + sizeof(segment) * taps * out_planes);
    if (!a.at) return 1;
    REAL *input = take(&a, sizeof(REAL) * in_planes * input_size), *wide = take(&a, sizeof(REAL) * out_planes * wide_size);
    REAL *sums = take(&a, sizeof(REAL) * taps * in_width * out_width);
    REAL *result = take(&a, sizeof(REAL) * in_planes * in_rows * LANES);
    REAL *weights = take(&a, sizeof(REAL) * taps * to->channels * in_width);
    segment *segments = take(&a, sizeof(segment) * taps * out_planes);
    int32_t *input_at = take(&a, 4 * rows), *wide_at = take(&a, 4 * rows);
    int32_t *class_in = take(&a, 4 * in_rows), *class_out = take(&a, 4 * in_rows); /* of all classes */
    memset(input, 0, sizeof(REAL) * in_planes * input_size);
    memset(wide, 0, sizeof(REAL) * out_planes * wide_size);
    memset(sums, 0, sizeof(REAL) * taps * in_width * out_width);
    NAME(rows_of)(&s, s.group, input_at, wide_at, 0);
    /* The cheaper side is the one whose channels fill its vectors worse. */
    const int by_input = from->channels * out_planes <= to->channels * in_planes;
    for (int64_t first = 0; first < s.images; first += s.group) {
        const int64_t count = s.images - first < s.group ? s.images - first : s.group;
        NAME(read_padded)(of, &s, first, count, input, input_size);
        NAME(read_wide)(of, &s, first, count, wide, wide_size);
        for (int64_t tap = 0; tap < taps; tap++) {
            const REAL *tapped = input + (tap / s.kernel * s.padded_width + tap % s.kernel) * LANES;
            REAL *here = sums + tap * in_width * out_width;
            if (by_input)
                NAME(outer)(tapped, input_at, input_size, from->channels, wide, wide_at, wide_size, out_planes,
                            count * per_image, here);
            else
                NAME(outer)(wide, wide_at, wide_size, to->channels, tapped, input_at, input_size, in_planes,
                            count * per_image, here);
        }
        if (!of->wanted) continue;
        REAL *packed = weights;
        segment *listed = segments;
        int64_t row = 0;
        for (int64_t one = 0; one < num_classes; one++) {
            const phase_class y = class_of(one / s.stride, s.height, s.kernel, s.stride, s.padding);
            const phase_class x = class_of(one % s.stride, s.width, s.kernel, s.stride, s.padding);
            if (first == 0)
                NAME(input_class)(of, &s, s.group, y, x, wide_size, class_in + row, class_out + row, listed, packed);
            const int64_t num_segments = y.taps * x.taps * out_planes;
            NAME(product)(wide, class_in + row, count * y.count * x.count, result, class_out + row, in_rows * LANES, in_planes,
                          listed, num_segments, packed);
            row += s.group * y.count * x.count;
            listed += num_segments;
            packed += y.taps * x.taps * to->channels * in_width;
        }
        const int64_t map = s.height * s.width;
        for (int64_t plane = 0; plane < in_planes; plane++)
            NAME(settle)(from, plane, first * map, count * map, result + plane * in_rows * LANES, of->more, of->last);
    }
    NAME(write_weight_gradient)(of, sums, by_input);
    return 0;
}
