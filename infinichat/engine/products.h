/* Matrices times the inputs of one or more conversations: what step.c's time goes into.
 *
 * A matrix is stored in tiles of 16 rows by 32 columns, so that a tile's 16 results are one vector register
 * and the weights are read front to back, once:
 *
 *   Q4   w = zero + scale * q, q in 0..15    256 bytes of q, 16 scales, 16 zeros (float16)
 *   Q8   w = scale * (q - 128), q in 0..255  512 bytes of q, 16 scales (float16)
 *
 * Within a tile the bytes are in the order in which one instruction multiplies 16 rows by 4 columns. An input
 * becomes whole numbers with one scale for each 32 columns, x = s (coarse + fine / 254), 8 bits each, so that
 * products are whole numbers and exact:
 *
 *   y_r = sum over groups of  scale_r s sum(q (coarse + fine / 254)) + zero_r sum(x)
 *
 * Without the fine part perplexity was 0.3 % worse than with bfloat16 inputs; with it nothing is lost that could
 * be measured, and as the weights are read once either way it costs little.
 *
 * Of several inputs MOST are multiplied with a tile while it is unpacked in registers, and the others while its
 * row of tiles is in the nearest cache. Every input's sums are added up in the same order however many there are
 * beside it: its results are the same to the last bit.
 */

#include <math.h>
#include <string.h>

#include "tiles.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define VNNI 1
#endif

#define FINE 254.0f
enum { MOST = 4 };

typedef struct {
    int32_t kind, rows, columns;
    const void *data;
    const float *bias; /* or NULL */
} Matrix;

/* An input rounded to 8 bits and 8 more: [columns] each; scales and sums [columns / 32]. */
typedef struct {
    int8_t *coarse, *fine;
    float *scales, *sums;
} Rounded;

static void round_input(const float *x, int n, const Rounded *to) {
    for (int g = 0; g < n / GROUP; g++) {
        const float *in = x + g * GROUP;
        int8_t *coarse = to->coarse + g * GROUP, *fine = to->fine + g * GROUP;
        float most = 0;
        for (int i = 0; i < GROUP; i++) {
            float size = fabsf(in[i]);
            most = size > most ? size : most;
        }
        float scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0;
        int32_t coarse_sum = 0, fine_sum = 0;
        for (int i = 0; i < GROUP; i++) {
            float steps = in[i] * inverse, whole = __builtin_rintf(steps);
            float rest = __builtin_rintf((steps - whole) * FINE);
            coarse[i] = (int8_t)whole;
            fine[i] = (int8_t)rest;
            coarse_sum += (int32_t)whole;
            fine_sum += (int32_t)rest;
        }
        to->scales[g] = scale;
        /* Of the rounded input: with the exact one, rounding would weigh as if all q were 8 larger. */
        to->sums[g] = scale * ((float)coarse_sum + (float)fine_sum / FINE);
    }
}

#ifdef VNNI

static inline __m512i four(const int8_t *x) {
    int32_t columns;
    memcpy(&columns, x, 4);
    return _mm512_set1_epi32(columns);
}

static inline __m512 half_floats(const uint8_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

/* What q [8] of a tile, 4 columns each, adds to the sums of one input in group g; zero: of the tile. Fused
 * operations, which no compiler puts in another order. */
static inline __m512 added(__m512 total, const __m512i *q, const Rounded *in, int g, __m512 scale, __m512 zero) {
    const int8_t *coarse = in->coarse + g * GROUP, *fine = in->fine + g * GROUP;
    __m512i c0 = _mm512_setzero_si512(), c1 = c0, f0 = c0, f1 = c0;
    for (int c = 0; c < 8; c += 2) {
        c0 = _mm512_dpbusd_epi32(c0, q[c], four(coarse + 4 * c));
        f0 = _mm512_dpbusd_epi32(f0, q[c], four(fine + 4 * c));
        c1 = _mm512_dpbusd_epi32(c1, q[c + 1], four(coarse + 4 * c + 4));
        f1 = _mm512_dpbusd_epi32(f1, q[c + 1], four(fine + 4 * c + 4));
    }
    __m512 dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(f0, f1)), _mm512_set1_ps(1 / FINE),
                                 _mm512_cvtepi32_ps(_mm512_add_epi32(c0, c1)));
    total = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(in->scales[g])), total);
    return _mm512_fmadd_ps(zero, _mm512_set1_ps(in->sums[g]), total);
}

/* One row of tiles times `count` inputs, at most MOST; the results of input i go to y + i * stride. Inlined with
 * constants, so that totals stay in registers. */
static inline __attribute__((always_inline)) void tiles_times(int kind, const uint8_t *tile, int groups,
                                                              const Rounded *in, const int count, float *y,
                                                              int64_t stride) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512 total[MOST];
    for (int i = 0; i < count; i++) total[i] = _mm512_setzero_ps();
    for (int g = 0; g < groups; g++) {
        __m512i q[8];
        __m512 scale, zero;
        if (kind == Q4) {
            for (int c = 0; c < 4; c++) {
                __m512i both = _mm512_loadu_si512(tile + 64 * c);
                q[2 * c] = _mm512_and_si512(both, low);
                q[2 * c + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            }
            scale = half_floats(tile + 256), zero = half_floats(tile + 288);
            tile += Q4_TILE;
        } else {
            for (int c = 0; c < 8; c++) q[c] = _mm512_loadu_si512(tile + 64 * c);
            scale = half_floats(tile + 512);
            zero = _mm512_mul_ps(scale, _mm512_set1_ps(-128)); /* the stored q is 128 too large */
            tile += Q8_TILE;
        }
        for (int i = 0; i < count; i++) total[i] = added(total[i], q, in + i, g, scale, zero);
    }
    for (int i = 0; i < count; i++) _mm512_storeu_ps(y + i * stride, total[i]);
}

static void block_times(int kind, const uint8_t *tile, int groups, const Rounded *in, int count, float *y,
                        int64_t stride) {
    int i = 0;
    if (kind == Q4) {
        for (; i + MOST <= count; i += MOST) tiles_times(Q4, tile, groups, in + i, MOST, y + i * stride, stride);
        for (; i + 2 <= count; i += 2) tiles_times(Q4, tile, groups, in + i, 2, y + i * stride, stride);
        for (; i < count; i++) tiles_times(Q4, tile, groups, in + i, 1, y + i * stride, stride);
    } else {
        for (; i + MOST <= count; i += MOST) tiles_times(Q8, tile, groups, in + i, MOST, y + i * stride, stride);
        for (; i + 2 <= count; i += 2) tiles_times(Q8, tile, groups, in + i, 2, y + i * stride, stride);
        for (; i < count; i++) tiles_times(Q8, tile, groups, in + i, 1, y + i * stride, stride);
    }
}

#else

static __attribute__((noinline)) void tiles_times(int kind, const uint8_t *tile, int groups, const Rounded *in,
                                                  float *y) {
    float total[ROWS] = {0};
    for (int g = 0; g < groups; g++, tile += kind == Q4 ? Q4_TILE : Q8_TILE) {
        int32_t coarse[ROWS] = {0}, fine[ROWS] = {0};
        const int8_t *xc = in->coarse + g * GROUP, *xf = in->fine + g * GROUP;
        const _Float16 *scale = (const _Float16 *)(tile + (kind == Q4 ? 256 : 512));
        for (int c = 0; c < 8; c++)
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < 4; i++) {
                    int32_t q = tile[64 * (kind == Q4 ? c / 2 : c) + 4 * r + i];
                    q = kind == Q4 ? (c % 2 ? q >> 4 : q & 15) : q - 128;
                    coarse[r] += q * xc[4 * c + i];
                    fine[r] += q * xf[4 * c + i];
                }
        for (int r = 0; r < ROWS; r++)
            total[r] += ((float)coarse[r] + (float)fine[r] / FINE) * ((float)scale[r] * in->scales[g]) +
                        (kind == Q4 ? (float)scale[ROWS + r] * in->sums[g] : 0);
    }
    memcpy(y, total, sizeof total);
}

static void block_times(int kind, const uint8_t *tile, int groups, const Rounded *in, int count, float *y,
                        int64_t stride) {
    for (int i = 0; i < count; i++) tiles_times(kind, tile, groups, in + i, y + i * stride);
}

#endif

/* Not inlined: for each number of inputs a compiler would choose another order of the sum. */
static __attribute__((noinline)) float dot(const float *row, const float *x, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += row[i] * x[i];
    return sum;
}

/* y + i * y_stride [rows] = w times x + i * x_stride [columns] for `count` inputs; `rounded` [count] is scratch. */
static void times(const Matrix *w, const float *x, int64_t x_stride, float *y, int64_t y_stride, int count,
                  const Rounded *rounded) {
    if (w->kind == F32) {
        const float *row = (const float *)w->data;
        for (int r = 0; r < w->rows; r++, row += w->columns)
            for (int i = 0; i < count; i++) y[i * y_stride + r] = dot(row, x + i * x_stride, w->columns);
    } else {
        int groups = w->columns / GROUP;
        int64_t step = (int64_t)groups * (w->kind == Q4 ? Q4_TILE : Q8_TILE);
        const uint8_t *tiles = (const uint8_t *)w->data;
        for (int i = 0; i < count; i++) round_input(x + i * x_stride, w->columns, rounded + i);
        for (int b = 0; b < w->rows / ROWS; b++, tiles += step)
            block_times(w->kind, tiles, groups, rounded, count, y + b * ROWS, y_stride);
    }
    if (w->bias)
        for (int i = 0; i < count; i++)
            for (int r = 0; r < w->rows; r++) y[i * y_stride + r] += w->bias[r];
}
