// GlmdSelectProposals for TensorRT; contract in cpp_plugins/README.md.
#pragma once

#include "common/plugin.h"
#include "select_proposals/select_proposals.h"

namespace glmd {

struct SelectProposalsAttributes {
    int32_t pre_nms_topk, proposals;
    float iou;
};

class SelectProposalsPlugin final : public Plugin<SelectProposalsPlugin, SelectProposalsAttributes> {
public:
    static constexpr const char* kName = "GlmdSelectProposals";
    static const std::vector<Attribute>& attributes();
    static const char* why_not_with(const SelectProposalsAttributes& attributes);

    using Plugin::Plugin;

    int32_t getNbOutputs() const noexcept override { return 2; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType*,
                               int32_t) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*, int32_t,
                            nvinfer1::DimsExprs* outputs, int32_t,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                   int32_t) noexcept override;
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                            const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override;
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                            const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override;
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t, const nvinfer1::PluginTensorDesc*,
                          int32_t) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*,
                    const void* const* data, void* const* results, void* workspace,
                    cudaStream_t stream) noexcept override;
};

}  // namespace glmd
