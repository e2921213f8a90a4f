// The two calls with a C interface, for tests that load them by ctypes: on the device, or, under GLMD_HOST, on the CPU.
// They return a cudaError_t.
#include "roi_align/roi_align.h"
#include "select_proposals/select_proposals.h"

#define GLMD_EXPORT extern "C" __attribute__((visibility("default")))

GLMD_EXPORT int glmd_roi_align(const glmd::RoiAlign* problem, int half, int hwc8, const void* features,
                               const float* rois, void* out, void* stream) {
    return glmd::roi_align(*problem, half ? glmd::Element::kHalf : glmd::Element::kFloat,
                           hwc8 ? glmd::Layout::kHwc8 : glmd::Layout::kLinear, features, rois, out,
                           static_cast<cudaStream_t>(stream));
}

GLMD_EXPORT size_t glmd_workspace_bytes(const glmd::SelectProposals* problem) {
    return glmd::workspace_bytes(*problem);
}

GLMD_EXPORT int glmd_select_proposals(const glmd::SelectProposals* problem, const float* objectness,
                                      const float* deltas, const float* anchors, const float* edges, float* proposals,
                                      bool* valid, void* workspace, void* stream) {
    return glmd::select_proposals(*problem, objectness, deltas, anchors, edges, proposals, valid, workspace,
                                  static_cast<cudaStream_t>(stream));
}
