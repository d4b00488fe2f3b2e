/* Exact attention of many new tokens over the window, in bfloat16: what reading a text spends a third of its time
 * on when torch does it.
 *
 *   out_i = softmax(scale q_i K^T) V   over the first before + i + 1 keys, for the new tokens i = 0 .. count - 1
 *
 * Scores, exponentials and sums are float32; products are of bfloat16 pairs, added in float32, as in torch's own
 * kernel. Keys and values are first put into the order in which one instruction multiplies pairs, once for all
 * queries of a head. Only for heads of 64 and processors with AVX-512 and bfloat16; infini_can_attend says so.
 */

#include <stdlib.h>
#include <string.h>

#include "threads.h"
#include "tiles.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#include <immintrin.h>

enum { DIM = 64, KEYS = 16, QUERIES = 8, AT_ONCE = 4 };

typedef struct {
    const uint16_t *q; /* [kv_heads * group, count, 64] */
    uint16_t *out;     /* the same */
    const uint16_t *k, *v;
    int64_t stride; /* elements from one key-value head to the next */
    int kv_heads, group, count, before, blocks;
    float scale;
    uint16_t *packed_k, *packed_v; /* [kv_heads, blocks, 32, 16, 2] and [kv_heads, 8 blocks, 64, 2] */
} Call;

typedef struct {
    const Call *call;
    int part, parts, packing;
    float *scores; /* [QUERIES, 16 blocks] */
} Work;

/* Pairs of columns of 16 keys beside each other; pairs of values below each other become neighbours. Missing keys
 * of the last block are zero. */
static void pack_head(const Call *c, int head) {
    const uint16_t *k = c->k + head * c->stride, *v = c->v + head * c->stride;
    int keys = c->before + c->count;
    for (int b = 0; b < c->blocks; b++) {
        uint32_t *to = (uint32_t *)c->packed_k + ((int64_t)head * c->blocks + b) * 32 * KEYS;
        uint16_t *values = c->packed_v + ((int64_t)head * c->blocks + b) * KEYS * DIM;
        for (int key = 0; key < KEYS; key++) {
            int at = b * KEYS + key;
            for (int pair = 0; pair < 32; pair++) {
                uint32_t both = 0;
                if (at < keys) memcpy(&both, k + (int64_t)at * DIM + 2 * pair, 4);
                to[pair * KEYS + key] = both;
            }
            uint16_t *row = values + key / 2 * DIM * 2 + key % 2;
            for (int d = 0; d < DIM; d++) row[2 * d] = at < keys ? v[(int64_t)at * DIM + d] : 0;
        }
    }
}

static inline __m512bh pair_of(const uint16_t *from) {
    int32_t both;
    memcpy(&both, from, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

static inline __m512bh sixteen_pairs(const uint16_t *from) { return (__m512bh)_mm512_loadu_si512(from); }

/* e^x for x <= 0; relative error below 2e-7 (as exp_fast in step.c). */
static inline __m512 exp_of(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, f), f, f), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* Queries first .. first + QUERIES - 1 of one head (those past the end repeat the last one). */
static void some_queries(const Call *c, int head, int first, float *scores) {
    int kv = head / c->group, length = c->blocks * KEYS;
    const uint16_t *q = c->q + (int64_t)head * c->count * DIM, *rows[QUERIES];
    int last[QUERIES];
    for (int i = 0; i < QUERIES; i++) {
        int query = first + i < c->count ? first + i : c->count - 1;
        rows[i] = q + (int64_t)query * DIM;
        last[i] = c->before + query; /* the last key that it sees */
    }
    int blocks = last[QUERIES - 1] / KEYS + 1;
    const uint16_t *k = c->packed_k + (int64_t)kv * c->blocks * KEYS * DIM;
    const uint16_t *v = c->packed_v + (int64_t)kv * c->blocks * KEYS * DIM;
    __m512 most[QUERIES];
    for (int i = 0; i < QUERIES; i++) most[i] = _mm512_set1_ps(-1e30f);
    for (int b = 0; b < blocks; b++, k += KEYS * DIM) {
        __m512 sum[QUERIES];
        for (int i = 0; i < QUERIES; i++) sum[i] = _mm512_setzero_ps();
        for (int pair = 0; pair < 32; pair++) {
            __m512bh keys = sixteen_pairs(k + 2 * KEYS * pair);
#pragma GCC unroll 8
            for (int i = 0; i < QUERIES; i++) sum[i] = _mm512_dpbf16_ps(sum[i], keys, pair_of(rows[i] + 2 * pair));
        }
        for (int i = 0; i < QUERIES; i++) {
            __m512 scaled = _mm512_mul_ps(sum[i], _mm512_set1_ps(c->scale));
            int seen = last[i] - b * KEYS + 1;
            __mmask16 visible = seen >= KEYS ? 0xffff : (seen <= 0 ? 0 : (__mmask16)((1u << seen) - 1));
            scaled = _mm512_mask_blend_ps(visible, _mm512_set1_ps(-1e30f), scaled);
            most[i] = _mm512_max_ps(most[i], scaled);
            _mm512_storeu_ps(scores + i * length + b * KEYS, scaled);
        }
    }
    float inverse[QUERIES];
    for (int i = 0; i < QUERIES; i++) {
        __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most[i])), total = _mm512_setzero_ps();
        for (int b = 0; b < blocks; b++) {
            float *at = scores + i * length + b * KEYS;
            __m512 score = _mm512_loadu_ps(at);
            __mmask16 visible = _mm512_cmp_ps_mask(score, _mm512_set1_ps(-1e29f), _CMP_GT_OQ);
            __m512 weight = _mm512_maskz_mov_ps(visible, exp_of(_mm512_sub_ps(score, top)));
            total = _mm512_add_ps(total, weight);
            /* As pairs of bfloat16, in the first half of where the scores were. */
            __m256i narrow = (__m256i)_mm512_cvtneps_pbh(weight);
            _mm256_storeu_si256((__m256i *)((uint16_t *)(scores + i * length) + b * KEYS), narrow);
        }
        inverse[i] = 1.0f / _mm512_reduce_add_ps(total);
    }
    for (int from = 0; from < QUERIES; from += AT_ONCE) {
        __m512 sum[AT_ONCE][4];
        for (int i = 0; i < AT_ONCE; i++)
            for (int d = 0; d < 4; d++) sum[i][d] = _mm512_setzero_ps();
        for (int pair = 0; pair < blocks * KEYS / 2; pair++) {
            const uint16_t *row = v + (int64_t)pair * 2 * DIM;
            __m512bh a = sixteen_pairs(row), b = sixteen_pairs(row + 32), e = sixteen_pairs(row + 64),
                     g = sixteen_pairs(row + 96);
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++) {
                __m512bh weight = pair_of((uint16_t *)(scores + (from + i) * length) + 2 * pair);
                sum[i][0] = _mm512_dpbf16_ps(sum[i][0], a, weight);
                sum[i][1] = _mm512_dpbf16_ps(sum[i][1], b, weight);
                sum[i][2] = _mm512_dpbf16_ps(sum[i][2], e, weight);
                sum[i][3] = _mm512_dpbf16_ps(sum[i][3], g, weight);
            }
        }
        for (int i = 0; i < AT_ONCE && first + from + i < c->count; i++) {
            uint16_t *to = c->out + ((int64_t)head * c->count + first + from + i) * DIM;
            for (int d = 0; d < 4; d++) {
                __m512 mean = _mm512_mul_ps(sum[i][d], _mm512_set1_ps(inverse[from + i]));
                _mm256_storeu_si256((__m256i *)(to + 16 * d), (__m256i)_mm512_cvtneps_pbh(mean));
            }
        }
    }
}

static void *work(void *given) {
    const Work *w = given;
    const Call *c = w->call;
    if (w->packing) {
        for (int head = w->part; head < c->kv_heads; head += w->parts) pack_head(c, head);
        return 0;
    }
    int heads = c->kv_heads * c->group, tiles = (c->count + QUERIES - 1) / QUERIES;
    for (int item = w->part; item < heads * tiles; item += w->parts)
        some_queries(c, item / tiles, item % tiles * QUERIES, w->scores);
    return 0;
}

int infini_can_attend(void) { return 1; }

/* 0 when there was memory enough for it. */
int infini_attend(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, int64_t stride,
                  int kv_heads, int group, int count, int before, float scale, int threads) {
    int blocks = (before + count + KEYS - 1) / KEYS;
    int parts = parts_for(threads);
    int64_t packed = (int64_t)kv_heads * blocks * KEYS * DIM, scores = (int64_t)QUERIES * blocks * KEYS;
    char *memory = malloc(4 * packed + 4 * scores * parts);
    if (!memory) return 1;
    Call call = {q, out, k, v, stride, kv_heads, group, count, before, blocks, scale, (uint16_t *)memory,
                 (uint16_t *)memory + packed};
    Work works[MOST_THREADS];
    for (int i = 0; i < parts; i++)
        works[i] = (Work){&call, i, parts, 1, (float *)(memory + 4 * packed) + i * scores};
    together(work, works, sizeof *works, parts);
    for (int i = 0; i < parts; i++) works[i].packing = 0;
    together(work, works, sizeof *works, parts);
    free(memory);
    return 0;
}

#else

int infini_can_attend(void) { return 0; }

int infini_attend(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, int64_t stride,
                  int kv_heads, int group, int count, int before, float scale, int threads) {
    (void)q, (void)k, (void)v, (void)out, (void)stride, (void)kv_heads, (void)group, (void)count, (void)before;
    (void)scale, (void)threads;
    return 1;
}

#endif
