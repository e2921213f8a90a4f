// RoiAlign as a call: launches the kernel on a stream and returns.
#pragma once

#include "common/device.h"

namespace glmd {

enum class Element { kFloat, kHalf };
// kLinear: (B, C, H, W). kHwc8: (B, H, W, C) with C padded to a multiple of 8, half only; read 16 bytes at a time.
enum class Layout { kLinear, kHwc8 };

struct RoiAlign {
    int images, rois, channels, height, width;  // `rois` of each image
    int bins, stride, sampling_ratio;
};

// Empty if the kernel can run it, else why not.
const char* why_not(const RoiAlign& problem);

// features (B, C, H, W) of `element` in `layout`; rois (B, R, 4) float xyxy network pixels;
// out (B R, C, bins, bins) like the features. All on the device.
cudaError_t roi_align(const RoiAlign& problem, Element element, Layout layout, const void* features, const float* rois,
                      void* out, cudaStream_t stream);

}  // namespace glmd
