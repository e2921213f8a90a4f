// CUDA's vocabulary on the CPU, as much of it as this project's kernels use.
//
// The threads of a block are fibres. Each runs until it meets a barrier or ends; when all have, the next round begins.
// Within a round they run in the order set by `schedule`. This proves a kernel's logic and that its barriers are
// where they must be; it cannot show every race, because between two barriers one thread runs at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __host__
#define __device__
#define __global__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

#define GLMD_SHARED(type, name, count) type* const name = static_cast<type*>(::glmd::shared((count) * sizeof(type)))
#define GLMD_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::glmd::dynamic_shared())
#define GLMD_BARRIER(name) ::glmd::barrier(#name)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct __half {
    uint16_t bits;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
float __half2float(__half value);
__half __float2half_rn(float value);

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
inline const char* cudaGetErrorString(cudaError_t) { return "refused by the host shim"; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T atomicAdd(T* address, T value) {
    T old = *address;
    *address = old + value;
    return old;
}
template <typename T>
T atomicOr(T* address, T value) {
    T old = *address;
    *address = old | value;
    return old;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }

namespace glmd {

enum class Order { kForward, kReverse, kShuffled };

constexpr int tuned(int /*device*/, int host) { return host; }

void schedule(Order order, unsigned seed);
void leave_out_barrier(const char* name);  // "" for none
void barrier(const char* name);
void* shared(size_t bytes);
void* dynamic_shared();
// cudaErrorLaunchFailure when the threads of a block do not all meet the same barrier, or meet barriers without end.
cudaError_t run_grid(dim3 grid, int threads, size_t dynamic_bytes, const std::function<void()>& kernel);

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, cudaStream_t,
                   Arguments... arguments) {
    return run_grid(grid, threads, shared, [=] { kernel(arguments...); });
}

}  // namespace glmd
