// Independent pieces of work on several threads, and memory that frees itself.
#pragma once

#include <pthread.h>

#include <atomic>

#include "vectors.h"

// Aligned memory of numbers, not initialised; `data` is null where there is none left.
template <class T>
struct Buffer {
    T *data;
    explicit Buffer(int64_t count) {
        size_t bytes = ((count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
        data = (T *)aligned_alloc(64, bytes);
    }
    ~Buffer() { free(data); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
};

// Scratch memory handed out piece by piece, in whole vectors; from null it only counts them.
struct Arena {
    Vector *from;
    int64_t used = 0;  // vectors

    template <class T>
    T *take(int64_t count) {
        const int64_t first = used;
        used += (count * sizeof(T) + sizeof(Vector) - 1) / sizeof(Vector);
        return from ? (T *)(from + first) : nullptr;
    }
};

// Calls work(piece, scratch) for every piece below `count`; each thread has `room` vectors of
// scratch, and is worth its start for `few` pieces. Which thread takes which piece is open: a piece
// must write nothing that another reads.
template <class Work>
static Status in_parallel(
    int64_t count, int64_t threads, int64_t few, int64_t room, const Work &work
) {
    struct Shared {
        const Work &work;
        int64_t count, room;
        std::atomic<int64_t> next{0};
        std::atomic<bool> failed{false};
        static void *run(void *given) {
            Shared &shared = *(Shared *)given;
            Buffer<Vector> scratch(shared.room);
            if (!scratch.data) {
                shared.failed = true;
                return nullptr;
            }
            for (int64_t piece; (piece = shared.next++) < shared.count;)
                shared.work(piece, scratch.data);
            return nullptr;
        }
    } shared{work, count, room};
    constexpr int64_t MOST = 256;
    pthread_t others[MOST];
    const int64_t most = (count + few - 1) / few, wanted = threads < most ? threads : most;
    int64_t started = 0;
    for (; started < wanted - 1 && started < MOST; started++)
        // Where no more threads can be had, those that there are do the work.
        if (pthread_create(&others[started], nullptr, Shared::run, &shared)) break;
    Shared::run(&shared);
    for (int64_t each = 0; each < started; each++) pthread_join(others[each], nullptr);
    return shared.failed ? NO_MEMORY : FINE;
}
