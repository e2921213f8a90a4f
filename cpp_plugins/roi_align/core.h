// RoiAlign's arithmetic along one axis. Lengths are in cells of the feature map.
//
// The mean over a bin's sampling grid of bilinear samples is a product of one weight per row and one per column. A bin
// of s x s samples then reads about (s + 1)^2 cells instead of 4 s^2, and the sampling is worked out once a ROI
// instead of once a channel.
#pragma once

#include "common/device.h"

namespace glmd {

// Beyond this many samples in a bin and axis their number is cut: floats cannot tell them apart any more.
constexpr float kMostSamples = 4194304.0f;
// From this many samples on, those outside the map are skipped without looking at each.
constexpr int kManySamples = 64;

struct Axis {
    float start;     // of the ROI
    float bin;       // size of a bin; negative in a ROI whose ends are swapped
    int samples;     // in a bin
    int extent;      // cells of the map
};

// Cells [first, end) of an axis.
struct Span {
    int first, end;
};

// `low`, `high`: the ROI's ends in pixels. sampling_ratio 0 asks for ceil(bin size) samples, none in an empty ROI.
__host__ __device__ inline Axis make_axis(float low, float high, float scale, int bins, int sampling_ratio,
                                          int extent) {
    const float start = low * scale - 0.5f;
    const float size = high * scale - 0.5f - start;
    if (!(fabsf(start) < INFINITY && fabsf(size) < INFINITY)) return {0.0f, 0.0f, 0, extent};
    const float bin = size / static_cast<float>(bins);
    const float adaptive = fminf(fmaxf(ceilf(bin), 0.0f), kMostSamples);  // none in a ROI whose ends are swapped
    return {start, bin, sampling_ratio > 0 ? sampling_ratio : static_cast<int>(adaptive), extent};
}

// The samples of a bin that may lie inside the map, all of them unless they are many.
__host__ __device__ inline Span samples_near_map(const Axis& axis, float base) {
    if (axis.samples < kManySamples || axis.bin == 0.0f) return {0, axis.samples};
    constexpr float kSlack = 8.0f;  // of samples, against rounding in these two quotients
    const float per_cell = static_cast<float>(axis.samples) / fabsf(axis.bin);
    const float low = axis.bin > 0 ? -1.0f - base : base - static_cast<float>(axis.extent);
    const float high = axis.bin > 0 ? static_cast<float>(axis.extent) - base : base + 1.0f;
    const float most = static_cast<float>(axis.samples);
    return {static_cast<int>(fminf(fmaxf(low * per_cell - kSlack, 0.0f), most)),
            static_cast<int>(fminf(fmaxf(high * per_cell + kSlack, 0.0f), most))};
}

// The weight of each cell in bin number `bin`, written to weights[first .. end); the samples of a bin weigh 1 together,
// less what falls outside [-1, extent].
__host__ __device__ inline Span weigh_cells(const Axis& axis, int bin, float* weights) {
    const float base = axis.start + static_cast<float>(bin) * axis.bin;
    const float count = static_cast<float>(axis.samples);
    const Span samples = samples_near_map(axis, base);
    const int last = axis.extent - 1;
    Span cells = {0, 0};
    for (int step = samples.first; step < samples.end; ++step) {
        // Upwards also in a swapped ROI, so that the cells are met in order.
        const int sample = axis.bin < 0 ? samples.first + samples.end - 1 - step : step;
        const float position = base + (static_cast<float>(sample) + 0.5f) * axis.bin / count;
        if (position < -1.0f || position > static_cast<float>(axis.extent)) continue;
        const float inside = fminf(fmaxf(position, 0.0f), static_cast<float>(last));
        const int low = static_cast<int>(inside);
        const int high = low < last ? low + 1 : last;
        if (cells.end == 0) cells = {low, low};
        while (cells.end <= high) weights[cells.end++] = 0.0f;
        const float share = inside - static_cast<float>(low);
        weights[low] += (1.0f - share) / count;
        weights[high] += share / count;
    }
    return cells;
}

}  // namespace glmd
