// Where the plugins say what went wrong: the logger of the engine that calls them.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace glmd {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

void log_error(const std::string& message) noexcept;

}  // namespace glmd
