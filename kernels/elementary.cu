// Elementary ops (src/ops/elementary.rs) that no fused family contains by itself: ReLU, depthwise convolution, and the
// last step of batch norm's gradient. Networks use the fused families; these are plain.
#include "common.cuh"

struct ElementaryParams {
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned accumulate;
    unsigned kernel;
    unsigned dilation;
    unsigned stride;
    unsigned pad;
    unsigned height;
    unsigned width;
    unsigned out_height;
    unsigned out_width;
    unsigned chunks;
    unsigned chunk_rows;
    unsigned x_stride;
    unsigned w_stride;
    unsigned g_stride;
    unsigned y_stride;
    Spot x;
    Spot w;
    Spot g;
    Spot y;
};

// A thread's quad of one row of what is written.
struct Item {
    Lane lane;
    unsigned row;
    bool used;
};

__device__ inline Item item_of(const ElementaryParams& p) {
    const unsigned block = block_index();
    Item item = {lane_of(p.channels, p.lanes, block % p.groups), 0, false};
    item.row = block / p.groups * item.lane.rows + item.lane.row;
    item.used = block < p.blocks && item.lane.used && item.row < p.rows;
    return item;
}

__device__ inline float4 x_at(const ElementaryParams& p, const Pages& pages, const Lane& lane, unsigned row) {
    return load4(at(pages, p.x) + row * p.x_stride + lane.channel, lane.valid);
}

__device__ inline float4 w_at(const ElementaryParams& p, const Pages& pages, const Lane& lane, unsigned row) {
    return load4(at(pages, p.w) + row * p.w_stride + lane.channel, lane.valid);
}

__device__ inline float4 g_at(const ElementaryParams& p, const Pages& pages, const Lane& lane, unsigned row) {
    return load4(at(pages, p.g) + row * p.g_stride + lane.channel, lane.valid);
}

__device__ inline void put_y(const ElementaryParams& p, const Pages& pages, const Lane& lane, unsigned row, float4 v) {
    put4(at(pages, p.y) + row * p.y_stride + lane.channel, v, lane.valid, p.accumulate);
}

// v where x > 0, else 0.
__device__ inline float4 gate(float4 x, float4 v) {
    return make_float4(x.x > 0.0f ? v.x : 0.0f, x.y > 0.0f ? v.y : 0.0f, x.z > 0.0f ? v.z : 0.0f, x.w > 0.0f ? v.w : 0.0f);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
relu_forward(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const Item item = item_of(p);
    if (!item.used) return;
    put_y(p, pages, item.lane, item.row, rectified(x_at(p, pages, item.lane, item.row)));
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
relu_backward(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const Item item = item_of(p);
    if (!item.used) return;
    put_y(p, pages, item.lane, item.row, gate(x_at(p, pages, item.lane, item.row), g_at(p, pages, item.lane, item.row)));
}

// dx = a g + b x + d, the rows of w being a, b and d.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
affine_gradient(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const Item item = item_of(p);
    if (!item.used) return;
    const float4 a = w_at(p, pages, item.lane, 0), b = w_at(p, pages, item.lane, 1), d = w_at(p, pages, item.lane, 2);
    const float4 g = g_at(p, pages, item.lane, item.row), x = x_at(p, pages, item.lane, item.row);
    put_y(p, pages, item.lane, item.row, a * g + b * x + d);
}

// The row of x that a tap of an output pixel reads, if it lies inside.
struct Source {
    unsigned row;
    bool inside;
};

__device__ inline Source source_of(const ElementaryParams& p, unsigned out, unsigned tap) {
    // In front of the map these wrap around.
    const unsigned y = out / p.out_width % p.out_height * p.stride + tap / p.kernel * p.dilation - p.pad;
    const unsigned x = out % p.out_width * p.stride + tap % p.kernel * p.dilation - p.pad;
    const unsigned image = out / p.out_width / p.out_height;
    return {(image * p.height + y) * p.width + x, y < p.height && x < p.width};
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
depthwise_forward(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const Item item = item_of(p);
    if (!item.used) return;
    float4 sum = quad(0.0f);
    for (unsigned tap = 0; tap < p.kernel * p.kernel; tap++) {
        const Source source = source_of(p, item.row, tap);
        if (source.inside) sum = sum + w_at(p, pages, item.lane, tap) * x_at(p, pages, item.lane, source.row);
    }
    put_y(p, pages, item.lane, item.row, sum);
}

// Whether an output has its window start at the coordinate `far` of the padded map; `far / stride` is that output.
__device__ inline bool reads(unsigned far, unsigned stride, unsigned extent) {
    return far % stride == 0 && far / stride < extent;
}

// Gradient of x: each of its pixels gathers from the outputs that read it.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
depthwise_input(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const Item item = item_of(p);
    if (!item.used) return;
    const unsigned image = item.row / p.width / p.height;
    float4 sum = quad(0.0f);
    for (unsigned tap = 0; tap < p.kernel * p.kernel; tap++) {
        const unsigned padded_y = item.row / p.width % p.height + p.pad, tap_y = tap / p.kernel * p.dilation;
        const unsigned padded_x = item.row % p.width + p.pad, tap_x = tap % p.kernel * p.dilation;
        if (padded_y < tap_y || padded_x < tap_x) continue;
        const unsigned y = padded_y - tap_y, x = padded_x - tap_x;
        if (!reads(y, p.stride, p.out_height) || !reads(x, p.stride, p.out_width)) continue;
        const unsigned out = (image * p.out_height + y / p.stride) * p.out_width + x / p.stride;
        sum = sum + w_at(p, pages, item.lane, tap) * g_at(p, pages, item.lane, out);
    }
    put_y(p, pages, item.lane, item.row, sum);
}

// Adds the sums of all threads that own the same channels; row 0 gets the result.
__device__ inline float4 add_rows(float4 own, const Lane& lane, unsigned lanes) {
    __shared__ float4 sums[BLOCK];
    float4* t = sums + threadIdx.x;
    for (unsigned width = lane.rows; width > 1;) {
        *t = own;
        __syncthreads();
        const unsigned other = (width + 1) / 2;
        if (lane.row + other < width) own = own + t[other * lanes];
        width = other;
        __syncthreads();
    }
    return own;
}

// Gradient of one tap's weights, summed over a chunk of rows of g.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
depthwise_weights(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const unsigned part = block / p.groups;
    const unsigned taps = p.kernel * p.kernel;
    const unsigned first = part / taps * p.chunk_rows;
    const unsigned end = min(first + p.chunk_rows, p.rows);
    float4 sum = quad(0.0f);
    for (unsigned row = first + lane.row; lane.used && row < end; row += lane.rows) {
        const Source source = source_of(p, row, part % taps);
        if (source.inside) sum = sum + x_at(p, pages, lane, source.row) * g_at(p, pages, lane, row);
    }
    sum = add_rows(sum, lane, p.lanes);
    if (lane.row == 0 && lane.used) put_y(p, pages, lane, part, sum);
}

// Adds the chunks of one tap.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
depthwise_fold(const __grid_constant__ ElementaryParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    const unsigned tap = block / p.groups;
    float4 sum = quad(0.0f);
    for (unsigned chunk = lane.row; lane.used && chunk < p.chunks; chunk += lane.rows) {
        sum = sum + x_at(p, pages, lane, chunk * p.kernel * p.kernel + tap);
    }
    sum = add_rows(sum, lane, p.lanes);
    if (lane.row == 0 && lane.used) put_y(p, pages, lane, tap, sum);
}
