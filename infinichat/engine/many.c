/* Many tokens times 4-bit tiles in whole numbers: what reading documents spends two thirds of its time on when it is
 * done in bfloat16.
 *
 * The tokens are rounded to 8 bits with a scale for each 32 columns, x = s q_x, and a tile's rows are multiplied as
 * they are stored, w = zero + scale q_w:
 *
 *   y_r = sum over groups of  scale_r s sum(q_w q_x) + zero_r s sum(q_x)
 *
 * One instruction multiplies four columns of sixteen rows, twice as many as of bfloat16, and nothing has to be
 * unpacked in memory. Single tokens have twice as many bits (step.c): their products wait for the memory anyway.
 */

#include <stdlib.h>
#include <string.h>

#include "threads.h"
#include "tiles.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>

enum { AT_ONCE = 12, FEW = 4 };

typedef struct {
    const uint8_t *tiles;
    const uint16_t *x; /* [count, 32 groups] */
    uint16_t *out;     /* [count, 16 blocks] */
    int64_t blocks, groups, count, padded;
    int8_t *q;            /* [groups, padded, 32] */
    float *scales, *sums; /* [groups, padded] */
} Call;

typedef struct {
    const Call *call;
    int64_t part, parts;
} Work;

static void round_group(const Call *c, int64_t token, int64_t g) {
    int64_t at = g * c->padded + token;
    if (token >= c->count) {
        memset(c->q + at * GROUP, 0, GROUP);
        c->scales[at] = c->sums[at] = 0;
        return;
    }
    __m512i both = _mm512_loadu_si512(c->x + (token * c->groups + g) * GROUP);
    __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), 16));
    __m512 b = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)), 16));
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0);
    __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), second = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    _mm_storeu_si128((__m128i *)(c->q + at * GROUP), _mm512_cvtsepi32_epi8(first));
    _mm_storeu_si128((__m128i *)(c->q + at * GROUP + 16), _mm512_cvtsepi32_epi8(second));
    c->scales[at] = most / 127.0f;
    c->sums[at] = c->scales[at] * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
}

static inline __m512 half_floats(const uint8_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

static inline __m512i four(const int8_t *q) {
    int32_t columns;
    memcpy(&columns, q, 4);
    return _mm512_set1_epi32(columns);
}

static inline void put_row(const Call *c, int64_t b, int64_t token, __m512 sum) {
    if (token >= c->count) return;
    /* To the nearest, ties to even, as to_bf16. */
    __m512i bits = _mm512_castps_si512(sum), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd)), 16);
    uint16_t *to = c->out + (token * c->blocks + b) * ROWS;
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(bits));
}

/* The sixteen rows of block b for `tokens` tokens (a multiple of FEW that the compiler knows). */
static inline __attribute__((always_inline)) void some_tokens(const Call *c, int64_t b, int64_t token, int tokens) {
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *tile = c->tiles + b * c->groups * Q4_TILE;
    __m512 total[AT_ONCE];
    for (int i = 0; i < tokens; i++) total[i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < c->groups; g++, tile += Q4_TILE) {
        __m512i w[8];
        for (int i = 0; i < 4; i++) {
            __m512i both = _mm512_loadu_si512(tile + 64 * i);
            w[2 * i] = _mm512_and_si512(both, low);
            w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
        __m512 scale = half_floats(tile + 256), zero = half_floats(tile + 288);
        const int8_t *q = c->q + (g * c->padded + token) * GROUP;
        const float *scales = c->scales + g * c->padded + token, *sums = c->sums + g * c->padded + token;
#pragma GCC unroll 3
        for (int i = 0; i < tokens; i += FEW) {
            __m512i dot[FEW];
            for (int j = 0; j < FEW; j++) dot[j] = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++)
                for (int j = 0; j < FEW; j++)
                    dot[j] = _mm512_dpbusd_epi32(dot[j], w[k], four(q + (i + j) * GROUP + 4 * k));
            for (int j = 0; j < FEW; j++) {
                __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[j]), _mm512_set1_ps(scales[i + j]));
                total[i + j] = _mm512_fmadd_ps(product, scale, total[i + j]);
                total[i + j] = _mm512_fmadd_ps(zero, _mm512_set1_ps(sums[i + j]), total[i + j]);
            }
        }
    }
    for (int i = 0; i < tokens; i++) put_row(c, b, token + i, total[i]);
}

static void *work(void *given) {
    const Work *w = given;
    const Call *c = w->call;
    for (int64_t b = w->part * c->blocks / w->parts; b < (w->part + 1) * c->blocks / w->parts; b++) {
        int64_t token = 0;
        for (; token + AT_ONCE <= c->padded; token += AT_ONCE) some_tokens(c, b, token, AT_ONCE);
        for (; token < c->padded; token += FEW) some_tokens(c, b, token, FEW);
    }
    return 0;
}

int infini_can_multiply_many(void) { return 1; }

/* x [count, 32 groups] times tiles of 16 blocks rows to out [count, 16 blocks], both bfloat16; 0 when there was memory
 * enough for it. */
int infini_multiply_many(int64_t blocks, int64_t groups, int64_t count, const uint8_t *tiles, const uint16_t *x,
                         uint16_t *out, int threads) {
    int64_t padded = (count + FEW - 1) / FEW * FEW, numbers = groups * padded;
    int parts = parts_for(threads);
    char *memory = malloc(numbers * (GROUP + 2 * sizeof(float)));
    if (!memory) return 1;
    float *scales = (float *)memory;
    Call call = {tiles, x, out, blocks, groups, count, padded, (int8_t *)(scales + 2 * numbers), scales,
                 scales + numbers};
    Work works[MOST_THREADS];
    for (int i = 0; i < parts; i++) works[i] = (Work){&call, i, parts};
    /* A fiftieth of the time: not worth a second round of threads. */
    for (int64_t token = 0; token < padded; token++)
        for (int64_t g = 0; g < groups; g++) round_group(&call, token, g);
    together(work, works, sizeof *works, parts);
    free(memory);
    return 0;
}

#else

int infini_can_multiply_many(void) { return 0; }

int infini_multiply_many(int64_t blocks, int64_t groups, int64_t count, const uint8_t *tiles, const uint16_t *x,
                         uint16_t *out, int threads) {
    (void)blocks, (void)groups, (void)count, (void)tiles, (void)x, (void)out, (void)threads;
    return 1;
}

#endif
