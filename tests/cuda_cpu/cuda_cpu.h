// Runs the project's CUDA kernels on a CPU, for tests: a host compiler includes this header, then an unchanged .cu file.
//
// A block runs on one OS thread, each of its CUDA threads on a fiber (a stack of its own, switched by hand). A fiber runs
// until it reaches a barrier or a shuffle; then the scheduler goes on to the next. Blocks run one after another. Besides
// wrong arithmetic this finds:
//
// - Missing barriers: blocks and threads run in forward, reverse or random order, and shared memory is filled with NaN
//   bits before each block.
// - Divergent barriers: threads of a block that wait at different __syncthreads(), or exit while others wait.
//
// Compiled with -fsanitize=address (and -fsanitize-sections=cuda_cpu_shared) it also finds accesses beyond arrays.
//
// It cannot find races that no order of whole stretches shows, and says nothing of speed. Only what the kernels use is
// here; whoever needs another CUDA function adds it, with CUDA's meaning. Fibers are written for x86-64 Linux.
//
// CUDA_CPU_EXPORT(kernel) exports an entry point: one line each, written by the test that compiles a file.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <sys/mman.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// ---------------------------------------------------------------------------------------------- keywords and types

#define __global__
#define __device__ static  // keeps each library's functions to itself
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Shared memory is static memory, gathered in one section so that it can be filled before each block.
#define __shared__ static __attribute__((section("cuda_cpu_shared")))

using std::max;
using std::min;
// Of a number and NaN the number, as on the device; of std's, the first.
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }

struct dim3 {
    unsigned x, y, z;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct alignas(8) uint2 {
    unsigned x, y;
};

static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

static inline float __uint_as_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline unsigned __float_as_uint(float v) {
    unsigned bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

extern "C" {
// The linker names the two ends of the section; they are null if no kernel of the file has shared memory.
extern unsigned char __start_cuda_cpu_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_cpu_shared[] __attribute__((weak, visibility("hidden")));
// Saves the registers that a call must preserve, and the stack pointer to *save; goes on where `load` was saved.
void cuda_cpu_switch(void** save, void* load) __attribute__((visibility("hidden")));
}

#if !defined(__x86_64__)
#error "cuda_cpu_switch is written for x86-64"
#endif
asm(R"(
.text
.globl cuda_cpu_switch
.hidden cuda_cpu_switch
.type cuda_cpu_switch, @function
cuda_cpu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

namespace cuda_cpu {
namespace {

// ---------------------------------------------------------------------------------------------- threads of a block

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 << 10;  // room between the variables
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr unsigned WARP = 32;

struct Fiber {
    void* stack_pointer;
    unsigned thread;
    unsigned shuffles;  // how many it has taken part in
    bool done;
};

// Where threads wait for each other. `generation` counts how often all have met.
struct Barrier {
    unsigned arrived;
    unsigned generation;
    int line;  // of the source, where the first of them waits
};

// What the lanes of a warp show each other. Two slots a lane: one may be in the next shuffle while another has yet to read
// this one.
struct Warp {
    Barrier barrier;
    float slots[2][WARP];
};

struct Block {
    dim3 index, extent, grid;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    unsigned live;      // threads that have not ended
    uint64_t progress;  // rises whenever a barrier opens or a thread ends
    const char* error;
    int lines[2];  // of the source, where the error showed
    void (*body)(void*);
    void* arguments;
    void* scheduler;  // its stack pointer
};

thread_local Block* block;
thread_local Fiber* fiber;

void yield() { cuda_cpu_switch(&fiber->stack_pointer, block->scheduler); }

// Where a fiber begins. It never returns: its last act is to hand over to the scheduler.
[[noreturn]] void enter() {
    block->body(block->arguments);
    fiber->done = true;
    block->live--;
    block->progress++;
    yield();
    __builtin_trap();
}

// Gives up the block: the scheduler returns, and no fiber of it runs again.
void fail(const char* error, int line, int other) {
    block->error = error;
    block->lines[0] = line;
    block->lines[1] = other;
    yield();
}

void wait(Barrier& barrier, unsigned threads, int line) {
    if (barrier.arrived == 0) barrier.line = line;
    if (barrier.line != line) fail("threads wait at different barriers", barrier.line, line);
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.generation++;
        block->progress++;
    }
    while (barrier.generation == generation) yield();
}

// Shows `value` to the warp, waits until every lane has shown its own, and takes that of lane `from`.
float shuffle(unsigned mask, float value, unsigned from, int line) {
    if (mask != 0xffffffffu) fail("only whole warps may shuffle here", line, line);
    Warp& warp = block->warps[fiber->thread / WARP];
    float* slots = warp.slots[fiber->shuffles++ % 2];
    slots[fiber->thread % WARP] = value;
    wait(warp.barrier, WARP, line);
    return slots[from % WARP];
}

// ---------------------------------------------------------------------------------------------- scheduling

enum Order : unsigned { FORWARD, REVERSE, RANDOM };

template <class Index>
void arrange(std::vector<Index>& turns, Order order, std::mt19937& random) {
    for (size_t i = 0; i < turns.size(); i++) turns[i] = Index(order == REVERSE ? turns.size() - 1 - i : i);
    if (order == RANDOM) std::shuffle(turns.begin(), turns.end(), random);
}

// Lays out a stack as if the fiber had called cuda_cpu_switch: six registers, then the address to go on at. The word
// above stands for enter's return address, so that its frame is aligned as after a call.
void* fresh_stack(unsigned char* stack) {
    void** words = reinterpret_cast<void**>(stack + STACK) - 8;
    std::fill(words, words + 8, nullptr);
    words[6] = reinterpret_cast<void*>(&enter);
    return words;
}

// NaN bits in all shared memory. Not by memset where an address sanitizer guards the room between arrays.
void fill_shared() {
    unsigned char* start = __start_cuda_cpu_shared;
    size_t bytes = start ? size_t(__stop_cuda_cpu_shared - start) : 0;
    asm volatile("rep stosb" : "+D"(start), "+c"(bytes) : "a"(0xff) : "memory");
}

void run_block(Block& b, unsigned char* stacks, Order order, std::mt19937& random) {
    fill_shared();
    const unsigned threads = unsigned(b.fibers.size());
    block = &b;
    b.live = threads;
    b.barrier = {};
    for (Warp& warp : b.warps) memset(&warp.slots, 0xff, sizeof warp.slots), warp.barrier = {};
    for (unsigned i = 0; i < threads; i++) b.fibers[i] = {fresh_stack(stacks + i * STACK), i, 0, false};
    std::vector<unsigned> turns(threads);
    while (b.live > 0) {
        arrange(turns, order, random);
        const uint64_t before = b.progress;
        for (unsigned turn : turns) {
            fiber = &b.fibers[turn];
            if (!fiber->done) cuda_cpu_switch(&b.scheduler, fiber->stack_pointer);
            if (b.error) return;
        }
        if (b.progress == before) {
            b.error = "a barrier or shuffle is not reached by all threads";
            b.lines[0] = b.lines[1] = b.barrier.line;
            return;
        }
    }
}

// Runs all blocks of a grid. Returns false, and says why in `message`, if one of them went wrong.
bool run_grid(const unsigned grid[3], unsigned threads, Order order, unsigned seed, void (*body)(void*), void* arguments,
              char* message, size_t room) {
    // Kept from launch to launch: fresh memory would have to be cleared by the system each time.
    static unsigned char* stacks = nullptr;
    static unsigned capacity = 0;
    if (threads > capacity) {
        void* fresh = mmap(nullptr, threads * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fresh == MAP_FAILED) {
            snprintf(message, room, "no memory for %u stacks", threads);
            return false;
        }
        if (stacks) munmap(stacks, capacity * STACK);
        stacks = static_cast<unsigned char*>(fresh);
        capacity = threads;
    }
    if (threads % WARP != 0) {
        snprintf(message, room, "a block of %u threads is no whole number of warps", threads);
        return false;
    }
    Block b = {};
    b.extent = {threads, 1, 1};
    b.grid = {grid[0], grid[1], grid[2]};
    b.fibers.resize(threads);
    b.warps.resize(threads / WARP);
    b.body = body;
    b.arguments = arguments;
    std::mt19937 random(seed);
    std::vector<size_t> turns(size_t(grid[0]) * grid[1] * grid[2]);
    arrange(turns, order, random);
    for (size_t turn : turns) {
        b.index = {unsigned(turn % grid[0]), unsigned(turn / grid[0] % grid[1]), unsigned(turn / grid[0] / grid[1])};
        run_block(b, stacks, order, random);
        if (b.error) {
            const dim3 i = b.index;
            snprintf(message, room, "%s: block (%u, %u, %u), lines %d and %d", b.error, i.x, i.y, i.z, b.lines[0], b.lines[1]);
            break;
        }
    }
    return b.error == nullptr;
}

// ---------------------------------------------------------------------------------------------- calling from outside

// One launch, as the test describes it; repr(C) in tests/gpu/cuda_cpu.rs.
struct Call {
    unsigned grid[3];
    unsigned threads;
    const void* params;
    size_t params_bytes;
    void* const* pages;
    size_t page_count;
    const void* table;
    unsigned order;
    unsigned seed;
    char* message;
    size_t room;
};

// Bytes of a kernel's parameter record, which a caller through the driver's interface does not say.
template <class Params, class Pages, class Record>
size_t params_bytes(void (*)(Params, Pages, const Record*)) {
    return sizeof(Params);
}

// All kernels take a parameter record, pages, and a table (kernels/common.cuh).
template <class Params, class Pages, class Record>
bool call(void (*kernel)(Params, Pages, const Record*), const Call& c) {
    struct Arguments {
        void (*kernel)(Params, Pages, const Record*);
        Params params;
        Pages pages;
        const Record* table;
    } arguments = {kernel, {}, {}, static_cast<const Record*>(c.table)};
    if (c.params_bytes != sizeof(Params) || c.page_count * sizeof(void*) > sizeof(Pages)) {
        snprintf(c.message, c.room, "%zu bytes of parameters where the kernel takes %zu", c.params_bytes, sizeof(Params));
        return false;
    }
    memcpy(static_cast<void*>(&arguments.params), c.params, c.params_bytes);
    memcpy(static_cast<void*>(&arguments.pages), c.pages, c.page_count * sizeof(void*));
    const auto body = [](void* opaque) {
        const Arguments& a = *static_cast<Arguments*>(opaque);
        a.kernel(a.params, a.pages, a.table);
    };
    return run_grid(c.grid, c.threads, Order(c.order), c.seed, body, &arguments, c.message, c.room);
}

}  // namespace
}  // namespace cuda_cpu

// ---------------------------------------------------------------------------------------------- CUDA's names

#define threadIdx (dim3{cuda_cpu::fiber->thread, 0, 0})
#define blockIdx (cuda_cpu::block->index)
#define blockDim (cuda_cpu::block->extent)
#define gridDim (cuda_cpu::block->grid)
#define __syncthreads() cuda_cpu::wait(cuda_cpu::block->barrier, cuda_cpu::block->extent.x, __LINE__)
#define __shfl_sync(mask, value, lane) cuda_cpu::shuffle(mask, value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, distance) \
    cuda_cpu::shuffle(mask, value, (cuda_cpu::fiber->thread % cuda_cpu::WARP) ^ (distance), __LINE__)

#define CUDA_CPU_EXPORT(kernel) \
    extern "C" bool cuda_cpu_##kernel(const cuda_cpu::Call* c) { return cuda_cpu::call(kernel, *c); } \
    extern "C" size_t cuda_cpu_params_##kernel() { return cuda_cpu::params_bytes(kernel); }
