// What both plugins share: their attributes as fields, the capability interfaces of IPluginV3, and the creator.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "common/log.h"

namespace glmd {

constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "";

// One attribute of a plugin: an int32_t or float inside its struct of attributes.
struct Attribute {
    const char* name;
    nvinfer1::PluginFieldType type;
    size_t offset;
};

// The attributes as fields that point into `values`; for the names alone, nullptr.
inline std::vector<nvinfer1::PluginField> fields_of(const std::vector<Attribute>& attributes, const void* values) {
    std::vector<nvinfer1::PluginField> fields;
    for (const Attribute& attribute : attributes)
        fields.emplace_back(attribute.name, values ? static_cast<const char*>(values) + attribute.offset : nullptr,
                            attribute.type, 1);
    return fields;
}

// Fills `values`; empty, or why it cannot.
inline std::string read_fields(const std::vector<Attribute>& attributes,
                               const nvinfer1::PluginFieldCollection* fields, void* values) {
    for (const Attribute& attribute : attributes) {
        const nvinfer1::PluginField* found = nullptr;
        for (int i = 0; fields && i < fields->nbFields; ++i)
            if (!std::strcmp(fields->fields[i].name, attribute.name)) found = &fields->fields[i];
        if (!found || !found->data) return std::string("attribute '") + attribute.name + "' is missing";
        if (found->type != attribute.type || found->length != 1)
            return std::string("attribute '") + attribute.name + "' must be one " +
                   (attribute.type == nvinfer1::PluginFieldType::kINT32 ? "int32" : "float32");
        std::memcpy(static_cast<char*>(values) + attribute.offset, found->data, 4);
    }
    return "";
}

// A `Derived` has kName, attributes() and why_not_with(attributes), and does what depends on its tensors.
template <typename Derived, typename Attributes>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
public:
    explicit Plugin(const Attributes& attributes) : attributes_(attributes) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Derived(attributes_); }

    const char* getPluginName() const noexcept override { return Derived::kName; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_ = fields_of(Derived::attributes(), &attributes_);
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
        return &collection_;
    }

protected:
    // As enqueue returns it: 0, or the error, logged.
    static int32_t report(cudaError_t error) noexcept {
        if (error != cudaSuccess) log_error(std::string(Derived::kName) + ": " + cudaGetErrorString(error));
        return static_cast<int32_t>(error);
    }
    // As configurePlugin and onShapeChange return it: 0 if `why_not` is empty, else 1, logged.
    static int32_t report(const char* why_not) noexcept {
        if (why_not[0]) log_error(std::string(Derived::kName) + ": " + why_not);
        return why_not[0] ? 1 : 0;
    }

    const Attributes attributes_;

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

template <typename Derived, typename Attributes>
class Creator : public nvinfer1::IPluginCreatorV3One {
public:
    const char* getPluginName() const noexcept override { return Derived::kName; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

    nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        Attributes attributes{};
        std::string wrong = read_fields(Derived::attributes(), fields, &attributes);
        if (wrong.empty()) wrong = Derived::why_not_with(attributes);
        if (wrong.empty()) return new (std::nothrow) Derived(attributes);
        log_error(std::string(Derived::kName) + ": " + wrong);
        return nullptr;
    }

private:
    std::vector<nvinfer1::PluginField> fields_ = fields_of(Derived::attributes(), nullptr);
    nvinfer1::PluginFieldCollection collection_{static_cast<int32_t>(fields_.size()), fields_.data()};
};

}  // namespace glmd
