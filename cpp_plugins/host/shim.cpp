#include "host/shim.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

float __half2float(__half value) {
    const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
    float magnitude = std::ldexp(static_cast<float>(fraction), -24);  // zero and subnormal
    if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
    else if (exponent) magnitude = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return value.bits & 0x8000 ? -magnitude : magnitude;
}

__half __float2half_rn(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    int exponent;
    std::frexp(magnitude, &exponent);
    if (magnitude < 0x1p-14f) exponent = -13;  // where the steps of half no longer shrink
    // In units of half's last place; nearbyint rounds ties to even. A carry runs on into the exponent, as it should.
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
    return {static_cast<uint16_t>(sign | (units + ((exponent + 13) << 10)))};
}

namespace glmd {
namespace {

constexpr size_t kStackBytes = 64 * 1024, kSharedBytes = 64 * 1024;
constexpr int kMostRounds = 1000;  // many times what any block needs: beyond it a kernel loops forever

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    const char* waits_at = nullptr;
    size_t shared_used = 0;
    bool ended = false;
};

Order g_order = Order::kForward;
std::mt19937 g_random;
std::string g_left_out;

ucontext_t g_scheduler;
std::vector<Fibre> g_fibres;
Fibre* g_running = nullptr;
const std::function<void()>* g_kernel = nullptr;
alignas(16) char g_shared[kSharedBytes];
alignas(16) char g_dynamic_shared[kSharedBytes];

std::vector<unsigned> ordered(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (g_order == Order::kReverse) std::reverse(order.begin(), order.end());
    if (g_order == Order::kShuffled) std::shuffle(order.begin(), order.end(), g_random);
    return order;
}

void fibre_main() {
    (*g_kernel)();
    g_running->ended = true;
    swapcontext(&g_running->context, &g_scheduler);
}

void start(Fibre& fibre) {
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStackBytes;
    fibre.waits_at = nullptr;
    fibre.shared_used = 0;
    fibre.ended = false;
    makecontext(&fibre.context, fibre_main, 0);
}

// One round: every thread as far as its next barrier. False when they are not all at the same one, or all at the end.
bool run_round(unsigned threads) {
    for (unsigned thread : ordered(threads)) {
        threadIdx = dim3(thread);
        g_running = &g_fibres[thread];
        swapcontext(&g_scheduler, &g_running->context);
    }
    const Fibre& first = g_fibres[0];
    return std::all_of(g_fibres.begin(), g_fibres.begin() + threads, [&](const Fibre& fibre) {
        return fibre.ended == first.ended && fibre.waits_at == first.waits_at;
    });
}

bool run_block(unsigned threads) {
    // What a kernel reads of shared memory before writing it must not look like a plausible number.
    std::memset(g_shared, 0xff, kSharedBytes);
    std::memset(g_dynamic_shared, 0xff, kSharedBytes);
    for (unsigned thread = 0; thread < threads; ++thread) start(g_fibres[thread]);
    for (int round = 0; round < kMostRounds && !g_fibres[0].ended; ++round)
        if (!run_round(threads)) return false;
    return g_fibres[0].ended;
}

}  // namespace

void schedule(Order order, unsigned seed) {
    g_order = order;
    g_random.seed(seed);
}

void leave_out_barrier(const char* name) { g_left_out = name; }

void barrier(const char* name) {
    if (g_left_out == name) return;
    g_running->waits_at = name;
    const dim3 thread = threadIdx;
    swapcontext(&g_running->context, &g_scheduler);
    threadIdx = thread;
    g_running->waits_at = nullptr;
}

void* shared(size_t bytes) {
    // Every thread asks in the same order, so the same request gets the same place.
    void* place = g_shared + g_running->shared_used;
    g_running->shared_used += (bytes + 15) / 16 * 16;
    return g_running->shared_used <= kSharedBytes ? place : nullptr;
}

void* dynamic_shared() { return g_dynamic_shared; }

cudaError_t run_grid(dim3 grid, int threads, size_t dynamic_bytes, const std::function<void()>& kernel) {
    if (dynamic_bytes > kSharedBytes || threads < 1) return cudaErrorInvalidValue;
    const auto count = static_cast<unsigned>(threads);
    if (g_fibres.size() < count) g_fibres = std::vector<Fibre>(count);
    g_kernel = &kernel;
    blockDim = dim3(count);
    gridDim = grid;
    for (unsigned block : ordered(grid.x * grid.y * grid.z)) {
        blockIdx = dim3(block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y);
        if (!run_block(count)) return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

}  // namespace glmd
