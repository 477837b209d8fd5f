// Separable convolutions (src/ops/separable.rs): y = pointwise(depthwise(relu(h(x)))), and the moments of y.
#include "common.cuh"

struct SeparableJob {
    unsigned first_block;
    unsigned blocks;
    unsigned flags;
    unsigned rows;
    unsigned channels;
    unsigned step;
    unsigned out_channels;
    unsigned lanes;
    unsigned groups;
    unsigned chunk_rows;
    unsigned x_h;
    unsigned x_w;
    unsigned y_h;
    unsigned y_w;
    unsigned kernel;
    unsigned dilation;
    unsigned stride;
    unsigned pad;
    unsigned x_stride;
    unsigned tap_stride;
    unsigned weight_stride;
    unsigned y_stride;
    float eps;
    unsigned unused;
    Spot x;
    Spot mean;
    Spot variance;
    Spot gamma;
    Spot beta;
    Spot depthwise;
    Spot pointwise;
    Spot y;
    Spot partial;
    Spot unused_spot;
};

constexpr unsigned NORM = 1;
constexpr unsigned AFFINE = 2;
constexpr unsigned MOMENTS = 4;
constexpr unsigned ADD = 8;

// Pixels of a tile, and how many of them a thread multiplies at most.
constexpr unsigned PIXELS = 64;
constexpr unsigned ROWS = 4;
// Quads of input channels that are in shared memory at once, and of output channels that a block computes, at most.
constexpr unsigned STEP = 4;
constexpr unsigned COLUMNS = 12;

// h = scale x + shift, for a quad of channels.
struct Norm {
    float4 scale, shift;
};

__device__ inline Norm norm_of(const SeparableJob& j, const Pages& pages, unsigned channel, unsigned valid) {
    Norm n = {quad(1.0f), quad(0.0f)};
    if (j.flags & NORM) {
        n.scale = inverse_deviation(load4(at(pages, j.variance) + channel, valid), j.eps);
        if (j.flags & AFFINE) {
            n.scale = load4(at(pages, j.gamma) + channel, valid) * n.scale;
            n.shift = load4(at(pages, j.beta) + channel, valid);
        }
        n.shift = n.shift - n.scale * load4(at(pages, j.mean) + channel, valid);
    }
    return n;
}

__device__ inline float4 relu(const Norm& n, float4 x) {
    const float4 h = n.scale * x + n.shift;
    return make_float4(max(h.x, 0.0f), max(h.y, 0.0f), max(h.z, 0.0f), max(h.w, 0.0f));
}

// The depthwise result at an output pixel. Coordinates before the image wrap to large numbers.
__device__ inline float4 depthwise(const SeparableJob& j, const Pages& pages, unsigned row, unsigned channel, unsigned valid) {
    const Norm n = norm_of(j, pages, channel, valid);
    const unsigned image = row / (j.y_h * j.y_w);
    const unsigned pixel = row % (j.y_h * j.y_w);
    const unsigned top = pixel / j.y_w * j.stride - j.pad;
    const unsigned left = pixel % j.y_w * j.stride - j.pad;
    const Map x = map_at(pages, j.x) + image * j.x_h * j.x_w * j.x_stride + channel;
    const float* weights = at(pages, j.depthwise) + channel;

    float4 sum = quad(0.0f);
    const unsigned reach = j.kernel * j.dilation;
    for (unsigned iy = top; iy != top + reach; iy += j.dilation) {
#pragma unroll 1
        for (unsigned ix = left; ix != left + reach; ix += j.dilation) {
            if (iy < j.x_h && ix < j.x_w) {
#if TENSOR || __CUDA_ARCH__ >= 900
                float4 v = load4(x + (iy * j.x_w + ix) * j.x_stride, valid);
                settle(v);
                const float4 r = relu(n, v);
#else
                const float4 r = relu(n, load4(x + (iy * j.x_w + ix) * j.x_stride, valid));
#endif
                sum = sum + load4(weights, valid) * r;
            }
            weights += j.tap_stride;
        }
    }
    return sum;
}

// Moments in shared memory, a slot a thread: they would not fit into registers beside a tile's sums.
struct Slots {
    float count[BLOCK];
    float4 mean[BLOCK];
    float4 m2[BLOCK];
};

__device__ inline void merge_into(Slots& slots, unsigned slot, const Moments& more) {
    const Moments all = merge({slots.count[slot], slots.mean[slot], slots.m2[slot]}, more);
    slots.count[slot] = all.count;
    slots.mean[slot] = all.mean;
    slots.m2[slot] = all.m2;
}

// Quads of channels that are in shared memory at once. Tensor cores multiply whole groups of eight channels.
__device__ inline unsigned step_of(const SeparableJob& j) {
#if TENSOR
    return (j.step + 1) / 2 * 2;
#else
    return j.step;
#endif
}

// A thread's k-th row of a tile.
__device__ inline unsigned row_of(const Lane& lane, unsigned k) {
#if TENSOR
    return 4 * lane.row + k;
#else
    return lane.row + k * lane.rows;
#endif
}

#if TENSOR
// Where a thread keeps the moments of what it owns.
__device__ inline unsigned slot_of(const Lane& lane, unsigned lanes, unsigned group) {
    return lane.row * lanes + lane.channel / 4 - group * lanes;
}
#endif

// A block computes quads `lanes` wide of a chunk of pixels, tile by tile.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
separable_forward(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const SeparableJob* table) {
    after_others();
    // The depthwise result, a quad of channels after the other; and as many rows of the pointwise weights.
#if TENSOR
    __shared__ float4 tile[2 * STEP * TILE_LEFT / 4];
    __shared__ float4 matrix[2 * STEP * (8 * COLUMNS + 8) / 4];
#else
    __shared__ float4 tile[STEP * PIXELS];
    __shared__ float4 matrix[4 * STEP * COLUMNS];
#endif
    __shared__ Slots slots;
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const SeparableJob& j = table[job_of(table, p.jobs, block)];
    const unsigned chunk = (block - j.first_block) / j.groups;
#if TENSOR
    const unsigned group = (block - j.first_block) % j.groups;
#else
    const Lane lane = lane_of(j.out_channels, j.lanes, (block - j.first_block) % j.groups);
#endif
    const unsigned end = min((chunk + 1) * j.chunk_rows, j.rows);
    const unsigned t = threadIdx.x;
#if !TENSOR
    const unsigned slot = t;
#endif

    slots.count[t] = 0.0f;
    slots.mean[t] = slots.m2[t] = quad(0.0f);
    for (unsigned first = chunk * j.chunk_rows; first < end; first += PIXELS) {
        float4 sum[ROWS];
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) sum[k] = quad(0.0f);
        for (unsigned base = 0; base < j.channels; base += 4 * step_of(j)) {
            const unsigned pixel = t / step_of(j);
            const unsigned channel = base + 4 * (t % step_of(j));
            if (pixel < PIXELS) {
                const unsigned valid = channel < j.channels ? min(4u, j.channels - channel) : 0;
                const bool there = first + pixel < end && valid > 0;
#if TENSOR
                const float4 d = there ? depthwise(j, pages, first + pixel, channel, valid) : quad(0.0f);
                put_row(reinterpret_cast<float*>(tile), TILE_LEFT, 4 * (t % step_of(j)), pixel, d);
            }
            if (t / j.lanes < 4 * step_of(j)) {
                const unsigned row = base + t / j.lanes, column = 4 * (t % j.lanes), out = 4 * group * j.lanes + column;
                const unsigned valid = row < j.channels && out < j.out_channels ? min(4u, j.out_channels - out) : 0;
                const float4 w = load4(at(pages, j.pointwise) + row * j.weight_stride + out, valid);
                put_columns(reinterpret_cast<float*>(matrix), tile_right(j.lanes), t / j.lanes, column, w);
            }
            __syncthreads();
            tile_product(sum, reinterpret_cast<const float*>(tile), reinterpret_cast<const float*>(matrix), j.lanes, step_of(j));
#else
                tile[t % step_of(j) * PIXELS + pixel] = there ? depthwise(j, pages, first + pixel, channel, valid) : quad(0.0f);
            }
            if (lane.row < 4 * step_of(j)) {
                const unsigned row = base + lane.row;
                const float* weights = at(pages, j.pointwise) + row * j.weight_stride + lane.channel;
                matrix[t] = row < j.channels ? load4(weights, lane.valid) : quad(0.0f);
            }
            __syncthreads();
            for (unsigned q = 0; q < step_of(j); q++) {
                const float4* w = matrix + 4 * q * j.lanes + t % j.lanes;
                const float4 w0 = w[0], w1 = w[j.lanes], w2 = w[2 * j.lanes], w3 = w[3 * j.lanes];
#pragma unroll
                for (unsigned k = 0; k < ROWS; k++) {
                    const unsigned row = lane.row + k * lane.rows;
                    if (row >= PIXELS) continue;
                    const float4 d = tile[q * PIXELS + row];
                    sum[k] = sum[k] + d.x * w0 + d.y * w1 + d.z * w2 + d.w * w3;
                }
            }
#endif
            __syncthreads();
        }

#if TENSOR
        const Lane lane = tile_lane(j.out_channels, anew(j.lanes), group);
        const unsigned slot = slot_of(lane, j.lanes, group);
#endif
        Moments part = none();
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
            const unsigned row = row_of(lane, k);
            if (!lane.used || row >= PIXELS || first + row >= end) continue;
            const Map y = map_at(pages, j.y) + (first + row) * j.y_stride + lane.channel;
            if (j.flags & ADD) sum[k] = load4(y, lane.valid) + sum[k];
            store4(y, sum[k], lane.valid);
            part.count += 1.0f;
            part.mean = part.mean + sum[k];
        }
        if (!(j.flags & MOMENTS) || part.count == 0.0f) continue;
        part.mean = (1.0f / part.count) * part.mean;
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
            const unsigned row = row_of(lane, k);
            const float4 d = sum[k] - part.mean;
            if (row < PIXELS && first + row < end) part.m2 = part.m2 + d * d;
        }
        merge_into(slots, slot, part);
    }
    if (!(j.flags & MOMENTS)) return;
#if TENSOR
    const Lane lane = tile_lane(j.out_channels, anew(j.lanes), group);
    const unsigned slot = slot_of(lane, j.lanes, group);
#endif

    // Rows of threads that hold moments of the same columns, as a tree.
    for (unsigned width = lane.rows; width > 1;) {
        __syncthreads();
        const unsigned half = (width + 1) / 2;
        const unsigned other = slot + half * j.lanes;
#if TENSOR
        const bool owns = lane.used;
#else
        const bool owns = true;
#endif
        if (owns && lane.row + half < width) merge_into(slots, slot, {slots.count[other], slots.mean[other], slots.m2[other]});
        width = half;
    }
    if (lane.row == 0 && lane.used) {
        const Moments own = {slots.count[slot], slots.mean[slot], slots.m2[slot]};
        store_moments(at(pages, j.partial) + chunk * moments_stride(j.out_channels), own, j.out_channels, lane.channel);
    }
}
