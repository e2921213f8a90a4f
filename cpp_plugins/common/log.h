// Where the plugins say what went wrong: standard error.
//
// Not TensorRT's logger: TensorRT 11 put a base class under ILoggerFinder and so moved the place of findLogger in its
// table of functions. A library built with headers of 10.x would call another function in 11, and crash on the path
// that explains an error. TensorRT's own log says which layer failed, from the code that the plugin returns.
#pragma once

#include <cstdio>
#include <string>

namespace glmd {

inline void log_error(const std::string& message) { std::fprintf(stderr, "%s\n", message.c_str()); }

}  // namespace glmd
