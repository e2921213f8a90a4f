// What only the host library offers to tests: the order of threads, barriers left out, and the arithmetic alone.
#include "roi_align/core.h"
#include "select_proposals/core.h"

#define GLMD_EXPORT extern "C" __attribute__((visibility("default")))

// order: 0 forward, 1 reverse, 2 shuffled.
GLMD_EXPORT void glmd_schedule(int order, unsigned seed) { glmd::schedule(static_cast<glmd::Order>(order), seed); }

GLMD_EXPORT void glmd_leave_out_barrier(const char* name) { glmd::leave_out_barrier(name); }

// deltas, anchors (N, 4), edges (4,) -> boxes (N, 4), decoded and clipped.
GLMD_EXPORT void glmd_decode(int n, const float4* deltas, const float4* anchors, const float4* edges, float4* boxes) {
    for (int row = 0; row < n; ++row) boxes[row] = glmd::clip(glmd::decode(deltas[row], anchors[row]), *edges);
}

GLMD_EXPORT float glmd_max_log_scale() { return glmd::kMaxLogScale; }

GLMD_EXPORT void glmd_to_half(int n, const float* values, uint16_t* halves) {
    for (int i = 0; i < n; ++i) halves[i] = __float2half_rn(values[i]).bits;
}

GLMD_EXPORT void glmd_from_half(int n, const uint16_t* halves, float* values) {
    for (int i = 0; i < n; ++i) values[i] = __half2float({halves[i]});
}
