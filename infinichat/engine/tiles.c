/* Weights into and out of the tiles that products.h multiplies with.
 *
 *   infini_pack     the blocks of a GGUF become tiles, without a detour over floating point: exact
 *   infini_unpack   tiles become a matrix that torch can multiply many tokens with
 *   infini_rows     some rows of them: the embeddings of tokens
 *
 * w = zero + scale q is worked out in float32 as a reader of GGUF does it, then rounded once to what is asked
 * for, so a matrix that is unpacked is the file's to the last bit.
 */

#include <string.h>

#include "tiles.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#define WIDE 1
#endif

enum { GGML_Q4_0 = 2, GGML_Q4_1 = 3, GGML_Q8_0 = 8 };

static inline float half(const void *from) {
    _Float16 value;
    memcpy(&value, from, sizeof value);
    return (float)value;
}

static inline uint32_t word(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* A block has weight i in the low and weight i + 16 in the high half of byte i; a tile's byte has columns i and
 * i + 4 of each 8. */
static void pack_q4(const uint8_t *quants, int r, uint8_t *tile) {
    const uint32_t low = 0x0f0f0f0f, high = 0xf0f0f0f0;
    uint32_t a = word(quants), b = word(quants + 4), c = word(quants + 8), d = word(quants + 12);
    uint32_t columns[4] = {(a & low) | ((b & low) << 4), (c & low) | ((d & low) << 4),
                           ((a >> 4) & low) | (b & high), ((c >> 4) & low) | (d & high)};
    for (int i = 0; i < 4; i++) memcpy(tile + 64 * i + 4 * r, columns + i, 4);
}

/* blocks [rows, groups] of GGML's type; row r of the tiles is row order[r] of the blocks. */
void infini_pack(int type, int64_t rows, int64_t groups, const uint8_t *blocks, const int64_t *order, uint8_t *tiles) {
    int64_t size = type == GGML_Q8_0 ? 34 : (type == GGML_Q4_1 ? 20 : 18);
    int64_t tile_size = type == GGML_Q8_0 ? Q8_TILE : Q4_TILE;
    for (int64_t first = 0; first < rows; first += ROWS)
        for (int64_t g = 0; g < groups; g++, tiles += tile_size)
            for (int r = 0; r < ROWS; r++) {
                const uint8_t *block = blocks + (order[first + r] * groups + g) * size;
                if (type == GGML_Q8_0) {
                    memcpy(tiles + 512 + 2 * r, block, 2);
                    for (int c = 0; c < 8; c++)
                        for (int i = 0; i < 4; i++) tiles[64 * c + 4 * r + i] = block[2 + 4 * c + i] ^ 128;
                    continue;
                }
                memcpy(tiles + 256 + 2 * r, block, 2);
                if (type == GGML_Q4_1) {
                    memcpy(tiles + 288 + 2 * r, block + 2, 2);
                } else {
                    _Float16 zero = (_Float16)(-8 * half(block));
                    memcpy(tiles + 288 + 2 * r, &zero, 2);
                }
                pack_q4(block + size - 16, r, tiles);
            }
}

static inline void put(void *out, int64_t at, float value, int is_bf16) {
    if (is_bf16)
        ((uint16_t *)out)[at] = to_bf16(value);
    else
        ((float *)out)[at] = value;
}

/* Row r of one tile to out[at ..]. */
static void one_row(int kind, const uint8_t *tile, int r, void *out, int64_t at, int is_bf16) {
    if (kind == Q8) {
        float scale = half(tile + 512 + 2 * r);
        for (int c = 0; c < 8; c++)
            for (int i = 0; i < 4; i++)
                put(out, at + 4 * c + i, scale * (float)(tile[64 * c + 4 * r + i] - 128), is_bf16);
        return;
    }
    float scale = half(tile + 256 + 2 * r), zero = half(tile + 288 + 2 * r);
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < 4; i++) {
            uint8_t both = tile[64 * c + 4 * r + i];
            put(out, at + 8 * c + i, zero + scale * (float)(both & 15), is_bf16);
            put(out, at + 8 * c + 4 + i, zero + scale * (float)(both >> 4), is_bf16);
        }
}

#ifdef WIDE

/* A whole 4-bit tile, its rows `columns` apart in out. Each row has 16 values at most: they are worked out once
 * and then looked up. */
static void tile_q4(const uint8_t *tile, int64_t columns, void *out, int64_t at, int is_bf16) {
    const __m512i low = _mm512_set1_epi8(15), half_unit = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1);
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    float scale[ROWS], zero[ROWS];
    _mm512_storeu_ps(scale, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(tile + 256))));
    _mm512_storeu_ps(zero, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(tile + 288))));
    /* Four columns of all rows each become, of four rows each, all columns. */
    __m512i a = _mm512_loadu_si512(tile), b = _mm512_loadu_si512(tile + 64);
    __m512i c = _mm512_loadu_si512(tile + 128), d = _mm512_loadu_si512(tile + 192);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    __m512i ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    __m512i rows[4] = {_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd),
                       _mm512_unpacklo_epi64(ab2, cd2), _mm512_unpackhi_epi64(ab2, cd2)};
    for (int k = 0; k < 4; k++) {
        __m512i first = _mm512_and_si512(rows[k], low);
        __m512i second = _mm512_and_si512(_mm512_srli_epi16(rows[k], 4), low);
        uint8_t q[2][64]; /* columns 0..15 and 16..31 of rows k, 4 + k, 8 + k, 12 + k */
        _mm512_storeu_si512(q[0], _mm512_unpacklo_epi32(first, second));
        _mm512_storeu_si512(q[1], _mm512_unpackhi_epi32(first, second));
        for (int lane = 0; lane < 4; lane++) {
            int r = 4 * lane + k;
            __m512 values = _mm512_fmadd_ps(_mm512_set1_ps(scale[r]), steps, _mm512_set1_ps(zero[r]));
            __m512i left = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(q[0] + 16 * lane)));
            __m512i right = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(q[1] + 16 * lane)));
            if (is_bf16) {
                __m512i bits = _mm512_castps_si512(values);
                __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
                bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(half_unit, odd)), 16);
                uint16_t *to = (uint16_t *)out + at + r * columns;
                left = _mm512_permutexvar_epi32(left, bits), right = _mm512_permutexvar_epi32(right, bits);
                _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(left));
                _mm256_storeu_si256((__m256i *)(to + 16), _mm512_cvtepi32_epi16(right));
            } else {
                float *to = (float *)out + at + r * columns;
                _mm512_storeu_ps(to, _mm512_permutexvar_ps(left, values));
                _mm512_storeu_ps(to + 16, _mm512_permutexvar_ps(right, values));
            }
        }
    }
}

#endif

/* `blocks` times 16 rows of tiles to out [16 blocks, 32 groups], bfloat16 or float. */
void infini_unpack(int kind, int64_t blocks, int64_t groups, const uint8_t *tiles, void *out, int is_bf16) {
    int64_t columns = groups * GROUP, tile_size = kind == Q8 ? Q8_TILE : Q4_TILE;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t g = 0; g < groups; g++, tiles += tile_size) {
            int64_t at = b * ROWS * columns + g * GROUP;
#ifdef WIDE
            if (kind == Q4) {
                tile_q4(tiles, columns, out, at, is_bf16);
                continue;
            }
#endif
            for (int r = 0; r < ROWS; r++) one_row(kind, tiles, r, out, at + r * columns, is_bf16);
        }
}

/* Rows ids[0 .. count - 1] to out [count, 32 groups]. */
void infini_rows(int kind, int64_t count, int64_t groups, const uint8_t *tiles, const int64_t *ids, void *out,
                 int is_bf16) {
    int64_t tile_size = kind == Q8 ? Q8_TILE : Q4_TILE;
    for (int64_t i = 0; i < count; i++)
        for (int64_t g = 0; g < groups; g++) {
            const uint8_t *tile = tiles + (ids[i] / ROWS * groups + g) * tile_size;
            one_row(kind, tile, (int)(ids[i] % ROWS), out, (i * groups + g) * GROUP, is_bf16);
        }
}
