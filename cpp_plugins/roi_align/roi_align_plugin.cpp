#include "roi_align/roi_align_plugin.h"

#include <cstddef>

namespace glmd {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorFormat;

RoiAlign problem_of(const RoiAlignAttributes& attributes, const Dims& features, const Dims& rois) {
    const auto at = [](const Dims& dims, int axis) { return static_cast<int>(dims.d[axis]); };
    return {at(features, 0), at(rois, 1),       at(features, 1),   at(features, 2),
            at(features, 3), attributes.bins, attributes.stride, attributes.sampling_ratio};
}

}  // namespace

const std::vector<Attribute>& RoiAlignPlugin::attributes() {
    static const std::vector<Attribute> kAttributes = {
        {"bins", nvinfer1::PluginFieldType::kINT32, offsetof(RoiAlignAttributes, bins)},
        {"stride", nvinfer1::PluginFieldType::kINT32, offsetof(RoiAlignAttributes, stride)},
        {"sampling_ratio", nvinfer1::PluginFieldType::kINT32, offsetof(RoiAlignAttributes, sampling_ratio)},
    };
    return kAttributes;
}

const char* RoiAlignPlugin::why_not_with(const RoiAlignAttributes& attributes) {
    return why_not({1, 1, 1, 1, 1, attributes.bins, attributes.stride, attributes.sampling_ratio});
}

int32_t RoiAlignPlugin::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                                           int32_t) const noexcept {
    outputs[0] = inputs[0];
    return 0;
}

int32_t RoiAlignPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*,
                                        int32_t, nvinfer1::DimsExprs* outputs, int32_t,
                                        nvinfer1::IExprBuilder& builder) noexcept {
    const auto* const bins = builder.constant(attributes_.bins);
    outputs[0].nbDims = 4;  // (B R, C, bins, bins)
    outputs[0].d[0] = builder.operation(nvinfer1::DimensionOperation::kPROD, *inputs[1].d[0], *inputs[1].d[1]);
    outputs[0].d[1] = inputs[0].d[1];
    outputs[0].d[2] = outputs[0].d[3] = bins;
    return 0;
}

bool RoiAlignPlugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                               int32_t, int32_t) noexcept {
    const auto& features = tensors[0].desc;
    const auto& tensor = tensors[position].desc;
    switch (position) {
        case 0:
            return tensor.format == TensorFormat::kLINEAR
                       ? tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF
                       : tensor.format == TensorFormat::kHWC8 && tensor.type == DataType::kHALF;
        case 1: return tensor.format == TensorFormat::kLINEAR && tensor.type == DataType::kFLOAT;
        default: return tensor.format == features.format && tensor.type == features.type;
    }
}

int32_t RoiAlignPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                        const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
    return report(why_not(problem_of(attributes_, inputs[0].max, inputs[1].max)));
}

int32_t RoiAlignPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t,
                                      const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
    return report(why_not(problem_of(attributes_, inputs[0].dims, inputs[1].dims)));
}

int32_t RoiAlignPlugin::enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*,
                                const void* const* data, void* const* results, void*, cudaStream_t stream) noexcept {
    const RoiAlign problem = problem_of(attributes_, inputs[0].dims, inputs[1].dims);
    const Element element = inputs[0].type == DataType::kHALF ? Element::kHalf : Element::kFloat;
    const Layout layout = inputs[0].format == TensorFormat::kHWC8 ? Layout::kHwc8 : Layout::kLinear;
    return report(
        roi_align(problem, element, layout, data[0], static_cast<const float*>(data[1]), results[0], stream));
}

}  // namespace glmd
