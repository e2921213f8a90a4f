// GlmdRoiAlign for TensorRT; contract in cpp_plugins/README.md.
#pragma once

#include "common/plugin.h"
#include "roi_align/roi_align.h"

namespace glmd {

struct RoiAlignAttributes {
    int32_t bins, stride, sampling_ratio;
};

class RoiAlignPlugin final : public Plugin<RoiAlignPlugin, RoiAlignAttributes> {
public:
    static constexpr const char* kName = "GlmdRoiAlign";
    static const std::vector<Attribute>& attributes();
    static const char* why_not_with(const RoiAlignAttributes& attributes);

    using Plugin::Plugin;

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType* inputs,
                               int32_t) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*, int32_t,
                            nvinfer1::DimsExprs* outputs, int32_t,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                   int32_t) noexcept override;
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                            const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override;
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t, const nvinfer1::PluginTensorDesc*,
                          int32_t) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*,
                    const void* const* data, void* const* results, void*, cudaStream_t stream) noexcept override;
};

}  // namespace glmd
