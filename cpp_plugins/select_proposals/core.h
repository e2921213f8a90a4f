// Arithmetic of proposal selection: the order of scores, box decoding, overlap. Boxes are xyxy network pixels.
//
// Built without fused multiply-add, so that device and host, and PyTorch, round alike; only expf may differ.
#pragma once

#include "common/device.h"

namespace glmd {

// log(1000 / 16): a box may grow at most from 16 to 1000 pixels in one step, and exp stays finite.
constexpr float kMaxLogScale = 4.135166556742356f;

using Key = uint64_t;

// A key that is greater the better the row: by score, then by lower index. Never 0, and different for each row.
// NaN ranks below every number, so that it is a proposal only where there are too few numbers.
__host__ __device__ inline Key rank_key(float score, unsigned index) {
    unsigned bits = 0;
    if (score == 0.0f) score = 0.0f;  // -0 ties with 0
    memcpy(&bits, &score, sizeof(bits));
    // Floats compare like their bits, negative ones in reverse.
    unsigned rank = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (score != score) rank = 0;
    return static_cast<Key>(rank) << 32 | static_cast<unsigned>(~index);
}

__host__ __device__ inline unsigned index_of(Key key) { return ~static_cast<unsigned>(key); }

// How many of `count` keys in falling order are greater than `key`.
__host__ __device__ inline int count_greater(const Key* keys, int count, Key key) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (keys[middle] > key) low = middle + 1;
        else high = middle;
    }
    return low;
}

// How many times an anchor's side the box's is. A NaN stays one, which fminf would turn into the limit.
__host__ __device__ inline float growth(float log_scale) {
    return expf(log_scale > kMaxLogScale ? kMaxLogScale : log_scale);
}

// delta: centre shift over size (x, y), log of the size ratio (z, w).
__host__ __device__ inline float4 decode(float4 delta, float4 anchor) {
    const float anchor_width = anchor.z - anchor.x, anchor_height = anchor.w - anchor.y;
    const float x = delta.x * anchor_width + (anchor.x + anchor_width / 2.0f);
    const float y = delta.y * anchor_height + (anchor.y + anchor_height / 2.0f);
    const float width = growth(delta.z) * anchor_width;
    const float height = growth(delta.w) * anchor_height;
    return make_float4(x - width / 2.0f, y - height / 2.0f, x + width / 2.0f, y + height / 2.0f);
}

// edges: width, height, width, height of the valid area. A NaN becomes 0, and its box, NaN on both sides, empty.
__host__ __device__ inline float4 clip(float4 box, float4 edges) {
    return make_float4(fminf(fmaxf(box.x, 0.0f), edges.x), fminf(fmaxf(box.y, 0.0f), edges.y),
                       fminf(fmaxf(box.z, 0.0f), edges.z), fminf(fmaxf(box.w, 0.0f), edges.w));
}

__host__ __device__ inline bool is_empty(float4 box) { return !(box.z > box.x && box.w > box.y); }

__host__ __device__ inline float area(float4 box) { return (box.z - box.x) * (box.w - box.y); }

// Whether the intersection over union of two boxes that are not empty exceeds `iou`.
__host__ __device__ inline bool overlap(float4 a, float4 b, float iou) {
    const float width = fminf(a.z, b.z) - fmaxf(a.x, b.x), height = fminf(a.w, b.w) - fmaxf(a.y, b.y);
    if (!(width > 0.0f && height > 0.0f)) return false;
    const float intersection = width * height;
    return intersection / (area(a) + area(b) - intersection) > iou;
}

}  // namespace glmd
