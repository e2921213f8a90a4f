#include "common/log.h"

#include <atomic>
#include <cstdio>

namespace glmd {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> g_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { g_finder = finder; }

void log_error(const std::string& message) noexcept {
    nvinfer1::ILoggerFinder* const finder = g_finder;
    nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr;
    if (logger) logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    else std::fprintf(stderr, "%s\n", message.c_str());  // loaded by no engine: nobody else would hear of it
}

}  // namespace glmd
