/* The layout of packed weights and what both C files do with numbers: see products.h for the tiles. */

#include <stdint.h>

enum { F32 = 0, Q4 = 1, Q8 = 2 };
enum { ROWS = 16, GROUP = 32, Q4_TILE = 320, Q8_TILE = 544 };

static inline uint16_t to_bf16(float x) {
    union {
        float f;
        uint32_t i;
    } wide = {.f = x};
    /* To the nearest, ties to even. NaN stays NaN. */
    if (x != x) return 0x7fc0;
    return (uint16_t)((wide.i + 0x7fff + ((wide.i >> 16) & 1)) >> 16);
}
