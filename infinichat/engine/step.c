/* One token through a Llama-like model, for one conversation on one core.
 *
 * What NativeStep (native.py) calls. Compiled on the machine it runs on, where a compiler is; without one
 * PlainStep does the same in torch. All memory belongs to the caller: weights, window, scratch. Nothing is
 * allocated, nothing is kept.
 *
 * A matrix is stored in tiles of 16 rows by 32 columns, so that a tile's 16 results are one vector register
 * and the weights are read front to back, once:
 *
 *   Q4   w = zero + scale * q, q in 0..15    256 bytes of q, 16 scales, 16 zeros (float16)
 *   Q8   w = scale * (q - 128), q in 0..255  512 bytes of q, 16 scales (float16)
 *
 * Within a tile the bytes are in the order in which one instruction multiplies 16 rows by 4 columns. The input
 * becomes whole numbers with one scale for each 32 columns, x = s (coarse + fine / 254), 8 bits each, so that
 * products are whole numbers and exact:
 *
 *   y_r = sum over groups of  scale_r s sum(q (coarse + fine / 254)) + zero_r sum(x)
 *
 * Without the fine part perplexity was 0.3 % worse than with bfloat16 inputs; with it nothing is lost that could
 * be measured, and as the weights are read once either way it costs little.
 */

#include <math.h>
#include <string.h>

#include "tiles.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define VNNI 1
#endif

#define FINE 254.0f

typedef struct {
    int32_t kind, rows, columns;
    const void *data;
    const float *bias; /* or NULL */
} Matrix;

/* Low-rank changes of attention (model/adapters.py), float32, row by row: down_qkv [3 rank, hidden] of the query's,
 * the key's and the value's, their ups below each other [qkv rows, rank], down_out [rank, out columns] and up_out
 * [hidden, rank]. rank 0: none. */
typedef struct {
    int32_t rank;
    const float *down_qkv, *up_qkv, *down_out, *up_out;
} Change;

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *mlp_norm;
    Change change;
} Layer;

typedef struct {
    int32_t layers, hidden, inner, heads, kv_heads, dim;
    float eps;
    const Layer *layer;
    const float *norm;
    Matrix head;
    /* Scratch, in floats: x [max(hidden, heads * dim, inner)], y [max(qkv rows, 2 * inner)], scores [slots],
     * sums and scales [x / 32 each]; coarse and fine in bytes [x each]. */
    float *x, *y, *scores, *scales, *sums;
    int8_t *coarse, *fine;
} Model;

typedef struct {
    void *k, *v;    /* the first attended slot of the first head */
    int64_t stride; /* elements from one head to the next */
} Window;

/* ---- small things, written so that a compiler vectorises them */

static inline float exp_fast(float x) {
    /* 2^n * p(f), n whole, f in [-0.5, 0.5]; relative error below 2e-7 (degree 6). */
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float z = x * 1.44269504f, n = __builtin_rintf(z);
    float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    union {
        int32_t i;
        float f;
    } two = {.i = ((int32_t)n + 127) << 23};
    return p * two.f;
}

static inline float from_bf16(uint16_t bits) {
    union {
        uint32_t i;
        float f;
    } wide = {.i = (uint32_t)bits << 16};
    return wide.f;
}

static void norm(const float *h, const float *weight, int n, float eps, float *out) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += h[i] * h[i];
    float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (int i = 0; i < n; i++) out[i] = h[i] * scale * weight[i];
}

/* ---- matrix times vector */

static void round_input(const float *x, int n, const Model *m) {
    for (int g = 0; g < n / GROUP; g++) {
        const float *in = x + g * GROUP;
        int8_t *coarse = m->coarse + g * GROUP, *fine = m->fine + g * GROUP;
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
        m->scales[g] = scale;
        /* Of the rounded input: with the exact one, rounding would weigh as if all q were 8 larger. */
        m->sums[g] = scale * ((float)coarse_sum + (float)fine_sum / FINE);
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

/* scale s (coarse + fine / 254) */
static inline __m512 together(__m512i coarse, __m512i fine, __m512 scale, float s) {
    __m512 dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(fine), _mm512_set1_ps(1 / FINE), _mm512_cvtepi32_ps(coarse));
    return _mm512_mul_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(s)));
}

static void times_q4(const Model *m, const uint8_t *tile, int blocks, int groups, float *y) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int b = 0; b < blocks; b++) {
        __m512 total = _mm512_setzero_ps();
        for (int g = 0; g < groups; g++, tile += Q4_TILE) {
            const int8_t *coarse = m->coarse + g * GROUP, *fine = m->fine + g * GROUP;
            __m512i c0 = _mm512_setzero_si512(), c1 = c0, f0 = c0, f1 = c0;
            for (int c = 0; c < 4; c++) {
                __m512i both = _mm512_loadu_si512(tile + 64 * c);
                __m512i q = _mm512_and_si512(both, low);
                c0 = _mm512_dpbusd_epi32(c0, q, four(coarse + 8 * c));
                f0 = _mm512_dpbusd_epi32(f0, q, four(fine + 8 * c));
                q = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                c1 = _mm512_dpbusd_epi32(c1, q, four(coarse + 8 * c + 4));
                f1 = _mm512_dpbusd_epi32(f1, q, four(fine + 8 * c + 4));
            }
            __m512 dot = together(_mm512_add_epi32(c0, c1), _mm512_add_epi32(f0, f1), half_floats(tile + 256),
                                  m->scales[g]);
            total = _mm512_fmadd_ps(half_floats(tile + 288), _mm512_set1_ps(m->sums[g]), _mm512_add_ps(total, dot));
        }
        _mm512_storeu_ps(y + b * ROWS, total);
    }
}

static void times_q8(const Model *m, const uint8_t *tile, int blocks, int groups, float *y) {
    for (int b = 0; b < blocks; b++) {
        __m512 total = _mm512_setzero_ps();
        for (int g = 0; g < groups; g++, tile += Q8_TILE) {
            const int8_t *coarse = m->coarse + g * GROUP, *fine = m->fine + g * GROUP;
            __m512i c0 = _mm512_setzero_si512(), c1 = c0, f0 = c0, f1 = c0;
            for (int c = 0; c < 4; c++) {
                __m512i q = _mm512_loadu_si512(tile + 128 * c);
                c0 = _mm512_dpbusd_epi32(c0, q, four(coarse + 8 * c));
                f0 = _mm512_dpbusd_epi32(f0, q, four(fine + 8 * c));
                q = _mm512_loadu_si512(tile + 128 * c + 64);
                c1 = _mm512_dpbusd_epi32(c1, q, four(coarse + 8 * c + 4));
                f1 = _mm512_dpbusd_epi32(f1, q, four(fine + 8 * c + 4));
            }
            __m512 scale = half_floats(tile + 512);
            __m512 dot = together(_mm512_add_epi32(c0, c1), _mm512_add_epi32(f0, f1), scale, m->scales[g]);
            /* The stored q is 128 too large. */
            total = _mm512_fmadd_ps(scale, _mm512_set1_ps(-128 * m->sums[g]), _mm512_add_ps(total, dot));
        }
        _mm512_storeu_ps(y + b * ROWS, total);
    }
}

#else

static void times_q4(const Model *m, const uint8_t *tile, int blocks, int groups, float *y) {
    for (int b = 0; b < blocks; b++) {
        float total[ROWS] = {0};
        for (int g = 0; g < groups; g++, tile += Q4_TILE) {
            int32_t coarse[ROWS] = {0}, fine[ROWS] = {0};
            const int8_t *xc = m->coarse + g * GROUP, *xf = m->fine + g * GROUP;
            const _Float16 *scale = (const _Float16 *)(tile + 256), *zero = scale + ROWS;
            for (int c = 0; c < 4; c++)
                for (int r = 0; r < ROWS; r++)
                    for (int i = 0; i < 4; i++) {
                        int32_t q = tile[64 * c + 4 * r + i], low = q & 15, high = q >> 4;
                        coarse[r] += low * xc[8 * c + i] + high * xc[8 * c + 4 + i];
                        fine[r] += low * xf[8 * c + i] + high * xf[8 * c + 4 + i];
                    }
            for (int r = 0; r < ROWS; r++)
                total[r] += ((float)coarse[r] + (float)fine[r] / FINE) * ((float)scale[r] * m->scales[g]) +
                            (float)zero[r] * m->sums[g];
        }
        memcpy(y + b * ROWS, total, sizeof total);
    }
}

static void times_q8(const Model *m, const uint8_t *tile, int blocks, int groups, float *y) {
    for (int b = 0; b < blocks; b++) {
        float total[ROWS] = {0};
        for (int g = 0; g < groups; g++, tile += Q8_TILE) {
            int32_t coarse[ROWS] = {0}, fine[ROWS] = {0};
            const int8_t *xc = m->coarse + g * GROUP, *xf = m->fine + g * GROUP;
            const _Float16 *scale = (const _Float16 *)(tile + 512);
            for (int c = 0; c < 8; c++)
                for (int r = 0; r < ROWS; r++)
                    for (int i = 0; i < 4; i++) {
                        int32_t q = (int32_t)tile[64 * c + 4 * r + i] - 128;
                        coarse[r] += q * xc[4 * c + i];
                        fine[r] += q * xf[4 * c + i];
                    }
            for (int r = 0; r < ROWS; r++)
                total[r] += ((float)coarse[r] + (float)fine[r] / FINE) * ((float)scale[r] * m->scales[g]);
        }
        memcpy(y + b * ROWS, total, sizeof total);
    }
}

#endif

static void times(const Model *m, const Matrix *w, const float *x, float *y) {
    if (w->kind == F32) {
        const float *row = (const float *)w->data;
        for (int r = 0; r < w->rows; r++, row += w->columns) {
            float sum = 0;
            for (int i = 0; i < w->columns; i++) sum += row[i] * x[i];
            y[r] = sum;
        }
    } else {
        int blocks = w->rows / ROWS, groups = w->columns / GROUP;
        round_input(x, w->columns, m);
        (w->kind == Q4 ? times_q4 : times_q8)(m, (const uint8_t *)w->data, blocks, groups, y);
    }
    if (w->bias)
        for (int r = 0; r < w->rows; r++) y[r] += w->bias[r];
}

/* y += open * up (down x); `parts` blocks of rows of up, of these sizes, have a block of `rank` rows of down each. */
static void change(const float *down, const float *up, int rank, int columns, int parts, const int *sizes, float open,
                   const float *x, float *y) {
    for (int part = 0; part < parts; part++) {
        for (int r = 0; r < rank; r++, down += columns) {
            float sum = 0;
            for (int i = 0; i < columns; i++) sum += down[i] * x[i];
            sum *= open;
            for (int i = 0; i < sizes[part]; i++) y[i] += up[(int64_t)i * rank + r] * sum;
        }
        up += (int64_t)sizes[part] * rank;
        y += sizes[part];
    }
}

/* ---- attention of one token over the window */

static void rotate(float *x, int dim, const float *cosine, const float *sine) {
    int half = dim / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

/* Written once for each type of the window and, for the common width, with a constant that unrolls. */
#define ATTEND(NAME, TYPE, WIDE, DIM)                                                                         \
    static void NAME(const float *q, const TYPE *k, const TYPE *v, int n, int dim, float scale, float *scores, \
                     float *out) {                                                                            \
        (void)dim;                                                                                            \
        float most = -INFINITY, total = 0;                                                                    \
        for (int s = 0; s < n; s++) {                                                                         \
            float sum = 0;                                                                                    \
            for (int i = 0; i < (DIM); i++) sum += q[i] * WIDE(k[(int64_t)s * (DIM) + i]);                    \
            scores[s] = sum * scale;                                                                          \
        }                                                                                                     \
        for (int s = 0; s < n; s++) most = scores[s] > most ? scores[s] : most;                               \
        for (int s = 0; s < n; s++) {                                                                         \
            scores[s] = exp_fast(scores[s] - most);                                                           \
            total += scores[s];                                                                               \
        }                                                                                                     \
        float sum[256];                                                                                       \
        for (int i = 0; i < (DIM); i++) sum[i] = 0;                                                           \
        for (int s = 0; s < n; s++)                                                                           \
            for (int i = 0; i < (DIM); i++) sum[i] += scores[s] * WIDE(v[(int64_t)s * (DIM) + i]);            \
        for (int i = 0; i < (DIM); i++) out[i] = sum[i] / total;                                              \
    }

#define AS_IS(x) (x)
ATTEND(attend_bf16_64, uint16_t, from_bf16, 64)
ATTEND(attend_bf16, uint16_t, from_bf16, dim)
ATTEND(attend_f32, float, AS_IS, dim)

static void attend(const Model *m, const Window *w, int is_bf16, int slots, float *qkv, const float *cosine,
                   const float *sine, float *out) {
    int dim = m->dim, group = m->heads / m->kv_heads;
    float scale = 1.0f / sqrtf((float)dim);
    for (int head = 0; head < m->heads + m->kv_heads; head++) rotate(qkv + head * dim, dim, cosine, sine);
    const float *new_k = qkv + m->heads * dim, *new_v = new_k + m->kv_heads * dim;
    for (int head = 0; head < m->kv_heads; head++) {
        int64_t start = head * w->stride, last = start + (int64_t)(slots - 1) * dim;
        for (int i = 0; i < dim; i++) {
            if (is_bf16) {
                ((uint16_t *)w->k)[last + i] = to_bf16(new_k[head * dim + i]);
                ((uint16_t *)w->v)[last + i] = to_bf16(new_v[head * dim + i]);
            } else {
                ((float *)w->k)[last + i] = new_k[head * dim + i];
                ((float *)w->v)[last + i] = new_v[head * dim + i];
            }
        }
        for (int g = 0; g < group; g++) {
            const float *q = qkv + (head * group + g) * dim;
            float *to = out + (head * group + g) * dim;
            if (!is_bf16)
                attend_f32(q, (const float *)w->k + start, (const float *)w->v + start, slots, dim, scale, m->scores, to);
            else if (dim == 64)
                attend_bf16_64(q, (const uint16_t *)w->k + start, (const uint16_t *)w->v + start, slots, dim, scale,
                               m->scores, to);
            else
                attend_bf16(q, (const uint16_t *)w->k + start, (const uint16_t *)w->v + start, slots, dim, scale,
                            m->scores, to);
        }
    }
}

/* ---- what is called */

/* Half-layers first..last - 1 on the residual h: 2 i is layer i's attention, 2 i + 1 its MLP. The caller steps in
 * between where a memory adds its read; the normed input of the last attention is then in x_of_layer [hidden].
 * open: by how much that read opens the changes of the layers from here on, 0 for not at all.
 * windows: one for each layer, with `slots` attended slots of which the last one is written here. */
void infini_run(const Model *m, int first, int last, float *h, const Window *windows, int is_bf16, int slots,
                const float *cosine, const float *sine, float *x_of_layer, float open) {
    const int attended = m->heads * m->dim, keys = m->kv_heads * m->dim, sizes[3] = {attended, keys, keys};
    for (int half = first; half < last; half++) {
        const Layer *layer = m->layer + half / 2;
        const Change *c = &layer->change;
        int changed = open > 0 && c->rank > 0;
        if (half % 2 == 0) {
            norm(h, layer->input_norm, m->hidden, m->eps, x_of_layer);
            times(m, &layer->qkv, x_of_layer, m->y);
            if (changed) change(c->down_qkv, c->up_qkv, c->rank, m->hidden, 3, sizes, open, x_of_layer, m->y);
            attend(m, windows + half / 2, is_bf16, slots, m->y, cosine, sine, m->x);
            times(m, &layer->out, m->x, m->y);
            if (changed) change(c->down_out, c->up_out, c->rank, attended, 1, &m->hidden, open, m->x, m->y);
        } else {
            norm(h, layer->mlp_norm, m->hidden, m->eps, m->x);
            times(m, &layer->gate_up, m->x, m->y);
            for (int i = 0; i < m->inner; i++)
                m->x[i] = m->y[i] / (1.0f + exp_fast(-m->y[i])) * m->y[m->inner + i];
            times(m, &layer->down, m->x, m->y);
        }
        for (int i = 0; i < m->hidden; i++) h[i] += m->y[i];
    }
}

/* Whether products are of one instruction for four columns of sixteen rows; without it they are left to the
 * compiler, and nobody knows how fast they are. */
int infini_multiplies_in_fours(void) {
#ifdef VNNI
    return 1;
#else
    return 0;
#endif
}

void infini_norm(const Model *m, const float *h, float *out) { norm(h, m->norm, m->hidden, m->eps, out); }

void infini_head(const Model *m, const float *hidden, float *logits) { times(m, &m->head, hidden, logits); }
