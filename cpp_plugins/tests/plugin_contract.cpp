// The plugin library as TensorRT sees it, without TensorRT: creators, fields, shapes, formats, workspace, clones, and
// enqueue on a machine that has no device. `plugin_contract libglmd_plugins.so`; prints what is wrong, and exits 1.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

using namespace nvinfer1;

namespace {

int g_wrong = 0;

void expect(bool holds, const char* what) {
    if (holds) return;
    std::printf("wrong: %s\n", what);
    ++g_wrong;
}

// Dimensions that are numbers.
class Number final : public IDimensionExpr, apiv::VDimensionExpr {
public:
    explicit Number(int64_t value) : value_(value) { mImpl = this; }
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return false; }

private:
    int64_t value_;
};

class Numbers final : public IExprBuilder, apiv::VExprBuilder {
public:
    Numbers() { mImpl = this; }
    const IDimensionExpr* constant(int64_t value) override {
        made_.push_back(std::make_unique<Number>(value));
        return made_.back().get();
    }
    const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr& a, const IDimensionExpr& b) override {
        return constant(a.getConstantValue() * b.getConstantValue());  // the plugins only multiply
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
        return nullptr;
    }
    DimsExprs shape(const std::vector<int64_t>& sizes) {
        DimsExprs dims{};
        dims.nbDims = static_cast<int32_t>(sizes.size());
        for (size_t axis = 0; axis < sizes.size(); ++axis) dims.d[axis] = constant(sizes[axis]);
        return dims;
    }

private:
    std::vector<std::unique_ptr<Number>> made_;
};

std::vector<int64_t> sizes_of(const DimsExprs& dims) {
    std::vector<int64_t> sizes;
    for (int axis = 0; axis < dims.nbDims; ++axis) sizes.push_back(dims.d[axis]->getConstantValue());
    return sizes;
}

DynamicPluginTensorDesc tensor(const std::vector<int64_t>& sizes, DataType type,
                               TensorFormat format = TensorFormat::kLINEAR) {
    DynamicPluginTensorDesc desc{};
    desc.desc.type = type;
    desc.desc.format = format;
    desc.desc.dims.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t axis = 0; axis < sizes.size(); ++axis) desc.desc.dims.d[axis] = sizes[axis];
    desc.min = desc.opt = desc.max = desc.desc.dims;
    return desc;
}

// A plugin and its three faces.
struct Made {
    std::unique_ptr<IPluginV3> plugin;
    IPluginV3OneCore* core;
    IPluginV3OneBuild* build;
    IPluginV3OneRuntime* runtime;

    explicit Made(IPluginV3* made) : plugin(made) {
        core = static_cast<IPluginV3OneCore*>(made->getCapabilityInterface(PluginCapabilityType::kCORE));
        build = static_cast<IPluginV3OneBuild*>(made->getCapabilityInterface(PluginCapabilityType::kBUILD));
        runtime = static_cast<IPluginV3OneRuntime*>(made->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    }
};

IPluginV3* create(IPluginCreatorV3One& creator, const std::vector<PluginField>& fields) {
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    return creator.createPlugin("test", &collection, TensorRTPhase::kBUILD);
}

PluginField field(const char* name, const int32_t& value) { return {name, &value, PluginFieldType::kINT32, 1}; }
PluginField field(const char* name, const float& value) { return {name, &value, PluginFieldType::kFLOAT32, 1}; }

// What holds of either plugin.
void check_common(IPluginCreatorV3One& creator, const Made& made, const std::vector<PluginField>& fields) {
    expect(!std::strcmp(made.core->getPluginName(), creator.getPluginName()), "the plugin has its creator's name");
    const PluginFieldCollection* const saved = made.runtime->getFieldsToSerialize();
    expect(saved->nbFields == static_cast<int32_t>(fields.size()), "every field is serialised");
    for (int i = 0; i < saved->nbFields; ++i)
        expect(!std::strcmp(saved->fields[i].name, fields[i].name) &&
                   !std::memcmp(saved->fields[i].data, fields[i].data, 4),
               "a serialised field has its value");
    const Made again(creator.createPlugin("again", saved, TensorRTPhase::kRUNTIME));
    const Made clone(again.plugin->clone());
    expect(!std::memcmp(clone.runtime->getFieldsToSerialize()->fields[0].data, fields[0].data, 4),
           "a clone of the deserialised plugin has the fields");

    for (size_t missing = 0; missing < fields.size(); ++missing) {
        std::vector<PluginField> others = fields;
        others.erase(others.begin() + missing);
        expect(!create(creator, others), "no plugin without one of its fields");
    }
    std::vector<PluginField> mistyped = fields;
    mistyped[0].type = PluginFieldType::kFLOAT64;
    expect(!create(creator, mistyped), "no plugin with a field of another type");
}

// Without a device every launch must report, and touch nothing.
void check_enqueue(const Made& made, const std::vector<DynamicPluginTensorDesc>& tensors, int inputs) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return;  // pointers below are no device's
    std::vector<PluginTensorDesc> descs;
    for (const auto& each : tensors) descs.push_back(each.desc);
    const std::vector<const void*> data(inputs, nullptr);
    const std::vector<void*> results(tensors.size() - inputs, nullptr);
    expect(made.runtime->enqueue(descs.data(), descs.data() + inputs, data.data(), results.data(), nullptr,
                                 nullptr) != 0,
           "enqueue without a device is an error");
}

bool supported(const Made& made, const std::vector<DynamicPluginTensorDesc>& tensors, int inputs) {
    const int count = static_cast<int>(tensors.size());
    for (int at = 0; at < count; ++at)
        if (!made.build->supportsFormatCombination(at, tensors.data(), inputs, count - inputs)) return false;
    return true;
}

void check_roi_align(IPluginCreatorV3One& creator) {
    const int32_t bins = 7, stride = 16, sampling_ratio = 0, too_many = 33;
    const std::vector<PluginField> fields = {field("bins", bins), field("stride", stride),
                                             field("sampling_ratio", sampling_ratio)};
    const Made made(create(creator, fields));
    check_common(creator, made, fields);
    expect(!create(creator, {field("bins", too_many), fields[1], fields[2]}), "no plugin with 33 bins");

    Numbers numbers;
    const DimsExprs inputs[] = {numbers.shape({2, 112, 40, 50}), numbers.shape({2, 300, 4})};
    DimsExprs output{};
    expect(made.build->getOutputShapes(inputs, 2, nullptr, 0, &output, 1, numbers) == 0, "shapes follow");
    expect(sizes_of(output) == std::vector<int64_t>{600, 112, 7, 7}, "the shape is (B R, C, bins, bins)");

    const auto tensors = [](DataType type, TensorFormat in, TensorFormat out, DataType rois = DataType::kFLOAT) {
        return std::vector<DynamicPluginTensorDesc>{tensor({2, 112, 40, 50}, type, in), tensor({2, 300, 4}, rois),
                                                    tensor({600, 112, 7, 7}, type, out)};
    };
    const auto linear = TensorFormat::kLINEAR, hwc8 = TensorFormat::kHWC8;
    expect(supported(made, tensors(DataType::kHALF, linear, linear), 2), "half, linear");
    expect(supported(made, tensors(DataType::kHALF, hwc8, hwc8), 2), "half, channels last");
    expect(supported(made, tensors(DataType::kFLOAT, linear, linear), 2), "float, linear");
    expect(!supported(made, tensors(DataType::kFLOAT, hwc8, hwc8), 2), "no float, channels last");
    expect(!supported(made, tensors(DataType::kHALF, linear, hwc8), 2), "no change of layout");
    expect(!supported(made, tensors(DataType::kINT8, linear, linear), 2), "no int8");
    expect(!supported(made, tensors(DataType::kHALF, linear, linear, DataType::kHALF), 2), "no ROIs in half");

    const DataType types[] = {DataType::kHALF, DataType::kFLOAT};
    DataType type{};
    expect(made.build->getOutputDataTypes(&type, 1, types, 2) == 0 && type == DataType::kHALF,
           "the type is the features'");
    const auto good = tensors(DataType::kHALF, linear, linear);
    expect(made.build->configurePlugin(good.data(), 2, good.data() + 2, 1) == 0, "configures");
    auto large = good;
    large[0] = tensor({2, 112, 4000, 4000}, DataType::kHALF);
    expect(made.build->configurePlugin(large.data(), 2, large.data() + 2, 1) != 0, "refuses a map beyond shared memory");
    check_enqueue(made, good, 2);
}

void check_select_proposals(IPluginCreatorV3One& creator) {
    const int32_t pre_nms_topk = 3000, proposals = 300;
    const float iou = 0.7f, below = -1.0f;
    const std::vector<PluginField> fields = {field("pre_nms_topk", pre_nms_topk), field("proposals", proposals),
                                             field("iou", iou)};
    const Made made(create(creator, fields));
    check_common(creator, made, fields);
    expect(!create(creator, {fields[0], fields[1], field("iou", below)}), "no plugin with a negative iou");

    Numbers numbers;
    const DimsExprs inputs[] = {numbers.shape({2, 30000}), numbers.shape({2, 30000, 4}), numbers.shape({30000, 4}),
                                numbers.shape({2, 4})};
    DimsExprs outputs[2]{};
    expect(made.build->getOutputShapes(inputs, 4, nullptr, 0, outputs, 2, numbers) == 0, "shapes follow");
    expect(sizes_of(outputs[0]) == std::vector<int64_t>{2, 300, 4}, "proposals are (B, R, 4)");
    expect(sizes_of(outputs[1]) == std::vector<int64_t>{2, 300}, "valid is (B, R)");
    DataType types[2];
    expect(made.build->getOutputDataTypes(types, 2, nullptr, 4) == 0 && types[0] == DataType::kFLOAT &&
               types[1] == DataType::kBOOL,
           "proposals are float, valid is bool");

    std::vector<DynamicPluginTensorDesc> tensors = {
        tensor({2, 30000}, DataType::kFLOAT), tensor({2, 30000, 4}, DataType::kFLOAT),
        tensor({30000, 4}, DataType::kFLOAT), tensor({2, 4}, DataType::kFLOAT),
        tensor({2, 300, 4}, DataType::kFLOAT), tensor({2, 300}, DataType::kBOOL)};
    expect(supported(made, tensors, 4), "float in, float and bool out");
    expect(made.build->configurePlugin(tensors.data(), 4, tensors.data() + 4, 2) == 0, "configures");
    const size_t bytes = made.build->getWorkspaceSize(tensors.data(), 4, tensors.data() + 4, 2);
    expect(bytes > size_t{2} * 3000 * 3000 / 8 && bytes < size_t{8} << 20, "the workspace holds a bit for each pair");
    check_enqueue(made, tensors, 4);
    tensors[0] = tensor({2, 30000}, DataType::kHALF);
    expect(!supported(made, tensors, 4), "no scores in half");
}

}  // namespace

int main(int count, char** arguments) {
    void* const library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : nullptr;
    if (!library) {
        std::printf("usage: plugin_contract libglmd_plugins.so; %s\n", count == 2 ? dlerror() : "");
        return 2;
    }
    const auto get_creators =
        reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    const auto set_logger_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    expect(get_creators && set_logger_finder, "the library exports getCreators and setLoggerFinder");
    if (g_wrong) return 1;

    set_logger_finder(nullptr);
    int32_t creators = 0;
    IPluginCreatorInterface* const* const found = get_creators(creators);
    expect(creators == 2, "two creators");
    check_roi_align(static_cast<IPluginCreatorV3One&>(*found[0]));
    check_select_proposals(static_cast<IPluginCreatorV3One&>(*found[1]));
    std::printf("%d wrong\n", g_wrong);
    return g_wrong ? 1 : 0;
}
