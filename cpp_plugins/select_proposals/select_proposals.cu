// Five kernels in a row; blockIdx.y or the last grid axis is the image.
//
//   pick_best      the K best rows of N, in no order: a radix select over the rank keys
//   sort_chunks    each chunk of them in falling order
//   decode_ranked  the place of each among all, its box decoded and clipped there
//   find_overlaps  for each box a bit for every worse one that it overlaps
//   keep_best      the best first, each one kept removes what it overlaps, until R are kept
//
// Keys are unique and only integers are added across threads, so every run gives the same result.
#include "select_proposals/select_proposals.h"

#include "select_proposals/core.h"

namespace glmd {
namespace {

using Word = unsigned long long;

constexpr int kWordBits = 64;
constexpr int kChunk = tuned(1024, 16);  // keys sorted in shared memory by one block

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kGroups = 32;  // of digits, summed side by side so that one thread has few sums to walk through

// Where a radix select stands: the wanted keys are those whose known bits exceed `threshold`, and the `needed` greatest
// of those that share them.
struct Selection {
    Key threshold;
    unsigned needed, taken;
    bool exact;  // the wanted keys are those >= threshold
};

// One thread: the digit at which the count of greater keys reaches what is needed.
__device__ void choose_digit(Selection& selection, const unsigned* histogram, const unsigned* groups, int shift) {
    constexpr int kGroupDigits = kDigits / kGroups;
    int group = kGroups - 1;
    for (; groups[group] < selection.needed; --group) selection.needed -= groups[group];
    int digit = group * kGroupDigits + kGroupDigits - 1;
    for (; histogram[digit] < selection.needed; --digit) selection.needed -= histogram[digit];
    selection.threshold |= static_cast<Key>(digit) << shift;
    selection.exact = histogram[digit] == selection.needed;
}

constexpr int kPickThreads = tuned(1024, 32);

// One block an image: best (B, K) of objectness (B, N).
__global__ void __launch_bounds__(kPickThreads)
    pick_best(int anchors, int k, const float* __restrict__ objectness, Key* __restrict__ best) {
    GLMD_SHARED(unsigned, histogram, kDigits);
    GLMD_SHARED(unsigned, groups, kGroups);
    GLMD_SHARED(Selection, selection, 1);
    const float* const scores = objectness + static_cast<size_t>(blockIdx.x) * anchors;
    Key* const picked = best + static_cast<size_t>(blockIdx.x) * k;

    if (threadIdx.x == 0) *selection = {0, static_cast<unsigned>(k), 0, false};
    int known = 64;  // bits from here up are settled
    do {
        const int shift = known > kDigitBits ? known - kDigitBits : 0;
        for (int digit = threadIdx.x; digit < kDigits; digit += blockDim.x) histogram[digit] = 0;
        GLMD_BARRIER(histogram_cleared);
        for (int row = threadIdx.x; row < anchors; row += blockDim.x) {
            const Key key = rank_key(scores[row], row);
            if (known == 64 || key >> known == selection->threshold >> known)
                atomicAdd(&histogram[key >> shift & (kDigits - 1)], 1u);
        }
        GLMD_BARRIER(digits_counted);
        for (int group = threadIdx.x; group < kGroups; group += blockDim.x) {
            groups[group] = 0;
            for (int digit = 0; digit < kDigits / kGroups; ++digit)
                groups[group] += histogram[group * (kDigits / kGroups) + digit];
        }
        GLMD_BARRIER(groups_summed);
        if (threadIdx.x == 0) choose_digit(*selection, histogram, groups, shift);
        GLMD_BARRIER(digit_chosen);
        known = shift;
    } while (!selection->exact);

    for (int row = threadIdx.x; row < anchors; row += blockDim.x) {
        const Key key = rank_key(scores[row], row);
        if (key >= selection->threshold) picked[atomicAdd(&selection->taken, 1u)] = key;
    }
}

constexpr int kSortThreads = tuned(512, 4);

// Block (chunk, image): a bitonic sort, falling; what is missing in the last chunk becomes zeros at its end.
__global__ void __launch_bounds__(kSortThreads)
    sort_chunks(int k, const Key* __restrict__ best, Key* __restrict__ sorted) {
    GLMD_SHARED(Key, keys, kChunk);
    const int first = blockIdx.x * kChunk;
    for (int i = threadIdx.x; i < kChunk; i += blockDim.x)
        keys[i] = first + i < k ? best[static_cast<size_t>(blockIdx.y) * k + first + i] : 0;
    for (int run = 2; run <= kChunk; run *= 2) {
        for (int distance = run / 2; distance > 0; distance /= 2) {
            GLMD_BARRIER(keys_written);
            for (int pair = threadIdx.x; pair < kChunk / 2; pair += blockDim.x) {
                const int low = pair / distance * 2 * distance + pair % distance, high = low + distance;
                const bool falling = (low & run) == 0;
                const Key a = keys[low], b = keys[high];
                if (falling ? a < b : a > b) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    GLMD_BARRIER(keys_sorted);
    const size_t chunk = static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    for (int i = threadIdx.x; i < kChunk; i += blockDim.x) sorted[chunk * kChunk + i] = keys[i];
}

constexpr int kDecodeThreads = tuned(256, 8);

// Thread (key, image): boxes (B, K, 4), best first.
__global__ void __launch_bounds__(kDecodeThreads)
    decode_ranked(int n, int k, int chunks, const Key* __restrict__ sorted, const float4* __restrict__ deltas,
                  const float4* __restrict__ anchors, const float4* __restrict__ edges, float4* __restrict__ boxes) {
    const int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= k) return;
    const size_t image = blockIdx.y;
    const Key* const keys = sorted + image * chunks * kChunk;
    const Key key = keys[place];
    int rank = place % kChunk;
    for (int chunk = 0; chunk < chunks; ++chunk)
        if (chunk != place / kChunk) rank += count_greater(keys + chunk * kChunk, kChunk, key);
    const unsigned row = index_of(key);
    boxes[image * k + rank] = clip(decode(deltas[image * n + row], anchors[row]), edges[image]);
}

// Block (column word, row word, image): overlaps (B, words, words * 64), by column word so that keep_best reads one
// word of neighbouring boxes from neighbouring memory.
__global__ void __launch_bounds__(kWordBits)
    find_overlaps(int k, float iou, const float4* __restrict__ boxes, Word* __restrict__ overlaps) {
    if (blockIdx.x < blockIdx.y) return;  // only worse boxes are ever removed
    GLMD_SHARED(float4, columns, kWordBits);
    const size_t image = blockIdx.z;
    const int words = gridDim.x, first_column = blockIdx.x * kWordBits;
    const int row = blockIdx.y * kWordBits + threadIdx.x;
    const float4* const boxes_of_image = boxes + image * k;

    const int column = first_column + threadIdx.x;
    if (column < k) columns[threadIdx.x] = boxes_of_image[column];
    GLMD_BARRIER(columns_loaded);
    if (row >= k) return;
    const float4 box = boxes_of_image[row];
    Word bits = 0;
    for (int i = 0; i < kWordBits && first_column + i < k; ++i)
        if (first_column + i > row && overlap(box, columns[i], iou)) bits |= Word{1} << i;
    overlaps[(image * words + blockIdx.x) * words * kWordBits + row] = bits;
}

// One thread: the boxes of a word that stay, given those that earlier words removed and `within`, each box's overlaps
// in this word.
__device__ int keep_in_word(Word removed, const Word* within, int word, int wanted, int count, int* kept) {
    for (Word left = ~removed; left && count < wanted;) {
        const int i = __ffsll(static_cast<long long>(left)) - 1;
        kept[count++] = word * kWordBits + i;
        left &= ~(within[i] | Word{1} << i);
    }
    return count;
}

constexpr int kKeepThreads = tuned(256, 8);

// One block an image: proposals (B, R, 4) and valid (B, R); `kept` (B, R) is its memory.
__global__ void __launch_bounds__(kKeepThreads)
    keep_best(int k, int wanted, const float4* __restrict__ boxes, const Word* __restrict__ overlaps, int* kept,
              float4* __restrict__ proposals, bool* __restrict__ valid) {
    GLMD_SHARED(Word, within, kWordBits);
    GLMD_SHARED(Word, removed, 1);
    GLMD_SHARED(int, count, 1);
    const size_t image = blockIdx.x;
    const int words = divide_up(k, kWordBits);
    boxes += image * k;
    kept += image * wanted;

    if (threadIdx.x == 0) {
        *removed = 0;
        *count = 0;
    }
    for (int word = 0; word < words; ++word) {
        GLMD_BARRIER(earlier_words_kept);
        if (*count == wanted) break;
        const Word* const column = overlaps + (image * words + word) * words * kWordBits;
        Word bits = 0;
        for (int i = threadIdx.x; i < *count; i += blockDim.x) bits |= column[kept[i]];
        for (int i = threadIdx.x; i < kWordBits; i += blockDim.x) {
            const int row = word * kWordBits + i;
            if (row < k && !is_empty(boxes[row])) within[i] = column[row];
            else bits |= Word{1} << i;
        }
        if (bits) atomicOr(removed, bits);
        GLMD_BARRIER(removed_gathered);
        if (threadIdx.x == 0) {
            *count = keep_in_word(*removed, within, word, wanted, *count, kept);
            *removed = 0;
        }
    }
    GLMD_BARRIER(last_word_kept);
    for (int i = threadIdx.x; i < wanted; i += blockDim.x) {
        const bool filled = i < *count;
        proposals[image * wanted + i] = filled ? boxes[kept[i]] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        valid[image * wanted + i] = filled;
    }
}

// Each array of the workspace at a multiple of 256 bytes.
struct Workspace {
    size_t bytes = 0;
    char* base = nullptr;

    template <typename T>
    T* take(size_t count) {
        T* const array = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
        bytes += (count * sizeof(T) + 255) / 256 * 256;
        return array;
    }
};

struct Arrays {
    int k, words, chunks;
    Key *best, *sorted;
    float4* boxes;
    Word* overlaps;
    int* kept;
};

Arrays lay_out(const SelectProposals& problem, Workspace& workspace) {
    Arrays arrays;
    const size_t images = problem.images;
    const int wanted = problem.pre_nms_topk > problem.proposals ? problem.pre_nms_topk : problem.proposals;
    const int k = arrays.k = min(wanted, problem.anchors);
    const int words = arrays.words = divide_up(k, kWordBits);
    arrays.chunks = divide_up(k, kChunk);
    arrays.best = workspace.take<Key>(images * k);
    arrays.sorted = workspace.take<Key>(images * arrays.chunks * kChunk);
    arrays.boxes = workspace.take<float4>(images * k);
    arrays.overlaps = workspace.take<Word>(images * words * words * kWordBits);
    arrays.kept = workspace.take<int>(images * problem.proposals);
    return arrays;
}

}  // namespace

const char* why_not(const SelectProposals& problem) {
    if (problem.pre_nms_topk < 1) return "pre_nms_topk must be 1 or more";
    if (problem.proposals < 1) return "proposals must be 1 or more";
    if (!(problem.iou >= 0.0f)) return "iou must be 0 or more";
    if (problem.anchors < 1) return "there must be an anchor";
    return "";
}

size_t workspace_bytes(const SelectProposals& problem) {
    Workspace workspace;
    lay_out(problem, workspace);
    return workspace.bytes;
}

cudaError_t select_proposals(const SelectProposals& problem, const float* objectness, const float* deltas,
                             const float* anchors, const float* edges, float* proposals, bool* valid, void* memory,
                             cudaStream_t stream) {
    if (why_not(problem)[0]) return cudaErrorInvalidValue;
    Workspace workspace{0, static_cast<char*>(memory)};
    const Arrays a = lay_out(problem, workspace);
    const unsigned images = problem.images, words = a.words, chunks = a.chunks;
    const auto boxes_of = [](const float* rows) { return reinterpret_cast<const float4*>(rows); };

    cudaError_t error = launch(pick_best, images, kPickThreads, 0, stream, problem.anchors, a.k, objectness, a.best);
    if (error == cudaSuccess)
        error = launch(sort_chunks, dim3(chunks, images), kSortThreads, 0, stream, a.k, a.best, a.sorted);
    if (error == cudaSuccess)
        error = launch(decode_ranked, dim3(divide_up(a.k, kDecodeThreads), images), kDecodeThreads, 0, stream,
                       problem.anchors, a.k, a.chunks, a.sorted, boxes_of(deltas), boxes_of(anchors), boxes_of(edges),
                       a.boxes);
    if (error == cudaSuccess)
        error = launch(find_overlaps, dim3(words, words, images), kWordBits, 0, stream, a.k, problem.iou, a.boxes,
                       a.overlaps);
    if (error == cudaSuccess)
        error = launch(keep_best, images, kKeepThreads, 0, stream, a.k, problem.proposals, a.boxes, a.overlaps, a.kept,
                       reinterpret_cast<float4*>(proposals), valid);
    return error;
}

}  // namespace glmd
