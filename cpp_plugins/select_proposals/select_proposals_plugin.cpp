#include "select_proposals/select_proposals_plugin.h"

#include <cstddef>

namespace glmd {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr int kValid = 5;  // the position of the output `valid`, behind four inputs and the proposals

// Of the objectness (B, N).
SelectProposals problem_of(const SelectProposalsAttributes& attributes, const Dims& objectness) {
    return {static_cast<int>(objectness.d[0]), static_cast<int>(objectness.d[1]), attributes.pre_nms_topk,
            attributes.proposals, attributes.iou};
}

}  // namespace

const std::vector<Attribute>& SelectProposalsPlugin::attributes() {
    static const std::vector<Attribute> kAttributes = {
        {"pre_nms_topk", nvinfer1::PluginFieldType::kINT32, offsetof(SelectProposalsAttributes, pre_nms_topk)},
        {"proposals", nvinfer1::PluginFieldType::kINT32, offsetof(SelectProposalsAttributes, proposals)},
        {"iou", nvinfer1::PluginFieldType::kFLOAT32, offsetof(SelectProposalsAttributes, iou)},
    };
    return kAttributes;
}

const char* SelectProposalsPlugin::why_not_with(const SelectProposalsAttributes& attributes) {
    return why_not({1, 1, attributes.pre_nms_topk, attributes.proposals, attributes.iou});
}

int32_t SelectProposalsPlugin::getOutputDataTypes(DataType* outputs, int32_t, const DataType*,
                                                  int32_t) const noexcept {
    outputs[0] = DataType::kFLOAT;
    outputs[1] = DataType::kBOOL;
    return 0;
}

int32_t SelectProposalsPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*,
                                               int32_t, nvinfer1::DimsExprs* outputs, int32_t,
                                               nvinfer1::IExprBuilder& builder) noexcept {
    outputs[0].nbDims = 3;  // (B, R, 4)
    outputs[1].nbDims = 2;  // (B, R)
    outputs[0].d[0] = outputs[1].d[0] = inputs[0].d[0];
    outputs[0].d[1] = outputs[1].d[1] = builder.constant(attributes_.proposals);
    outputs[0].d[2] = builder.constant(4);
    return 0;
}

bool SelectProposalsPlugin::supportsFormatCombination(int32_t position,
                                                      const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                                      int32_t) noexcept {
    const auto& tensor = tensors[position].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR &&
           tensor.type == (position == kValid ? DataType::kBOOL : DataType::kFLOAT);
}

int32_t SelectProposalsPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                               const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
    return report(why_not(problem_of(attributes_, inputs[0].max)));
}

size_t SelectProposalsPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                               const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept {
    return workspace_bytes(problem_of(attributes_, inputs[0].max));
}

int32_t SelectProposalsPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t,
                                             const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
    return report(why_not(problem_of(attributes_, inputs[0].dims)));
}

int32_t SelectProposalsPlugin::enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*,
                                       const void* const* data, void* const* results, void* workspace,
                                       cudaStream_t stream) noexcept {
    const auto input = [&](int i) { return static_cast<const float*>(data[i]); };
    return report(select_proposals(problem_of(attributes_, inputs[0].dims), input(0), input(1), input(2), input(3),
                                   static_cast<float*>(results[0]), static_cast<bool*>(results[1]), workspace,
                                   stream));
}

}  // namespace glmd
