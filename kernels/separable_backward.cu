// Gradients of separable convolutions (src/ops/separable.rs). One kernel takes the gradient dy back to the depthwise
// result, dd; one computes the gradients of both weights and of the input. Sums of normalised inputs are folded in pool.cu.
#include "common.cuh"

struct SeparableGradient {
    unsigned first_block;
    unsigned blocks;
    unsigned kind;
    unsigned flags;
    unsigned rows;
    unsigned x_rows;
    unsigned channels;
    unsigned out_channels;
    unsigned step;
    unsigned lanes;
    unsigned groups;
    unsigned out_lanes;
    unsigned out_groups;
    unsigned chunk_rows;
    unsigned branches;
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
    unsigned g_stride;
    unsigned dx_stride;
    unsigned coef_stride;
    float eps;
    float inverse_stride;
    Spot x;
    Spot mean;
    Spot variance;
    Spot gamma;
    Spot beta;
    Spot depthwise;
    Spot pointwise;
    Spot y;
    Spot g;
    Spot coef;
    Spot mask;
    Spot dd;
    Spot dy;
    Spot dx;
    Spot partial;
    Spot unused_spot;
};

constexpr unsigned NORM = 1;
constexpr unsigned AFFINE = 2;
constexpr unsigned COEF = 4;
constexpr unsigned MASK = 8;
constexpr unsigned STORE = 16;
constexpr unsigned ADD = 32;
constexpr unsigned SUMS = 64;

// Kinds of jobs of separable_backward_gradients.
constexpr unsigned POINTWISE = 0;
constexpr unsigned TAPS = 1;
constexpr unsigned INPUT = 2;

// Pixels of a tile, and how many of them a thread multiplies at most.
constexpr unsigned PIXELS = 64;
constexpr unsigned ROWS = 4;

// h = scale x + shift, for a quad of channels.
struct Norm {
    float4 scale, shift;
};

__device__ inline Norm norm_of(const SeparableGradient& j, const Pages& pages, unsigned channel, unsigned valid) {
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
__device__ inline float4 depthwise(const SeparableGradient& j, const Pages& pages, unsigned row, unsigned channel, unsigned valid) {
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
#if TENSOR
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

// The term: a factor g + b y + d. Where an image's factor is zero, g may hold anything.
__device__ inline float4 term(const SeparableGradient& j, const Pages& pages, unsigned row, unsigned channel, unsigned valid) {
    const float factor = j.flags & MASK ? at(pages, j.mask)[row / (j.y_h * j.y_w)] : 1.0f;
    float4 g = quad(0.0f);
    if (factor != 0.0f) g = factor * load4(at(pages, j.g) + row * j.g_stride + channel, valid);
    if (j.flags & COEF) {
        const float* coef = at(pages, j.coef) + channel;
        const float4 y = load4(map_at(pages, j.y) + row * j.y_stride + channel, valid);
        g = load4(coef, valid) * g + load4(coef + j.coef_stride, valid) * y + load4(coef + 2 * j.coef_stride, valid);
    }
    return g;
}

__device__ inline unsigned valid_of(unsigned channel, unsigned channels) {
    return channel < channels ? min(4u, channels - channel) : 0;
}

// Quads of channels that are in shared memory at once. Tensor cores multiply whole groups of eight channels.
__device__ inline unsigned step_of(const SeparableGradient& j) {
#if TENSOR
    return (j.step + 1) / 2 * 2;
#else
    return j.step;
#endif
}

// dd = dy pointwise^T, for `lanes` quads of a chunk of pixels, tile by tile. Keeps dy if it is to be read again.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
separable_backward_product(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const SeparableGradient* table) {
    after_others();
    // dy, a quad of channels after the other; and as many columns of the pointwise weights.
#if TENSOR
    __shared__ float4 tile[8 * TILE_LEFT / 4];
#else
    __shared__ float4 tile[BLOCK];
#endif
    __shared__ float4 matrix[BLOCK];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const SeparableGradient& j = table[job_of(table, p.jobs, block)];
    const unsigned group = (block - j.first_block) % j.groups;
    const unsigned start = (block - j.first_block) / j.groups * j.chunk_rows;
#if TENSOR
    const Lane lane = tile_lane(j.channels, j.lanes, group);
#else
    const Lane lane = lane_of(j.channels, j.lanes, group);
#endif
    const unsigned end = min(start + j.chunk_rows, j.rows);
    const unsigned t = threadIdx.x;

    for (unsigned first = start; first < end; first += PIXELS) {
        float4 sum[ROWS];
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) sum[k] = quad(0.0f);
        for (unsigned base = 0; base < j.out_channels; base += 4 * step_of(j)) {
            const unsigned pixel = t / step_of(j);
            const unsigned channel = base + 4 * (t % step_of(j));
            if (pixel < PIXELS) {
                const unsigned valid = valid_of(channel, j.out_channels);
                const bool there = first + pixel < end && valid > 0;
                const float4 dy = there ? term(j, pages, first + pixel, channel, valid) : quad(0.0f);
#if TENSOR
                put_row(reinterpret_cast<float*>(tile), TILE_LEFT, 4 * (t % step_of(j)), pixel, dy);
#else
                tile[t % step_of(j) * PIXELS + pixel] = dy;
#endif
                if (there && group == 0 && j.flags & STORE) {
                    store4(at(pages, j.dy) + (first + pixel) * padded(j.out_channels) + channel, dy, 4);
                }
            }
            const unsigned column = base + t % (4 * step_of(j));
            const unsigned quads = t / (4 * step_of(j));
            if (quads < j.lanes) {
                const unsigned row = 4 * (group * j.lanes + quads);
                const float* w = at(pages, j.pointwise) + row * j.weight_stride + column;
                const unsigned valid = column < j.out_channels ? valid_of(row, j.channels) : 0;
                float4 v = quad(0.0f);
                if (valid > 0) v.x = w[0];
                if (valid > 1) v.y = w[j.weight_stride];
                if (valid > 2) v.z = w[2 * j.weight_stride];
                if (valid > 3) v.w = w[3 * j.weight_stride];
#if TENSOR
                put_columns(reinterpret_cast<float*>(matrix), tile_right(j.lanes), t % (4 * step_of(j)), 4 * quads, v);
            }
            __syncthreads();
            tile_product(sum, reinterpret_cast<const float*>(tile), reinterpret_cast<const float*>(matrix), j.lanes, step_of(j));
#else
                matrix[t % (4 * step_of(j)) * j.lanes + quads] = v;
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
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
#if TENSOR
            const unsigned row = 4 * lane.row + k;
#else
            const unsigned row = lane.row + k * lane.rows;
#endif
            if (!lane.used || row >= PIXELS || first + row >= end) continue;
            store4(at(pages, j.dd) + (first + row) * padded(j.channels) + lane.channel, sum[k], 4);
        }
    }
}

#if TENSOR
// What a thread owns of a product of `lanes` quads of rows and `out_lanes` quads of columns.
struct Part {
    unsigned row, column;     // its quads of rows and of columns
    unsigned split, splits;   // which of those that share the summed index, and how many do
    unsigned sharing;         // threads that a split has
};

__device__ inline Part part_of(unsigned lanes, unsigned out_lanes) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, across = (out_lanes + 3) / 4;
    const unsigned units = (lanes + 7) / 8 * across, unit = warp % units;
    return {unit / across * 8 + lane / 4, unit % across * 4 + lane % 4, warp / units, BLOCK / 32 / units, 32 * units};
}

// Gradient of the pointwise weights, d^T dy over a chunk of pixels. Warps cover the product; those that are left share the
// pixels.
__device__ inline void pointwise_gradient(const SeparableGradient& j, const Pages& pages, unsigned index, float4* left, float4* right) {
    const unsigned t = threadIdx.x;
    const unsigned end = min((index / j.out_groups / j.groups + 1) * j.chunk_rows, j.rows);
    // As many pixels at once as there are threads for their quads, in whole groups of eight.
    const unsigned rows = BLOCK / 4 / ((max(j.lanes, j.out_lanes) + 3) / 4) / 8 * 8;
    const unsigned left_stride = left_stride_of((j.lanes + 3) / 4 * 16), right_stride = right_stride_of((j.out_lanes + 3) / 4 * 16);

    float4 sum[4] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
    for (unsigned first = index / j.out_groups / j.groups * j.chunk_rows; first < end; first += rows) {
        const unsigned k = t / j.lanes;
        if (k < rows) {
            const unsigned channel = 4 * (index / j.out_groups % j.groups * j.lanes + t % j.lanes);
            const unsigned valid = valid_of(channel, j.channels);
            const float4 d = first + k < end && valid > 0 ? depthwise(j, pages, first + k, channel, valid) : quad(0.0f);
            put_rows(reinterpret_cast<float*>(left), left_stride, k, 4 * (t % j.lanes), d);
        }
        const unsigned out_k = t / j.out_lanes;
        if (out_k < rows) {
            const unsigned out_channel = 4 * (index % j.out_groups * j.out_lanes + t % j.out_lanes);
            const unsigned valid = valid_of(out_channel, j.out_channels);
            const float* g = at(pages, j.g) + (first + out_k) * j.g_stride + out_channel;
            const float4 dy = first + out_k < end && valid > 0 ? load4(g, valid) : quad(0.0f);
            put_columns(reinterpret_cast<float*>(right), right_stride, out_k, 4 * (t % j.out_lanes), dy);
        }
        __syncthreads();
        const Part part = part_of(anew(j.lanes), anew(j.out_lanes));
        if (part.split < part.splits) {
            // Rows that do not exist are read as others and not kept.
            const float* a = reinterpret_cast<const float*>(left) + 4 * (part.row < j.lanes ? part.row : 0);
            const float* b = reinterpret_cast<const float*>(right) + 2 * (4 * (part.column - t % 4) + t % 32 / 4 * 2);
            product(sum, a, b, left_stride, right_stride, part.split, rows, part.splits);
        }
        __syncthreads();
    }

    const Part part = part_of(anew(j.lanes), anew(j.out_lanes));
    const unsigned chunk = index / j.out_groups / j.groups;
    const unsigned row = 4 * (index / j.out_groups % j.groups * j.lanes + part.row);
    const unsigned out_channel = 4 * (index % j.out_groups * j.out_lanes + part.column);
    const bool kept = part.split == 0 && part.row < j.lanes && part.column < j.out_lanes;
    const unsigned valid = valid_of(out_channel, j.out_channels);
    float* partial = at(pages, j.partial) + chunk * padded(j.channels * j.out_channels) + row * j.out_channels + out_channel;
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        left[t] = sum[r];
        __syncthreads();
        if (kept && row + r < j.channels) {
            for (unsigned split = 1; split < part.splits; split++) sum[r] = sum[r] + left[t + split * part.sharing];
            store4(partial + r * j.out_channels, sum[r], valid);
        }
        __syncthreads();
    }
}
#else
// Gradient of the pointwise weights, d^T dy over a chunk of pixels. A thread owns two rows by four columns; the threads
// that are left share the pixels.
__device__ inline void pointwise_gradient(const SeparableGradient& j, const Pages& pages, unsigned index, float4* left, float4* right) {
    const unsigned t = threadIdx.x;
    const unsigned channel = 4 * (index / j.out_groups % j.groups * j.lanes + t % j.lanes);
    const unsigned out_channel = 4 * (index % j.out_groups * j.out_lanes + t % j.out_lanes);
    const unsigned chunk = index / j.out_groups / j.groups;
    const unsigned end = min((chunk + 1) * j.chunk_rows, j.rows);
    const unsigned pairs = 2 * j.lanes * j.out_lanes;
    const unsigned splits = BLOCK / pairs;
    const unsigned rows = BLOCK / max(j.lanes, j.out_lanes);
    const unsigned pair = t / j.out_lanes % (2 * j.lanes);

    float4 sum[2] = {quad(0.0f), quad(0.0f)};
    for (unsigned first = chunk * j.chunk_rows; first < end; first += rows) {
        const unsigned row = first + t / j.lanes;
        if (t < rows * j.lanes) {
            const unsigned valid = valid_of(channel, j.channels);
            left[t] = row < end && valid > 0 ? depthwise(j, pages, row, channel, valid) : quad(0.0f);
        }
        const unsigned out_row = first + t / j.out_lanes;
        if (t < rows * j.out_lanes) {
            const unsigned valid = valid_of(out_channel, j.out_channels);
            const float* g = at(pages, j.g) + out_row * j.g_stride + out_channel;
            right[t] = out_row < end && valid > 0 ? load4(g, valid) : quad(0.0f);
        }
        __syncthreads();
        for (unsigned r = t / pairs; r < rows && t < pairs * splits; r += splits) {
            const float4 d = left[r * j.lanes + pair / 2];
            const float4 dy = right[r * j.out_lanes + t % j.out_lanes];
            sum[0] = sum[0] + (pair % 2 ? d.z : d.x) * dy;
            sum[1] = sum[1] + (pair % 2 ? d.w : d.y) * dy;
        }
        __syncthreads();
    }

    left[t] = sum[0];
    right[t] = sum[1];
    __syncthreads();
    if (t >= pairs) return;
    for (unsigned split = 1; split < splits; split++) {
        sum[0] = sum[0] + left[t + split * pairs];
        sum[1] = sum[1] + right[t + split * pairs];
    }
    const unsigned row = 4 * (index / j.out_groups % j.groups * j.lanes) + 2 * pair;
    const unsigned valid = valid_of(out_channel, j.out_channels);
    float* partial = at(pages, j.partial) + chunk * padded(j.channels * j.out_channels) + row * j.out_channels + out_channel;
    if (row < j.channels) store4(partial, sum[0], valid);
    if (row + 1 < j.channels) store4(partial + j.out_channels, sum[1], valid);
}
#endif

// Gradient of the depthwise weights over a chunk of pixels: a thread owns a tap and a quad of channels; the threads that
// are left share the pixels.
__device__ inline void taps_gradient(const SeparableGradient& j, const Pages& pages, unsigned index, float4* left) {
    const unsigned t = threadIdx.x;
    const unsigned chunk = index / j.groups;
    const unsigned channel = 4 * (index % j.groups * j.lanes + t % j.lanes);
    const unsigned valid = valid_of(channel, j.channels);
    const unsigned units = j.lanes * j.kernel * j.kernel;
    const unsigned splits = BLOCK / units;
    const unsigned tap = t / j.lanes % (j.kernel * j.kernel);
    const unsigned end = min((chunk + 1) * j.chunk_rows, j.rows);
    const unsigned top = tap / j.kernel * j.dilation - j.pad;
    const unsigned side = tap % j.kernel * j.dilation - j.pad;
    const Map x = map_at(pages, j.x) + channel;
    const float* dd = at(pages, j.dd) + channel;
    const Norm n = norm_of(j, pages, channel, valid);

    // Image, line and column of the pixel, and how they change from one to the next.
    unsigned row = chunk * j.chunk_rows + t / units;
    unsigned column = row % j.y_w, line = row / j.y_w % j.y_h, image = row / j.y_w / j.y_h;
    const unsigned columns = splits % j.y_w, lines = splits / j.y_w % j.y_h, images = splits / j.y_w / j.y_h;
    float4 sum = quad(0.0f);
    for (; row < end && t < units * splits && valid > 0; row += splits) {
        const unsigned iy = line * j.stride + top;
        const unsigned ix = column * j.stride + side;
        if (iy < j.x_h && ix < j.x_w) {
            const float4 r = relu(n, load4(x + ((image * j.x_h + iy) * j.x_w + ix) * j.x_stride, valid));
            sum = sum + load4(dd + row * padded(j.channels), valid) * r;
        }
        column += columns;
        line += lines;
        image += images;
        if (column >= j.y_w) column -= j.y_w, line++;
        if (line >= j.y_h) line -= j.y_h, image++;
    }

    left[t] = sum;
    __syncthreads();
    if (t < units && valid > 0) {
        for (unsigned split = 1; split < splits; split++) sum = sum + left[t + split * units];
        float* partial = at(pages, j.partial) + chunk * padded(j.kernel * j.kernel * j.channels);
        store4(partial + tap * j.channels + channel, sum, valid);
    }
}

// What one branch adds to the gradient at a pixel of its input. Multiplying by 1 / stride and rounding divides what the
// stride divides; the comparison rejects the rest, coordinates before the image included.
__device__ inline float4 taps_at(const SeparableGradient& j, const Pages& pages, unsigned row, unsigned channel, unsigned valid) {
    const unsigned image = row / (j.x_h * j.x_w);
    const unsigned pixel = row % (j.x_h * j.x_w);
    const unsigned bottom = pixel / j.x_w + j.pad;
    const unsigned right = pixel % j.x_w + j.pad;
    const float* dd = at(pages, j.dd) + image * j.y_h * j.y_w * padded(j.channels) + channel;
    const float* weights = at(pages, j.depthwise) + channel;

    float4 sum = quad(0.0f);
    const unsigned reach = j.kernel * j.dilation;
    for (unsigned py = bottom; py != bottom - reach; py -= j.dilation) {
        const unsigned oy = unsigned(float(py) * j.inverse_stride + 0.5f);
        const bool line = oy < j.y_h && oy * j.stride == py;
#pragma unroll 1
        for (unsigned px = right; px != right - reach; px -= j.dilation) {
            const unsigned ox = unsigned(float(px) * j.inverse_stride + 0.5f);
            if (line && ox < j.y_w && ox * j.stride == px) {
                sum = sum + load4(weights, valid) * load4(dd + (oy * j.y_w + ox) * padded(j.channels), valid);
            }
            weights += j.tap_stride;
        }
    }
    return sum;
}

// Gradient of the input, over all branches that read it, for a chunk of its pixels.
__device__ inline void input_gradient(const SeparableGradient* jobs, const Pages& pages, unsigned index, float4* left, float4* right,
                                      Norm* norms) {
    const SeparableGradient& j = jobs[0];
    const unsigned t = threadIdx.x;
    const unsigned chunk = index / j.groups;
    const Lane lane = lane_of(j.channels, j.lanes, index % j.groups);
    const unsigned end = min((chunk + 1) * j.chunk_rows, j.x_rows);

    // What a thread keeps from pixel to pixel lies in shared memory, and the compiler must leave it there: there are not
    // enough registers.
    norms[t] = norm_of(j, pages, lane.channel, lane.valid);
    left[t] = right[t] = quad(0.0f);
    for (unsigned row = chunk * j.chunk_rows + lane.row; row < end && lane.used; row += lane.rows) {
        asm volatile("" ::: "memory");
        float4 g = quad(0.0f);
        for (unsigned b = 0; b < j.branches; b++) g = g + taps_at(jobs[b], pages, row, lane.channel, lane.valid);
        const float4 x = load4(map_at(pages, j.x) + row * j.x_stride + lane.channel, lane.valid);
        const float4 r = relu(norms[t], x);
        g = make_float4(r.x > 0.0f ? g.x : 0.0f, r.y > 0.0f ? g.y : 0.0f, r.z > 0.0f ? g.z : 0.0f, r.w > 0.0f ? g.w : 0.0f);
        put4(at(pages, j.dx) + row * j.dx_stride + lane.channel, g, lane.valid, j.flags & ADD);
        if (j.flags & SUMS) {
            left[t] = left[t] + g;
            right[t] = right[t] + g * (x - load4(at(pages, j.mean) + lane.channel, lane.valid));
        }
    }
    if (!(j.flags & SUMS)) return;

    const RowSums own = add_rows({left[t], right[t]}, lane, j.lanes, left, right);
    if (lane.row == 0 && lane.used) {
        float* partial = at(pages, j.partial) + 2 * chunk * padded(j.channels) + lane.channel;
        store4(partial, own.s1, 4);
        store4(partial + padded(j.channels), own.s2, 4);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
separable_backward_gradients(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const SeparableGradient* table) {
    after_others();
#if TENSOR
    __shared__ float4 left[320];
    __shared__ float4 right[320];
#else
    __shared__ float4 left[BLOCK];
    __shared__ float4 right[BLOCK];
#endif
    __shared__ Norm norms[BLOCK];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const SeparableGradient* j = table + job_of(table, p.jobs, block);
    const unsigned index = block - j->first_block;
    if (j->kind == POINTWISE) pointwise_gradient(*j, pages, index, left, right);
    if (j->kind == TAPS) taps_gradient(*j, pages, index, left);
    if (j->kind == INPUT) input_gradient(j, pages, index, left, right, norms);
}
