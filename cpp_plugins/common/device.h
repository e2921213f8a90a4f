// The few words in which a kernel is written, as CUDA or, under GLMD_HOST, as threads on the CPU (host/shim.h).
#pragma once

#ifdef GLMD_HOST
#include "host/shim.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define GLMD_SHARED(type, name, count) __shared__ type name[count]
#define GLMD_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
// Named, so that the host tests can leave one out and show that they would notice.
#define GLMD_BARRIER(name) __syncthreads()

namespace glmd {

// A size on the device, and the smaller one with which small host cases already fill several blocks.
constexpr int tuned(int device, int /*host*/) { return device; }

#ifdef __CUDACC__
// Returns what the launch itself reports: without a device an error, never a fault.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                   Arguments... arguments) {
    kernel<<<grid, threads, shared, stream>>>(arguments...);
    return cudaGetLastError();
}
#endif

}  // namespace glmd
#endif

namespace glmd {

__host__ __device__ constexpr int divide_up(int number, int by) { return (number + by - 1) / by; }

}  // namespace glmd
