#include "roi_align/roi_align.h"

#include "roi_align/core.h"

namespace glmd {
namespace {

constexpr int kMaxBins = 32;
constexpr int kThreads = tuned(256, 16);
constexpr int kOutputsOfThread = tuned(16, 4);
constexpr size_t kMaxSharedBytes = 46 * 1024;  // with the spans within the 48 KiB that every device grants unasked

// Neighbouring channels that are loaded and stored as one.
struct alignas(16) Half8 {
    __half lane[8];
};

template <typename Vector>
struct Lanes;
template <>
struct Lanes<float> {
    static constexpr int kCount = 1;
    static __device__ void add(float* sums, float weight, float cell) { sums[0] += weight * cell; }
    static __device__ float pack(const float* sums) { return sums[0]; }
};
template <>
struct Lanes<__half> {
    static constexpr int kCount = 1;
    static __device__ void add(float* sums, float weight, __half cell) { sums[0] += weight * __half2float(cell); }
    static __device__ __half pack(const float* sums) { return __float2half_rn(sums[0]); }
};
template <>
struct Lanes<Half8> {
    static constexpr int kCount = 8;
    static __device__ void add(float* sums, float weight, const Half8& cell) {
        for (int lane = 0; lane < kCount; ++lane) sums[lane] += weight * __half2float(cell.lane[lane]);
    }
    static __device__ Half8 pack(const float* sums) {
        Half8 packed;
        for (int lane = 0; lane < kCount; ++lane) packed.lane[lane] = __float2half_rn(sums[lane]);
        return packed;
    }
};

__device__ __forceinline__ Half8 load(const Half8* address) {
    const uint4 words = *reinterpret_cast<const uint4*>(address);
    Half8 cell;
    memcpy(&cell, &words, sizeof(cell));
    return cell;
}
template <typename Vector>
__device__ __forceinline__ Vector load(const Vector* address) {
    return *address;
}

// What thread `index` of a ROI computes; neighbouring threads write neighbouring memory.
struct Output {
    int channel, y, x;  // channel in vectors, bin, bin
};
template <bool kChannelsLast>
__device__ Output locate(int index, int vectors, int bins) {
    if (kChannelsLast) return {index % vectors, index / vectors / bins, index / vectors % bins};
    return {index / (bins * bins), index / bins % bins, index % bins};
}

// A block does a share of one ROI's outputs: blockIdx.x is the ROI, blockIdx.y the share.
template <typename Vector, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 4)
    align(const RoiAlign problem, int vectors, const Vector* __restrict__ features, const float4* __restrict__ rois,
          Vector* __restrict__ out) {
    GLMD_DYNAMIC_SHARED(float, weights);  // (bins, W) of the columns, then (bins, H) of the rows
    GLMD_SHARED(Span, spans, 2 * kMaxBins);
    const int bins = problem.bins, height = problem.height, width = problem.width;
    float* const row_weights = weights + bins * width;
    const size_t roi = blockIdx.x;

    const float scale = 1.0f / static_cast<float>(problem.stride);
    const float4 box = rois[roi];
    for (int bin = threadIdx.x; bin < 2 * bins; bin += blockDim.x) {
        if (bin < bins) {
            const Axis axis = make_axis(box.x, box.z, scale, bins, problem.sampling_ratio, width);
            spans[bin] = weigh_cells(axis, bin, weights + bin * width);
        } else {
            const Axis axis = make_axis(box.y, box.w, scale, bins, problem.sampling_ratio, height);
            spans[bin] = weigh_cells(axis, bin - bins, row_weights + (bin - bins) * height);
        }
    }
    GLMD_BARRIER(cells_weighed);

    const size_t map = static_cast<size_t>(height) * width;
    const size_t image = roi / problem.rois;
    const size_t pixel_stride = kChannelsLast ? vectors : 1;
    const int outputs = vectors * bins * bins;
    const int share = blockDim.x * kOutputsOfThread;
    const int end = min(outputs, static_cast<int>(blockIdx.y + 1) * share);
    for (int index = blockIdx.y * share + threadIdx.x; index < end; index += blockDim.x) {
        const Output output = locate<kChannelsLast>(index, vectors, bins);
        const Span columns = spans[output.x], rows = spans[bins + output.y];
        const float* const by_column = weights + output.x * width;
        const float* const by_row = row_weights + output.y * height;
        const Vector* const plane =
            features + (kChannelsLast ? image * map * vectors + output.channel
                                      : (image * vectors + output.channel) * map);
        float sums[Lanes<Vector>::kCount] = {};
        for (int y = rows.first; y < rows.end; ++y) {
            const Vector* const row = plane + static_cast<size_t>(y) * width * pixel_stride;
            for (int x = columns.first; x < columns.end; ++x)
                Lanes<Vector>::add(sums, by_row[y] * by_column[x], load(row + x * pixel_stride));
        }
        out[roi * outputs + index] = Lanes<Vector>::pack(sums);
    }
}

template <typename Vector, bool kChannelsLast>
cudaError_t start(const RoiAlign& problem, const void* features, const float* rois, void* out, cudaStream_t stream) {
    const int vectors = divide_up(problem.channels, Lanes<Vector>::kCount);
    const int outputs = vectors * problem.bins * problem.bins;
    const dim3 grid(problem.images * problem.rois, divide_up(outputs, kThreads * kOutputsOfThread));
    const size_t shared = sizeof(float) * problem.bins * (problem.height + problem.width);
    return launch(align<Vector, kChannelsLast>, grid, kThreads, shared, stream, problem, vectors,
                  static_cast<const Vector*>(features), reinterpret_cast<const float4*>(rois),
                  static_cast<Vector*>(out));
}

}  // namespace

const char* why_not(const RoiAlign& problem) {
    if (problem.bins < 1 || problem.bins > kMaxBins) return "bins must be 1 to 32";
    if (problem.stride < 1) return "stride must be 1 or more";
    if (problem.sampling_ratio < 0) return "sampling_ratio must be 0 (adaptive) or more";
    if (sizeof(float) * problem.bins * (static_cast<size_t>(problem.height) + problem.width) > kMaxSharedBytes)
        return "bins * (H + W) must not exceed 11776: choose fewer bins, a larger stride or a smaller canvas";
    return "";
}

cudaError_t roi_align(const RoiAlign& problem, Element element, Layout layout, const void* features, const float* rois,
                      void* out, cudaStream_t stream) {
    if (why_not(problem)[0]) return cudaErrorInvalidValue;
    if (layout == Layout::kHwc8) {
        if (element != Element::kHalf) return cudaErrorInvalidValue;
        return start<Half8, true>(problem, features, rois, out, stream);
    }
    if (element == Element::kHalf) return start<__half, false>(problem, features, rois, out, stream);
    return start<float, false>(problem, features, rois, out, stream);
}

}  // namespace glmd
