/* One call's work on several threads, which are started for it and end with it: that takes a hundredth of such a
 * call, and none is left to wait between two. */

#include <pthread.h>
#include <stddef.h>

enum { MOST_THREADS = 16 };

static inline int parts_for(int threads) {
    return threads < 1 ? 1 : (threads > MOST_THREADS ? MOST_THREADS : threads);
}

/* `work` on each of `parts` things of `size` bytes, the first of them on this thread, and those for which no thread
 * can be started. */
static inline void together(void *(*work)(void *), void *things, size_t size, int parts) {
    pthread_t threads[MOST_THREADS];
    int started[MOST_THREADS] = {0};
    char *thing = things;
    for (int i = 1; i < parts; i++) started[i] = pthread_create(threads + i, 0, work, thing + i * size) == 0;
    work(thing);
    for (int i = 1; i < parts; i++) {
        if (started[i])
            pthread_join(threads[i], 0);
        else
            work(thing + i * size);
    }
}
