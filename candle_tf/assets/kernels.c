/* section: common */
/* How the windows of a convolution or a pooling lie on its input. */
struct shape {
    int16_t height, width, out_height, out_width;
    int16_t kernel[2], stride[2], dilation[2], before[2];
};

/* Where one window begins on the map, and which of its taps lie on it. */
struct window {
    int start[2], first[2], last[2];
};

/* Where `count` numbers of a window are: in the strip of its rows, and among `all` weights. */
struct places {
    const int32_t *from, *at;
    int count, all;
};

/* What follows a layer on the channels of one pixel. */
typedef void finish(struct SCRATCH *s, const void *row, size_t pixel);

/* A binary convolution by some set of instructions. */
typedef void convolution(
    struct SCRATCH *s, const struct shape *shape, const uint64_t *map, int channels,
    const uint64_t *weights, int outputs, int zeros_outside, finish *then);

/* A convolution of real numbers. */
typedef void products(
    struct SCRATCH *s, const struct shape *shape, const float *map, int channels,
    const WEIGHT *weights, int outputs, finish *then);

/* A convolution of each channel by itself. */
typedef void channelwise(
    struct SCRATCH *s, const struct shape *shape, const float *map, int channels,
    const float *weights, finish *then);

/* The convolutions by some set of instructions. */
struct kernels {
    convolution *binary;
    products *real;
    channelwise *depthwise;
};

static ONCE struct window window_of(const struct shape *shape, int y, int x)
{
    const int size[2] = {shape->height, shape->width};
    struct window window;
    int axis;
    window.start[0] = y * shape->stride[0] - shape->before[0];
    window.start[1] = x * shape->stride[1] - shape->before[1];
    for (axis = 0; axis < 2; axis++) {
        int start = window.start[axis], step = shape->dilation[axis];
        int end = start + (shape->kernel[axis] - 1) * step + 1;
        window.first[axis] = start < 0 ? (step - 1 - start) / step : 0;
        window.last[axis] = shape->kernel[axis];
        if (end > size[axis])
            window.last[axis] = (size[axis] - start + step - 1) / step;
    }
    return window;
}

/* The input pixel under a tap inside the map. */
static INLINE size_t under(const struct shape *shape, const struct window *window, int y, int x)
{
    size_t row = (size_t)(window->start[0] + y * shape->dilation[0]);
    size_t column = (size_t)(window->start[1] + x * shape->dilation[1]);
    return row * (size_t)shape->width + column;
}

/* exp(x) to 2 units in the last place, without a library and alike on every machine. */
static SMALL float exponential(float x)
{
    float n, r, power;
    uint32_t bits;
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    n = (float)(int)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
    r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    power = 1.0f / 720.0f;
    power = power * r + 1.0f / 120.0f;
    power = power * r + 1.0f / 24.0f;
    power = power * r + 1.0f / 6.0f;
    power = power * r + 0.5f;
    power = power * r + 1.0f;
    power = power * r + 1.0f;
    bits = (uint32_t)((int)n + 127) << 23;
    memcpy(&r, &bits, sizeof r);
    return power * r;
}
/* section: strip */
/* Pixels in a row of the strip. */
static INLINE int strip_width(const struct shape *shape)
{
    return (shape->out_width - 1) * shape->stride[1] +
           (shape->kernel[1] - 1) * shape->dilation[1] + 1;
}

/* Copies the rows under row y of the outputs, with zeros outside the map.
 *
 * So the windows of that row overlap in memory, and none needs a copy of its own. */
static ONCE void fill_strip(
    const struct shape *shape, const void *map, size_t unit, int y, void *strip)
{
    const char *from = map;
    char *to = strip;
    int width = strip_width(shape), left = shape->before[1], row, k;
    int inside = width - left < shape->width ? width - left : shape->width;
    for (k = 0; k < shape->kernel[0]; k++, to += (size_t)width * unit) {
        row = y * shape->stride[0] - shape->before[0] + k * shape->dilation[0];
        memset(to, 0, (size_t)width * unit);
        if (row >= 0 && row < shape->height)
            memcpy(
                to + (size_t)left * unit, from + (size_t)(row * shape->width) * unit,
                (size_t)inside * unit);
    }
}

/* Lists the places of those numbers of a window that lie in a part of it. */
static ONCE struct places places_of(
    struct SCRATCH *s, const struct shape *shape, const struct window *part, int channels)
{
    struct places places = {s->from, s->at, 0, shape->kernel[0] * shape->kernel[1] * channels};
    int width = strip_width(shape), y, x, c;
    for (y = part->first[0]; y < part->last[0]; y++)
        for (x = part->first[1]; x < part->last[1]; x++)
            for (c = 0; c < channels; c++, places.count++) {
                s->from[places.count] = (y * width + x * shape->dilation[1]) * channels + c;
                s->at[places.count] = (y * shape->kernel[1] + x) * channels + c;
            }
    return places;
}

/* The places of a whole window. */
static ONCE struct places all_places(struct SCRATCH *s, const struct shape *shape, int channels)
{
    struct window whole = {{0, 0}, {0, 0}, {0, 0}};
    whole.last[0] = shape->kernel[0];
    whole.last[1] = shape->kernel[1];
    return places_of(s, shape, &whole, channels);
}
/* section: pack */
/* Sets a bit for each channel below its threshold; with step 0, all share 8 thresholds. */
static ONCE void pack(
    const float *row, const float *thresholds, int step, int channels, uint64_t *bits)
{
    int c, i;
    for (c = 0; c < channels; c += 64, bits++) {
        uint64_t word = 0;
        int count = channels - c < 64 ? channels - c : 64;
        i = 0;
#if defined(DISPATCH) /* every x86-64 has SSE2 */
        for (; i + 8 <= count; i += 8) {
            const float *at = thresholds + (c + i) * step;
            int low = _mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(row + c + i), _mm_loadu_ps(at)));
            int high = _mm_movemask_ps(
                _mm_cmplt_ps(_mm_loadu_ps(row + c + i + 4), _mm_loadu_ps(at + 4)));
            word |= (uint64_t)(unsigned)(low | high << 4) << i;
        }
#endif
        for (; i < count; i++)
            word |= (uint64_t)(row[c + i] < thresholds[(c + i) * step]) << i;
        *bits = word;
    }
}
/* section: dense */
/* The classifier: products with 16-bit weights, of which each output has a scale that follows. */
static ONCE void dense(
    struct SCRATCH *s, const float *map, int channels, const int16_t *weights, int outputs,
    finish *then)
{
    float *restrict sums = s->products;
    int i, o;
    for (o = 0; o < outputs; o++)
        sums[o] = 0.0f;
    for (i = 0; i < channels; i++, weights += outputs)
        for (o = 0; o < outputs; o++)
            sums[o] += map[i] * (float)weights[o];
    then(s, sums, 0);
}
/* section: average */
/* The mean of the pixels inside the map. */
static ONCE void average(
    struct SCRATCH *s, const struct shape *shape, const float *map, int channels,
    finish *then)
{
    float *restrict out = s->row;
    size_t pixel = 0;
    int row, column, y, x, c;
    for (row = 0; row < shape->out_height; row++)
        for (column = 0; column < shape->out_width; column++, pixel++) {
            struct window window = window_of(shape, row, column);
            for (c = 0; c < channels; c++)
                out[c] = 0.0f;
            for (y = window.first[0]; y < window.last[0]; y++)
                for (x = window.first[1]; x < window.last[1]; x++) {
                    const float *in = map + under(shape, &window, y, x) * (size_t)channels;
                    for (c = 0; c < channels; c++)
                        out[c] += in[c];
                }
            y = window.last[0] - window.first[0];
            x = window.last[1] - window.first[1];
            for (c = 0; c < channels; c++)
                out[c] /= (float)(y * x);
            then(s, out, pixel);
        }
}
/* section: max */
/* The largest of the pixels inside the map. */
static ONCE void max(
    struct SCRATCH *s, const struct shape *shape, const float *map, int channels,
    finish *then)
{
    float *restrict out = s->row;
    size_t pixel = 0;
    int row, column, y, x, c;
    for (row = 0; row < shape->out_height; row++)
        for (column = 0; column < shape->out_width; column++, pixel++) {
            struct window window = window_of(shape, row, column);
            for (c = 0; c < channels; c++)
                out[c] = -3.4028234e38f;
            for (y = window.first[0]; y < window.last[0]; y++)
                for (x = window.first[1]; x < window.last[1]; x++) {
                    const float *in = map + under(shape, &window, y, x) * (size_t)channels;
                    for (c = 0; c < channels; c++)
                        out[c] = in[c] > out[c] ? in[c] : out[c];
                }
            then(s, out, pixel);
        }
}
/* section: binary */
#if !defined(AVX2) && !defined(__ARM_NEON)
static INLINE int32_t FN(ones)(uint64_t x)
{
#if defined(__POPCNT__)
    return (int32_t)__builtin_popcountll(x);
#else
    x -= x >> 1 & 0x5555555555555555ULL;
    x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    return (int32_t)(x * 0x0101010101010101ULL >> 56);
#endif
}
#endif

/* Counts, for each output, the bits in which the words of `pixels` windows differ from the weights.
 *
 * The windows begin `step` words apart. The weights of 8 outputs lie side by side, word by word.
 * `whole` is the sum where none differs. With AVX2, the windows have only the low half of each
 * byte, and the high halves follow STRIP words later. */
static BLOCK TARGET void FN(count)(
    const uint64_t *windows, size_t step, int pixels, const struct places *places,
    const uint64_t *weights, int outputs, int32_t whole, int32_t *sums)
{
    int n = places->count, group, p, i, stop;
    for (group = 0; group < outputs; group += 8, weights += 8 * places->all) {
#if defined(AVX512)
        __m512i total[PIXELS];
        UNROLL
        for (p = 0; p < pixels; p++)
            total[p] = _mm512_setzero_si512();
        for (i = 0; i < n; i++) {
            const uint64_t *window = windows + places->from[i];
            __m512i w = _mm512_loadu_si512((const void *)(weights + 8 * places->at[i]));
            UNROLL
            for (p = 0; p < pixels; p++) {
                __m512i x = _mm512_set1_epi64((long long)window[p * step]);
                x = _mm512_popcnt_epi64(_mm512_xor_si512(x, w));
                total[p] = _mm512_add_epi64(total[p], x);
            }
        }
        UNROLL
        for (p = 0; p < pixels; p++) {
            __m256i counted = _mm512_cvtepi64_epi32(total[p]);
            counted = _mm256_sub_epi32(_mm256_set1_epi32(whole), _mm256_slli_epi32(counted, 1));
            _mm256_storeu_si256((__m256i *)(void *)(sums + p * outputs + group), counted);
        }
        (void)stop;
#elif defined(AVX2)
        const __m256i half = _mm256_set1_epi8(15);
        const __m256i ones = _mm256_setr_epi8( /* in each half byte */
            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        __m256i total[PIXELS][2];
        UNROLL
        for (p = 0; p < pixels; p++)
            total[p][0] = total[p][1] = _mm256_setzero_si256();
        for (i = 0; i < n;) {
            __m256i bytes[PIXELS][2]; /* each holds 31 words' counts of up to 8 */
            stop = i + 31 < n ? i + 31 : n;
            UNROLL
            for (p = 0; p < pixels; p++)
                bytes[p][0] = bytes[p][1] = _mm256_setzero_si256();
            for (; i < stop; i++) {
                const uint64_t *window = windows + places->from[i];
                const uint64_t *at = weights + 8 * places->at[i];
                __m256i w[2][2];
                int q, h;
                UNROLL
                for (q = 0; q < 2; q++) {
                    w[0][q] = _mm256_loadu_si256((const void *)(at + 4 * q));
                    w[1][q] = _mm256_and_si256(_mm256_srli_epi16(w[0][q], 4), half);
                    w[0][q] = _mm256_and_si256(w[0][q], half);
                }
                UNROLL
                for (p = 0; p < pixels; p++)
                    UNROLL
                    for (h = 0; h < 2; h++) {
                        __m256i x = _mm256_set1_epi64x((long long)window[p * step + h * STRIP]);
                        UNROLL
                        for (q = 0; q < 2; q++)
                            bytes[p][q] = _mm256_add_epi8(
                                bytes[p][q],
                                _mm256_shuffle_epi8(ones, _mm256_xor_si256(x, w[h][q])));
                    }
            }
            UNROLL
            for (p = 0; p < pixels; p++) {
                const __m256i zero = _mm256_setzero_si256();
                total[p][0] = _mm256_add_epi64(total[p][0], _mm256_sad_epu8(bytes[p][0], zero));
                total[p][1] = _mm256_add_epi64(total[p][1], _mm256_sad_epu8(bytes[p][1], zero));
            }
        }
        UNROLL
        for (p = 0; p < pixels; p++) {
            __m256i counted = _mm256_castps_si256(_mm256_shuffle_ps(
                _mm256_castsi256_ps(total[p][0]), _mm256_castsi256_ps(total[p][1]), 0x88));
            counted = _mm256_permute4x64_epi64(counted, 0xd8);
            counted = _mm256_sub_epi32(_mm256_set1_epi32(whole), _mm256_slli_epi32(counted, 1));
            _mm256_storeu_si256((__m256i *)(void *)(sums + p * outputs + group), counted);
        }
#elif defined(__ARM_NEON)
        uint32x4_t total[PIXELS][4];
        int q;
        UNROLL
        for (p = 0; p < pixels; p++)
            UNROLL
            for (q = 0; q < 4; q++)
                total[p][q] = vdupq_n_u32(0);
        for (i = 0; i < n;) {
            uint8x16_t bytes[PIXELS][4]; /* each holds 31 words' counts of up to 8 */
            stop = i + 31 < n ? i + 31 : n;
            UNROLL
            for (p = 0; p < pixels; p++)
                UNROLL
                for (q = 0; q < 4; q++)
                    bytes[p][q] = vdupq_n_u8(0);
            for (; i < stop; i++) {
                const uint64_t *window = windows + places->from[i];
                UNROLL
                for (q = 0; q < 4; q++) {
                    uint64x2_t w = vld1q_u64(weights + 8 * places->at[i] + 2 * q);
                    UNROLL
                    for (p = 0; p < pixels; p++) {
                        uint64x2_t x = veorq_u64(vdupq_n_u64(window[p * step]), w);
                        bytes[p][q] = vaddq_u8(bytes[p][q], vcntq_u8(vreinterpretq_u8_u64(x)));
                    }
                }
            }
            UNROLL
            for (p = 0; p < pixels; p++)
                UNROLL
                for (q = 0; q < 4; q++)
                    total[p][q] = vpadalq_u16(total[p][q], vpaddlq_u8(bytes[p][q]));
        }
        UNROLL
        for (p = 0; p < pixels; p++)
            UNROLL
            for (q = 0; q < 4; q++) {
                int32_t *to = sums + p * outputs + group + 2 * q;
                uint64x2_t counted = vpaddlq_u32(total[p][q]);
                to[0] = whole - 2 * (int32_t)vgetq_lane_u64(counted, 0);
                to[1] = whole - 2 * (int32_t)vgetq_lane_u64(counted, 1);
            }
#else
        int o;
        (void)stop;
        for (p = 0; p < pixels; p++) {
            int32_t total[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            for (i = 0; i < n; i++) {
                uint64_t x = windows[places->from[i] + p * step];
                for (o = 0; o < 8; o++)
                    total[o] += FN(ones)(x ^ weights[8 * places->at[i] + o]);
            }
            for (o = 0; o < 8; o++)
                sums[p * outputs + group + o] = whole - 2 * total[o];
        }
#endif
    }
}

/* A convolution of signs with signs: the sums of their products, -1 or 1 each. */
static ONCE TARGET void FN(binary)(
    struct SCRATCH *s, const struct shape *shape, const uint64_t *map, int channels,
    const uint64_t *weights, int outputs, int zeros_outside, finish *then)
{
    int words = (channels + 63) / 64, y, x, p, count;
    struct places places = all_places(s, shape, words);
    size_t step = (size_t)(shape->stride[1] * words), pixel = 0;
    for (y = 0; y < shape->out_height; y++) {
        fill_strip(shape, map, (size_t)words * sizeof *map, y, s->strip.bits);
#if defined(AVX2) && !defined(AVX512) /* part the half bytes */
        for (p = 0; p < shape->kernel[0] * strip_width(shape) * words; p++) {
            const uint64_t half = 0x0f0f0f0f0f0f0f0fULL, word = s->strip.bits[p];
            s->strip.bits[p] = word & half;
            s->strip.bits[STRIP + p] = word >> 4 & half;
        }
#endif
        for (x = 0; x < shape->out_width; x += count) {
            const uint64_t *windows = s->strip.bits + x * step;
            int32_t whole;
            count = shape->out_width - x < PIXELS ? 1 : PIXELS;
            if (zeros_outside) { /* count only the taps inside: pixels with other taps wait */
                struct window part = window_of(shape, y, x);
                struct window last = window_of(shape, y, x + count - 1);
                places = places_of(s, shape, &part, words);
                if (part.first[1] != last.first[1] || part.last[1] != last.last[1])
                    count = 1;
            }
            whole = places.count / words * channels;
            if (count == PIXELS)
                FN(count)(windows, step, PIXELS, &places, weights, outputs, whole, s->sums);
            else
                FN(count)(windows, step, 1, &places, weights, outputs, whole, s->sums);
            for (p = 0; p < count; p++, pixel++)
                then(s, s->sums + p * outputs, pixel);
        }
    }
}
/* section: real */
/* Sums of products with real numbers: the weights of 8 outputs lie side by side. */
#if defined(AVX2)
/* Those of `groups` times 8 outputs at once, for which each input is loaded once. */
static INLINE TARGET void FN(groups)(
    const float *windows, size_t step, int pixels, const struct places *places,
    const WEIGHT *weights, int groups, int outputs, float *sums)
{
    __m256 total[PIXELS][2], w[2];
    const float *window[PIXELS];
    int n = places->count, p, i, g;
    UNROLL
    for (p = 0; p < pixels; p++) {
        window[p] = windows + p * step;
        UNROLL
        for (g = 0; g < groups; g++)
            total[p][g] = _mm256_setzero_ps();
    }
    for (i = 0; i < n; i++) {
        UNROLL
        for (g = 0; g < groups; g++)
            w[g] = LOAD(weights + 8 * (g * n + i));
        UNROLL
        for (p = 0; p < pixels; p++) {
            __m256 x = _mm256_broadcast_ss(window[p] + places->from[i]);
            UNROLL
            for (g = 0; g < groups; g++)
                total[p][g] = _mm256_add_ps(total[p][g], _mm256_mul_ps(x, w[g]));
        }
    }
    UNROLL
    for (p = 0; p < pixels; p++)
        UNROLL
        for (g = 0; g < groups; g++)
            _mm256_storeu_ps(sums + p * outputs + 8 * g, total[p][g]);
}
#endif

static BLOCK TARGET void FN(multiply)(
    const float *windows, size_t step, int pixels, const struct places *places,
    const WEIGHT *weights, int outputs, float *sums)
{
#if defined(AVX2)
    int n = places->count, group = 0;
    for (; group + 16 <= outputs; group += 16, weights += 16 * n)
        FN(groups)(windows, step, pixels, places, weights, 2, outputs, sums + group);
    if (group < outputs)
        FN(groups)(windows, step, pixels, places, weights, 1, outputs, sums + group);
#else
    int n = places->count, group, p, i, o;
    for (group = 0; group < outputs; group += 8, weights += 8 * n)
        for (p = 0; p < pixels; p++) {
            float total[8] = {0.0f};
            for (i = 0; i < n; i++)
                for (o = 0; o < 8; o++)
                    total[o] += windows[places->from[i] + p * step] * (float)weights[8 * i + o];
            for (o = 0; o < 8; o++)
                sums[p * outputs + group + o] = total[o];
        }
#endif
}

/* A convolution of real numbers; the scale of the weights follows. */
static ONCE TARGET void FN(real)(
    struct SCRATCH *s, const struct shape *shape, const float *map, int channels,
    const WEIGHT *weights, int outputs, finish *then)
{
    int y, x, p, count;
    struct places places = all_places(s, shape, channels);
    size_t step = (size_t)(shape->stride[1] * channels), pixel = 0;
    for (y = 0; y < shape->out_height; y++) {
        fill_strip(shape, map, (size_t)channels * sizeof *map, y, s->strip.reals);
        for (x = 0; x < shape->out_width; x += count) {
            const float *windows = s->strip.reals + x * step;
            count = shape->out_width - x < PIXELS ? 1 : PIXELS;
            if (count == PIXELS)
                FN(multiply)(windows, step, PIXELS, &places, weights, outputs, s->products);
            else
                FN(multiply)(windows, step, 1, &places, weights, outputs, s->products);
            for (p = 0; p < count; p++, pixel++)
                then(s, s->products + p * outputs, pixel);
        }
    }
}
/* section: depthwise */
/* A convolution of each channel by itself. */
static ONCE TARGET void FN(depthwise)(
    struct SCRATCH *s, const struct shape *shape, const float *map, int channels,
    const float *weights, finish *then)
{
    float *restrict out = s->row;
    size_t pixel = 0;
    int row, column, y, x, c;
    for (row = 0; row < shape->out_height; row++)
        for (column = 0; column < shape->out_width; column++, pixel++) {
            struct window window = window_of(shape, row, column);
            for (c = 0; c < channels; c++)
                out[c] = 0.0f;
            for (y = window.first[0]; y < window.last[0]; y++)
                for (x = window.first[1]; x < window.last[1]; x++) {
                    const float *in = map + under(shape, &window, y, x) * (size_t)channels;
                    const float *w = weights + (y * shape->kernel[1] + x) * channels;
                    for (c = 0; c < channels; c++)
                        out[c] += in[c] * w[c];
                }
            then(s, out, pixel);
        }
}
