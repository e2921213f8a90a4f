// Proposal selection as a call: launches its kernels on a stream and returns.
#pragma once

#include "common/device.h"

namespace glmd {

struct SelectProposals {
    int images, anchors;
    int pre_nms_topk, proposals;
    float iou;
};

// Empty if the kernels can run it, else why not.
const char* why_not(const SelectProposals& problem);

// Bytes of device memory that a call works in.
size_t workspace_bytes(const SelectProposals& problem);

// objectness (B, N), deltas (B, N, 4), anchors (N, 4), edges (B, 4) float -> proposals (B, R, 4) float, valid (B, R)
// bool. All on the device; `workspace` aligned to 256 bytes.
cudaError_t select_proposals(const SelectProposals& problem, const float* objectness, const float* deltas,
                             const float* anchors, const float* edges, float* proposals, bool* valid, void* workspace,
                             cudaStream_t stream);

}  // namespace glmd
