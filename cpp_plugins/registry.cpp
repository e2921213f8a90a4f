// What TensorRT looks for in a plugin library.
#include "roi_align/roi_align_plugin.h"
#include "select_proposals/select_proposals_plugin.h"

#define GLMD_EXPORT extern "C" __attribute__((visibility("default")))

GLMD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static glmd::Creator<glmd::RoiAlignPlugin, glmd::RoiAlignAttributes> roi_align;
    static glmd::Creator<glmd::SelectProposalsPlugin, glmd::SelectProposalsAttributes> select_proposals;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&roi_align, &select_proposals};
    count = 2;
    return creators;
}

// TensorRT wants to hand its loggers over; common/log.h says why none is taken.
GLMD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
