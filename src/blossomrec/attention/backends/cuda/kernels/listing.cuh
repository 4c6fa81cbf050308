// Inverse lists, see keys.cuh: the choices of all events, stably sorted by the block they chose.
//
// Tiles are cut into segments. For each segment and group a warp goes through the choices in the order
// of events, and counts those of each list: the count so far is the rank of a choice inside the
// segment. The counts of earlier segments are then added up list by list, which gives lists their
// lengths, and choices their places. Choices stay in their history, so that few lists have any in a
// segment.
//
// Lists find room in the order in which warps come to ask for it, which may differ between runs. What
// is in a list, and in which order, does not.

#define STEPS_OF_TILE ((SIZE * N + 31) / 32)   // each of 32 choices of one group

// The choices of a tile and a group.
struct Choices {
    int first, events, home;   // first event among all; tile of the history's first block

    INLINE Choices(const int *table, int tile) {
        const Tile at(table, tile);
        first = at.first_event(), events = at.length - at.first(), home = tile - at.block;
    }
    // The choice of a lane in a step; -1 for none.
    INLINE int place(int group, int step, int lane) const {
        const int number = step * 32 + lane, event = number / N;
        if (event >= min(events, SIZE)) return -1;
        return ((first + event) * G + group) * N + number % N;
    }
};
