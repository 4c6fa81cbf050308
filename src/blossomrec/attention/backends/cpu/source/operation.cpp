// What the library offers: selection and its samples, attention, its gradients, and new events.
#include "problem.h"

#include "backward_keys.h"
#include "backward_queries.h"
#include "forward.h"
#include "rotation.h"
#include "samples.h"
#include "selection.h"
#include "short_gradients.h"
#include "step.h"

// Work that a thread is worth its start for: about a tenth of a millisecond.
constexpr int FEW_TILES = 4, FEW_SHORT = 2, FEW_APPENDED = 16, FEW_EVENTS = 2, FEW_SAMPLES = 16;
constexpr int FEW_ROTATED = 4;

// Whether all selected blocks are complete, eligible ones of the event's history.
static Status check_selection(Problem &problem, const Chunks &chunks) {
    for (int64_t index = 0; index < chunks.count; index++) {
        const Chunk &at = chunks[index];
        for (int64_t i = 0; i < at.events() * problem.groups * problem.top_n; i++) {
            const int32_t block = problem.selected[at.row * problem.groups * problem.top_n + i];
            const int64_t lane = i / (problem.groups * problem.top_n);
            const int32_t own = (at.position + lane) / S, blocks = at.length / S;
            const bool eligible = problem.causal ? block < own : block < blocks && block != own;
            if (block < -1 || !eligible) {
                problem.wrong = at.row + lane;
                return WRONG_SELECTION;
            }
        }
    }
    return FINE;
}

extern "C" int blossom_rotate(Rotation *rotation) {
    return in_parallel(
        (rotation->rows + ROWS_ROTATED - 1) / ROWS_ROTATED, rotation->threads, FEW_ROTATED, 0,
        [&](int64_t piece, Vector *) { rotate_rows(*rotation, piece * ROWS_ROTATED); });
}

extern "C" int blossom_select(Problem *given) {
    const Problem &problem = *given;
    const Chunks chunks(problem);
    if (chunks.status) return chunks.status;
    return in_parallel(
        chunks.count * problem.groups, problem.threads, FEW_TILES, selection_room(problem),
        [&](int64_t piece, Vector *scratch) {
            select_tile(problem, chunks[piece / problem.groups], piece % problem.groups, scratch);
        });
}

extern "C" int blossom_samples(Problem *given) {
    Problem &problem = *given;
    const Chunks chunks(problem);
    if (chunks.status) return chunks.status;
    if (problem.blocks < chunks.longest / S) return FEW_BLOCKS;
    for (int64_t index = 0; index < problem.count; index++) {
        const int64_t row = problem.samples[index];
        if (row >= 0 && row < problem.rows) continue;
        problem.wrong = row;
        return WRONG_LESSON;
    }
    const Columns keys(chunks, problem.groups, D);
    if (!keys.data.data) return NO_MEMORY;
    for (int64_t chunk = 0; chunk < chunks.count; chunk++)
        for (int64_t group = 0; group < problem.groups; group++)
            copy_columns(
                problem.k, chunks[chunk], group, problem.groups * D, D, keys.at(group, chunk));
    return in_parallel(
        problem.count * problem.groups, problem.threads, FEW_SAMPLES,
        SampleScratch(chunks, nullptr).arena.used,
        [&](int64_t piece, Vector *scratch) {
            sample(problem, chunks, keys, piece / problem.groups, piece % problem.groups, scratch);
        });
}

// Runs a ShortForward or ShortBackward for all histories that are short, and all groups.
template <class Work>
static Status each_short(const Problem &problem) {
    const ShortHistories all(problem);
    if (!all.ready()) return NO_MEMORY;
    return in_parallel(
        all.count * problem.groups, problem.threads, FEW_SHORT,
        Work(problem, all, 0, nullptr).arena.used,
        [&](int64_t piece, Vector *scratch) { Work(problem, all, piece, scratch).run(); });
}

extern "C" int blossom_forward(Problem *problem) {
    const Chunks everything(*problem);
    if (everything.status) return everything.status;
    if (const Status wrong = check_selection(*problem, everything)) return wrong;
    if (const Status failed = each_short<ShortForward>(*problem)) return failed;
    const Chunks chunks(*problem, problem->short_length);
    if (chunks.status || !chunks.count) return chunks.status;
    Batch batch(*problem, chunks);
    if (const Status failed = batch.fill()) return failed;
    return batch.each(FEW_TILES, ForwardTile(batch, 0, 0, nullptr).arena.used, forward_tile);
}

extern "C" int blossom_backward(Problem *problem) {
    const Chunks chunks(*problem, problem->short_length);
    if (chunks.status) return chunks.status;
    if (const Status failed = each_short<ShortBackward>(*problem)) return failed;
    if (!chunks.count) return FINE;
    Batch batch(*problem, chunks);
    if (const Status failed = batch.fill()) return failed;
    // Leaves the means that the gradients of the scores are taken from.
    Status failed = batch.each(
        FEW_TILES, QueryTile(batch, 0, 0, nullptr).arena.used, backward_queries_tile);
    if (failed) return failed;
    InverseLists lists(*problem, chunks);
    if ((failed = lists.fill(batch))) return failed;
    return batch.each(
        FEW_TILES, KeyTile(batch, 0, 0, nullptr).arena.used,
        [&](const Batch &all, int64_t chunk, int64_t group, Vector *scratch) {
            backward_keys_tile(all, lists, chunk, group, scratch);
        });
}

// Puts keys and values of the new events where they are kept.
extern "C" int blossom_append(Step *step) {
    return in_parallel(
        pieces_of(*step), step->threads, FEW_APPENDED, append_room(*step),
        [&](int64_t piece, Vector *scratch) {
            append_events(*step, piece * EVENTS_AT_ONCE, scratch);
        });
}

// Hidden of the new events, whose block keys must be there.
extern "C" int blossom_step(Step *step) {
    return in_parallel(
        pieces_of(*step), step->threads, FEW_EVENTS, StepScratch(*step, nullptr).arena.used,
        [&](int64_t piece, Vector *scratch) {
            step_events(*step, piece * EVENTS_AT_ONCE, scratch);
        });
}

// Both, where no block is completed.
extern "C" int blossom_extend(Step *step) {
    const int failed = blossom_append(step);
    return failed ? failed : blossom_step(step);
}
