/* One token each through a Llama-like model, for one conversation or several, on one core.
 *
 * What NativeStep (native.py) calls. Compiled on the machine it runs on, where a compiler is; without one
 * PlainStep does the same in torch. All memory belongs to the caller: weights, windows, scratch. Nothing is
 * allocated, nothing is kept. Several conversations share nothing but the weights, which are then read once for all
 * of them (products.h); each has its own window, position and length, and gets the same numbers, to the last bit,
 * as alone.
 */

#include "products.h"

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
} Model;

/* For a number of rows at once, in floats: x [rows, wide], wide = max(hidden, heads * dim, inner), y [rows, tall],
 * tall = max(qkv rows, 2 * inner, hidden), scores [slots]; rounded [rows], of `wide` columns each. */
typedef struct {
    int64_t wide, tall;
    float *x, *y, *scores;
    const Rounded *rounded;
} Scratch;

typedef struct {
    void *k, *v;    /* the first attended slot of the first head */
    int64_t stride; /* elements from one head to the next */
} Window;

/* One conversation's token: its residual h [hidden]; `normed` [hidden], the input of the attention that was run
 * last; the windows of all layers, with `slots` attended slots of which the last one is written here; cosine and
 * sine [dim / 2] of its position; open: by how much what was read from a memory opens the changes of the layers
 * from here on, 0 for not at all. */
typedef struct {
    float *h, *normed;
    const Window *windows;
    const float *cosine, *sine;
    int32_t slots;
    float open;
} Row;

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

static void attend(const Model *m, const Row *row, const Window *w, int is_bf16, float *qkv, float *scores, float *out) {
    int dim = m->dim, group = m->heads / m->kv_heads, slots = row->slots;
    float scale = 1.0f / sqrtf((float)dim);
    for (int head = 0; head < m->heads + m->kv_heads; head++) rotate(qkv + head * dim, dim, row->cosine, row->sine);
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
                attend_f32(q, (const float *)w->k + start, (const float *)w->v + start, slots, dim, scale, scores,
                           to);
            else if (dim == 64)
                attend_bf16_64(q, (const uint16_t *)w->k + start, (const uint16_t *)w->v + start, slots, dim, scale,
                               scores, to);
            else
                attend_bf16(q, (const uint16_t *)w->k + start, (const uint16_t *)w->v + start, slots, dim, scale,
                            scores, to);
        }
    }
}

/* ---- what is called */

static void attention(const Model *m, const Scratch *s, int at, Row *rows, int count, int is_bf16) {
    const Layer *layer = m->layer + at;
    const Change *c = &layer->change;
    const int attended = m->heads * m->dim, keys = m->kv_heads * m->dim, sizes[3] = {attended, keys, keys};
    for (int i = 0; i < count; i++) {
        norm(rows[i].h, layer->input_norm, m->hidden, m->eps, rows[i].normed);
        memcpy(s->x + i * s->wide, rows[i].normed, m->hidden * sizeof(float));
    }
    times(&layer->qkv, s->x, s->wide, s->y, s->tall, count, s->rounded);
    for (int i = 0; i < count; i++) {
        Row *row = rows + i;
        float *x = s->x + i * s->wide, *y = s->y + i * s->tall;
        if (row->open > 0 && c->rank > 0)
            change(c->down_qkv, c->up_qkv, c->rank, m->hidden, 3, sizes, row->open, row->normed, y);
        attend(m, row, row->windows + at, is_bf16, y, s->scores, x);
    }
    times(&layer->out, s->x, s->wide, s->y, s->tall, count, s->rounded);
    for (int i = 0; i < count; i++)
        if (rows[i].open > 0 && c->rank > 0)
            change(c->down_out, c->up_out, c->rank, attended, 1, &m->hidden, rows[i].open, s->x + i * s->wide,
                   s->y + i * s->tall);
}

static void feed_forward(const Model *m, const Scratch *s, int at, Row *rows, int count) {
    const Layer *layer = m->layer + at;
    for (int i = 0; i < count; i++) norm(rows[i].h, layer->mlp_norm, m->hidden, m->eps, s->x + i * s->wide);
    times(&layer->gate_up, s->x, s->wide, s->y, s->tall, count, s->rounded);
    for (int i = 0; i < count; i++) {
        float *x = s->x + i * s->wide, *y = s->y + i * s->tall;
        for (int j = 0; j < m->inner; j++) x[j] = y[j] / (1.0f + exp_fast(-y[j])) * y[m->inner + j];
    }
    times(&layer->down, s->x, s->wide, s->y, s->tall, count, s->rounded);
}

/* Half-layers first..last - 1 on the residuals of `count` rows: 2 i is layer i's attention, 2 i + 1 its MLP. The
 * caller steps in between where a memory adds its read. */
void infini_run(const Model *m, const Scratch *s, int first, int last, Row *rows, int count, int is_bf16) {
    for (int half = first; half < last; half++) {
        if (half % 2 == 0)
            attention(m, s, half / 2, rows, count, is_bf16);
        else
            feed_forward(m, s, half / 2, rows, count);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < m->hidden; j++) rows[i].h[j] += s->y[i * s->tall + j];
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

void infini_norm(const Model *m, const float *h, int count, float *out) {
    for (int i = 0; i < count; i++) norm(h + i * m->hidden, m->norm, m->hidden, m->eps, out + i * m->hidden);
}

/* logits [count, vocabulary] for hidden [count, hidden] */
void infini_head(const Model *m, const Scratch *s, const float *hidden, int count, float *logits) {
    times(&m->head, hidden, m->hidden, logits, m->head.rows, count, s->rounded);
}
