// Dense convolutions and their gradients (src/ops/launch/dense.rs), and what is made of them: the halves of a factorized
// reduce. All three kernels are products of matrices whose elements are fetched where they stand: patches of the map,
// weights, gradients.
#include "common.cuh"

struct DenseJob {
    unsigned first_block;
    unsigned blocks;
    unsigned rows;
    unsigned x_height;
    unsigned x_width;
    unsigned x_channels;
    unsigned y_height;
    unsigned y_width;
    unsigned y_channels;
    unsigned kernel;
    unsigned stride;
    unsigned pad;
    unsigned lanes;
    unsigned groups;
    unsigned tiles;
    unsigned flags;
    unsigned x_stride;
    unsigned w_stride;
    unsigned y_stride;
    unsigned unused;
    Spot x;
    Spot w;
    Spot bias;
    Spot y;
    Spot partial;
    Spot unused_spot;
};

struct DenseInput {
    unsigned first_block;
    unsigned blocks;
    unsigned sources;
    unsigned rows;
    unsigned x_height;
    unsigned x_width;
    unsigned x_channels;
    unsigned y_height;
    unsigned y_width;
    unsigned y_channels;
    unsigned kernel;
    unsigned stride;
    unsigned pad;
    unsigned phase;
    unsigned lanes;
    unsigned groups;
    unsigned flags;
    unsigned x_stride;
    unsigned dx_stride;
    unsigned w_stride;
    unsigned y_stride;
    unsigned g_stride;
    unsigned coef_stride;
    unsigned unused;
    Spot x;
    Spot dx;
    Spot w;
    Spot y;
    Spot g;
    Spot coef;
    Spot mask;
    Spot unused_spot;
};

struct DenseWeight {
    unsigned first_block;
    unsigned blocks;
    unsigned rows;
    unsigned x_height;
    unsigned x_width;
    unsigned x_channels;
    unsigned y_height;
    unsigned y_width;
    unsigned y_channels;
    unsigned kernel;
    unsigned stride;
    unsigned pad;
    unsigned row_quads;
    unsigned column_quads;
    unsigned row_tiles;
    unsigned column_tiles;
    unsigned chunk_rows;
    unsigned flags;
    unsigned x_stride;
    unsigned y_stride;
    unsigned g_stride;
    unsigned coef_stride;
    Spot x;
    Spot y;
    Spot g;
    Spot coef;
    Spot mask;
    Spot partial;
    Spot unused_spot;
};

constexpr unsigned RELU = 1;
constexpr unsigned BIAS = 2;
constexpr unsigned MOMENTS = 4;
constexpr unsigned ACCUMULATE = 8;
constexpr unsigned COEF = 16;
constexpr unsigned MASK = 32;
constexpr unsigned ONES = 64;

// Beyond any map: a pixel that does not exist.
constexpr unsigned OUTSIDE = 0x40000000;
// No element's index.
constexpr unsigned NOWHERE = 0xffffffff;

// The two factors of a product, a stretch of the summed index at a time: element [k][row] of the left one, [k][column] of
// the right one. Quads, so that they are aligned.
__shared__ float4 left_tile[528];
#if TENSOR
__shared__ float4 right_tile[320];
#else
__shared__ float4 right_tile[272];
#endif

__device__ inline bool has(unsigned flags, unsigned flag) { return (flags & flag) != 0; }

// How many of the four elements from `first` on exist.
__device__ inline unsigned exist(unsigned first, unsigned end) { return min(4u, max(first, end) - first); }

// What convolutions read where.
struct Geometry {
    unsigned x_height, x_width, x_channels, y_height, y_width, kernel, stride, pad;
};

template <typename Job>
__device__ inline Geometry geometry_of(const Job& j) {
    return {j.x_height, j.x_width, j.x_channels, j.y_height, j.y_width, j.kernel, j.stride, j.pad};
}

// How a block of `lanes` quads of columns covers a product: four rows and four columns a thread; on tensor cores 32 rows and 16
// columns a warp.
struct Cover {
    unsigned rows;          // of the block
    unsigned step;          // of the summed index, that the tiles hold at once
    unsigned left_stride;   // padded, against bank conflicts
    unsigned right_stride;
    unsigned row;           // first of the thread's rows in the block
    unsigned column;        // first of its columns
    unsigned loads;         // quads of the left tile that a thread fetches
    unsigned right;         // where it reads columns
};

__device__ inline Cover cover_of(unsigned lanes) {
    Cover c;
    c.rows = 4 * BLOCK / lanes;
    c.step = lanes >= 8 ? 16 : 8;
#if TENSOR
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, across = lanes / 4;
    c.left_stride = left_stride_of(c.rows);
    c.right_stride = right_stride_of(4 * lanes);
    c.row = warp / across * 32 + lane / 4 * 4;
    c.column = warp % across * 16 + lane % 4 * 4;
    c.right = 2 * (warp % across * 16 + lane / 4 * 2);
#else
    c.left_stride = c.rows + 4;
    c.right_stride = 4 * lanes + 4;
    c.row = threadIdx.x / lanes * 4;
    c.column = threadIdx.x % lanes * 4;
    c.right = c.column;
#endif
    c.loads = c.rows * c.step / (4 * BLOCK);
    return c;
}

#if !TENSOR
// acc += left * right over the indices first, first + by, ... below `end`.
__device__ inline void product(float4 (&acc)[4], const float* left, const float* right, unsigned left_stride,
                               unsigned right_stride, unsigned first, unsigned end, unsigned by) {
    // Not unrolled: with two steps under way some architectures run out of registers.
#pragma unroll 1
    for (unsigned k = first; k < end; k += by) {
        const float4 a = *reinterpret_cast<const float4*>(left + k * left_stride);
        const float4 b = *reinterpret_cast<const float4*>(right + k * right_stride);
        acc[0] = acc[0] + a.x * b;
        acc[1] = acc[1] + a.y * b;
        acc[2] = acc[2] + a.z * b;
        acc[3] = acc[3] + a.w * b;
    }
}

// Four neighbours along the summed index, at [k + 0..4][at].
__device__ inline void put_transposed(float* tile, unsigned stride, unsigned k, unsigned at, float4 v) {
    float* p = tile + k * stride + at;
    p[0] = v.x;
    p[stride] = v.y;
    p[2 * stride] = v.z;
    p[3 * stride] = v.w;
}

__device__ inline void put_row(float* tile, unsigned stride, unsigned k, unsigned row, float4 v) { put_transposed(tile, stride, k, row, v); }
__device__ inline void put_column(float* tile, unsigned stride, unsigned k, unsigned column, float4 v) {
    put_transposed(tile, stride, k, column, v);
}
#endif

// First pixel that an output pixel reads: `image` counts rows of pixels of the images before. Coordinates wrap around below
// zero.
struct Origin {
    unsigned image, y, x;
};

__device__ inline Origin origin_of(const Geometry& s, unsigned row, unsigned end) {
    if (row >= end) return {0, OUTSIDE, OUTSIDE};
    const unsigned line = row / s.y_width;
    const unsigned image = line / s.y_height;
    return {image * s.x_height, (line - image * s.y_height) * s.stride - s.pad, (row - line * s.y_width) * s.stride - s.pad};
}

// Element `k` of the patch that starts at `o`, tap by tap; NOWHERE where it has none.
__device__ inline unsigned patch_at(const Geometry& s, Origin o, unsigned x_stride, unsigned k) {
    const unsigned tap = s.kernel == 1 ? 0 : k / s.x_channels;
    const unsigned line = tap / s.kernel;
    const unsigned y = o.y + line, x = o.x + tap - line * s.kernel;
    if (y >= s.x_height || x >= s.x_width) return NOWHERE;
    return ((o.image + y) * s.x_width + x) * x_stride + k - tap * s.x_channels;
}

// Elements k..k+3 of a patch, zero beyond its end.
__device__ inline float4 patch4(const float* map, const Geometry& s, Origin o, unsigned x_stride, bool relu, unsigned k) {
    const unsigned depth = s.kernel * s.kernel * s.x_channels;
    float4 v = quad(0.0f);
#if WIDE
    const unsigned i = k < depth ? patch_at(s, o, x_stride, k) : NOWHERE;
    if (i != NOWHERE) v = load4(map + i, 4);
#else
    const unsigned i0 = k < depth ? patch_at(s, o, x_stride, k) : NOWHERE;
    const unsigned i1 = k + 1 < depth ? patch_at(s, o, x_stride, k + 1) : NOWHERE;
    const unsigned i2 = k + 2 < depth ? patch_at(s, o, x_stride, k + 2) : NOWHERE;
    const unsigned i3 = k + 3 < depth ? patch_at(s, o, x_stride, k + 3) : NOWHERE;
    if (i0 != NOWHERE) v.x = map[i0];
    if (i1 != NOWHERE) v.y = map[i1];
    if (i2 != NOWHERE) v.z = map[i2];
    if (i3 != NOWHERE) v.w = map[i3];
#endif
    if (relu) v = rectified(v);
    return v;
}

// The gradient at a map: a (mask g) + b y + d, or mask g (TermView in src/ops/elementwise.rs).
template <typename Job>
__device__ inline float4 gradient4(const Pages& pages, const Job& j, unsigned row, unsigned image, unsigned channel) {
    const unsigned valid = exist(channel, j.y_channels);
    float4 v = load4(at(pages, j.g) + row * j.g_stride + channel, valid);
    if (has(j.flags, MASK)) v = at(pages, j.mask)[image] * v;
    if (has(j.flags, COEF)) {
        const float* coef = at(pages, j.coef) + channel;
        const float4 y = load4(map_at(pages, j.y) + row * j.y_stride + channel, valid);
        v = load4(coef, valid) * v + load4(coef + j.coef_stride, valid) * y + load4(coef + 2 * j.coef_stride, valid);
    }
    return v;
}

// Merges the moments of all threads that own the same columns, as merge_rows does, in the memory of the tiles; the threads
// of the first rows get the result.
__device__ inline Moments merge_tile(Moments own, const Cover& c, unsigned lanes) {
    float* counts = reinterpret_cast<float*>(right_tile);
#if TENSOR
    const unsigned t = c.row / 4 * lanes + c.column / 4;
#else
    const unsigned t = threadIdx.x;
#endif
    for (unsigned width = BLOCK / lanes; width > 1; width /= 2) {
        counts[t] = own.count;
        left_tile[t] = own.mean;
        left_tile[BLOCK + t] = own.m2;
        __syncthreads();
        if (t / lanes < width / 2) {
            const unsigned other = t + width / 2 * lanes;
            own = merge(own, {counts[other], left_tile[other], left_tile[BLOCK + other]});
        }
        __syncthreads();
    }
    return own;
}

// Moments of the first `count` of four rows.
__device__ inline Moments moments_of(const float4 (&v)[4], unsigned count) {
    Moments m = none();
    m.count = float(count);
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        if (r < count) m.mean = m.mean + v[r];
    }
    m.mean = (1.0f / m.count) * m.mean;
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        const float4 d = v[r] - m.mean;
        if (r < count) m.m2 = m.m2 + d * d;
    }
    return m;
}

// y = patches * w + bias. A block computes `tiles` tiles one after another: a chunk of the moments.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
dense_forward(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const DenseJob* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const DenseJob& j = table[job_of(table, p.jobs, block)];
    const unsigned chunk = (block - j.first_block) / j.groups;
    const unsigned group = (block - j.first_block) % j.groups * 4 * j.lanes;
    const Geometry s = geometry_of(j);
    const Cover c = cover_of(j.lanes);
    const unsigned depth = s.kernel * s.kernel * s.x_channels;
    const unsigned channel = group + c.column;
    const unsigned valid = exist(channel, j.y_channels);
    float* left = reinterpret_cast<float*>(left_tile);
    float* right = reinterpret_cast<float*>(right_tile);
    const unsigned quads = c.step / 4;
    const unsigned load_k = threadIdx.x % quads * 4, load_row = threadIdx.x / quads;
    const unsigned right_k = threadIdx.x / j.lanes;

    Moments own = none();
    for (unsigned tile = chunk * j.tiles; tile < (chunk + 1) * j.tiles && tile * c.rows < j.rows; tile++) {
        const unsigned first = tile * c.rows;
        float4 acc[4] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
        Origin origins[2];
        origins[0] = origin_of(s, first + load_row, j.rows);
        origins[1] = c.loads > 1 ? origin_of(s, first + load_row + BLOCK / quads, j.rows) : Origin{0, OUTSIDE, OUTSIDE};
        for (unsigned k = 0; k < depth; k += c.step) {
#pragma unroll
            for (unsigned l = 0; l < 2; l++) {
                if (l < c.loads) {
                    const float4 v = patch4(at(pages, j.x), s, origins[l], j.x_stride, has(j.flags, RELU), k + load_k);
                    put_row(left, c.left_stride, load_k, load_row + l * (BLOCK / quads), v);
                }
            }
            if (right_k < c.step) {
#if TENSOR
                const unsigned column = threadIdx.x % j.lanes * 4;
                const unsigned exists = k + right_k < depth ? exist(group + column, j.y_channels) : 0;
                const float4 w = load4(at(pages, j.w) + (k + right_k) * j.w_stride + group + column, exists);
                put_columns(right, c.right_stride, right_k, column, w);
#else
                const unsigned exists = k + right_k < depth ? valid : 0;
                const float4 w = load4(at(pages, j.w) + (k + right_k) * j.w_stride + channel, exists);
                *reinterpret_cast<float4*>(right + right_k * c.right_stride + c.column) = w;
#endif
            }
            __syncthreads();
            product(acc, left + c.row, right + c.right, c.left_stride, c.right_stride, 0, c.step, 1);
            __syncthreads();
        }
        const unsigned row = first + c.row;
        const float4 bias = has(j.flags, BIAS) ? load4(at(pages, j.bias) + channel, valid) : quad(0.0f);
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            if (row + r >= j.rows) continue;
            const Map y = map_at(pages, j.y) + (row + r) * j.y_stride + channel;
            acc[r] = acc[r] + bias;
            if (has(j.flags, ACCUMULATE)) acc[r] = load4(y, valid) + acc[r];
            store4(y, acc[r], valid);
        }
        if (has(j.flags, MOMENTS) && row < j.rows) own = merge(own, moments_of(acc, min(4u, j.rows - row)));
    }

    if (!has(j.flags, MOMENTS)) return;
    own = merge_tile(own, c, j.lanes);
    if (c.row == 0 && valid > 0) {
        store_moments(at(pages, j.partial) + chunk * moments_stride(j.y_channels), own, j.y_channels, channel);
    }
}

// dx = relu' * sum over sources and taps of dy * w^T. The rows of a job are the pixels of one phase, those whose
// coordinates leave the same rests when divided by the stride: all of them are read by the same taps.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
dense_input(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const DenseInput* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned index = job_of(table, p.jobs, block);
    const DenseInput& j = table[index];
    const unsigned first = (block - j.first_block) / j.groups;
    const unsigned group = (block - j.first_block) % j.groups * 4 * j.lanes;
    const Cover c = cover_of(j.lanes);
    const unsigned stride = j.stride, phase_y = j.phase / stride, phase_x = j.phase % stride;
    const unsigned height = (j.x_height - phase_y + stride - 1) / stride;
    const unsigned width = (j.x_width - phase_x + stride - 1) / stride;
    float* left = reinterpret_cast<float*>(left_tile);
    float* right = reinterpret_cast<float*>(right_tile);
    const unsigned quads = c.step / 4;
    const unsigned load_k = threadIdx.x % quads * 4, load_row = threadIdx.x / quads;

    float4 acc[4] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
#if TENSOR
    // In shared memory: there are not enough registers.
    __shared__ Origin pixels[2 * BLOCK];
    constexpr unsigned apart = BLOCK;
    const unsigned own = threadIdx.x;
#else
    Origin pixels[2];
    constexpr unsigned apart = 1, own = 0;
#endif
#pragma unroll
    for (unsigned l = 0; l < 2; l++) {
        const unsigned row = first * c.rows + load_row + l * (BLOCK / quads);
        const unsigned line = row / width, image = line / height;
        pixels[l * apart + own] = {image, row < j.rows ? line - image * height : OUTSIDE, row - line * width};
    }
    for (unsigned source = 0; source < j.sources; source++) {
        const DenseInput& s = table[index + source];
        // Shifts from pixel to output pixel can be negative: they wrap around.
        const int above = int(phase_y + s.pad), before = int(phase_x + s.pad), by = int(stride);
        for (int tap_y = (above % by + by) % by; tap_y < int(s.kernel); tap_y += by) {
            for (int tap_x = (before % by + by) % by; tap_x < int(s.kernel); tap_x += by) {
                const unsigned shift_y = unsigned((above - tap_y) / by), shift_x = unsigned((before - tap_x) / by);
                const unsigned tap = unsigned(tap_y) * s.kernel + unsigned(tap_x);
                for (unsigned k = 0; k < s.y_channels; k += c.step) {
#pragma unroll
                    for (unsigned l = 0; l < 2; l++) {
                        if (l < c.loads) {
                            const Origin& pixel = pixels[l * apart + own];
                            const unsigned y = pixel.y + shift_y, x = pixel.x + shift_x, image = pixel.image;
                            float4 v = quad(0.0f);
                            if (y < s.y_height && x < s.y_width) {
                                v = gradient4(pages, s, (image * s.y_height + y) * s.y_width + x, image, k + load_k);
                            }
                            put_row(left, c.left_stride, load_k, load_row + l * (BLOCK / quads), v);
                        }
                    }
                    if (load_row < 4 * j.lanes) {
                        const unsigned channel = group + load_row, out = k + load_k;
                        const unsigned exists = channel < s.x_channels ? exist(out, s.y_channels) : 0;
                        const float4 w = load4(at(pages, s.w) + (tap * s.x_channels + channel) * s.w_stride + out, exists);
                        put_column(right, c.right_stride, load_k, load_row, w);
                    }
                    __syncthreads();
                    product(acc, left + c.row, right + c.right, c.left_stride, c.right_stride, 0, c.step, 1);
                    __syncthreads();
                }
            }
        }
    }

#if TENSOR
    const Cover mine = cover_of(anew(j.lanes));
#else
    const Cover& mine = c;
#endif
    const unsigned channel = group + mine.column;
    const unsigned valid = exist(channel, j.x_channels);
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        const unsigned row = first * mine.rows + mine.row + r;
        if (row >= j.rows) continue;
        const unsigned line = row / width, image = line / height;
        const unsigned y = (line - image * height) * stride + phase_y, x = (row - line * width) * stride + phase_x;
        const unsigned pixel = (image * j.x_height + y) * j.x_width + x;
        float4 v = acc[r];
        if (has(j.flags, RELU)) {
            const float4 active = load4(at(pages, j.x) + pixel * j.x_stride + channel, valid);
            v = make_float4(active.x > 0.0f ? v.x : 0.0f, active.y > 0.0f ? v.y : 0.0f, active.z > 0.0f ? v.z : 0.0f,
                            active.w > 0.0f ? v.w : 0.0f);
        }
        put4(at(pages, j.dx) + pixel * j.dx_stride + channel, v, valid, has(j.flags, ACCUMULATE));
    }
}

// dw = patches^T * dy over a chunk of rows; with ONES, a last row of the product is the sum of dy. Threads that are left
// over by a small product share its rows: slices.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
dense_weight(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const DenseWeight* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const DenseWeight& j = table[job_of(table, p.jobs, block)];
    const unsigned tile = (block - j.first_block) / j.column_tiles, chunk = tile / j.row_tiles;
    const unsigned row_quads = j.row_quads, column_quads = j.column_quads;
    const unsigned tile_row = tile % j.row_tiles * 4 * row_quads;
    const unsigned tile_column = (block - j.first_block) % j.column_tiles * 4 * column_quads;
#if TENSOR
    // Warps cover the product. One that has fewer rows than a warp covers is as if it had some of them twice.
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, across = column_quads / 4;
    const unsigned sharing = 32 * across * ((row_quads + 7) / 8);
    const unsigned step = BLOCK / max(row_quads, column_quads), slices = BLOCK / sharing, slice = threadIdx.x / sharing;
    const unsigned column = warp % across * 4 + lane % 4, row = threadIdx.x % sharing / 32 / across * 8 + lane / 4;
    const unsigned left_stride = left_stride_of(4 * row_quads), right_stride = right_stride_of(4 * column_quads);
    float* left = reinterpret_cast<float*>(left_tile);
    float* right = reinterpret_cast<float*>(right_tile);
#else
    const unsigned sharing = row_quads * column_quads;
    const unsigned step = BLOCK / max(row_quads, column_quads), slices = BLOCK / sharing;
    const unsigned column = threadIdx.x % column_quads, row = threadIdx.x / column_quads % row_quads;
    const unsigned slice = threadIdx.x / sharing;
#endif
    const Geometry s = geometry_of(j);
    const unsigned depth = s.kernel * s.kernel * s.x_channels;
    const unsigned end = min((chunk + 1) * j.chunk_rows, j.rows), pixels = j.y_height * j.y_width;
    const unsigned left_k = threadIdx.x / row_quads, right_k = threadIdx.x / column_quads;
#if !TENSOR
    const unsigned left_quad = threadIdx.x % row_quads;
#endif

    float4 acc[4] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
    for (unsigned first = chunk * j.chunk_rows; first < end; first += step) {
#if TENSOR
        const unsigned left_quad = anew(threadIdx.x) % row_quads;
#endif
        if (left_k < step) {
            const unsigned k = tile_row + 4 * left_quad;
            float4 v = patch4(at(pages, j.x), s, origin_of(s, first + left_k, end), j.x_stride, has(j.flags, RELU), k);
            if (has(j.flags, ONES)) {
                if (k == depth) v.x = 1.0f;
                if (k + 1 == depth) v.y = 1.0f;
                if (k + 2 == depth) v.z = 1.0f;
                if (k + 3 == depth) v.w = 1.0f;
            }
#if TENSOR
            put_rows(left, left_stride, left_k, 4 * left_quad, v);
        }
        if (right_k < step) {
            const unsigned r = first + right_k, column = 4 * (threadIdx.x % column_quads);
            const float4 v = r < end ? gradient4(pages, j, r, r / pixels, tile_column + column) : quad(0.0f);
            put_columns(right, right_stride, right_k, column, v);
        }
        __syncthreads();
        product(acc, left + 4 * (row % row_quads), right + 2 * (warp % across * 16 + lane / 4 * 2), left_stride, right_stride,
                anew(threadIdx.x) / sharing, step, slices);
#else
            left_tile[threadIdx.x] = v;
        }
        if (right_k < step) {
            const unsigned r = first + right_k;
            const unsigned channel = tile_column + 4 * column;
            right_tile[threadIdx.x] = r < end ? gradient4(pages, j, r, r / pixels, channel) : quad(0.0f);
        }
        __syncthreads();
        product(acc, reinterpret_cast<const float*>(left_tile + row), reinterpret_cast<const float*>(right_tile + column),
                4 * row_quads, 4 * column_quads, slice, step, slices);
#endif
        __syncthreads();
    }

    const unsigned channel = tile_column + 4 * column;
    const unsigned valid = exist(channel, j.y_channels);
    const unsigned rows = depth + (has(j.flags, ONES) ? 1 : 0);
#if TENSOR
    float* partial = at(pages, j.partial) + anew(block - j.first_block) / j.column_tiles / j.row_tiles * padded(rows * j.y_channels);
#else
    float* partial = at(pages, j.partial) + chunk * padded(rows * j.y_channels);
#endif
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        left_tile[threadIdx.x] = acc[r];
        __syncthreads();
        const unsigned k = tile_row + 4 * row + r;
#if TENSOR
        const bool exists = row < row_quads && k < rows;
#else
        const bool exists = k < rows;
#endif
        if (slice == 0 && exists) {
            float4 sum = acc[r];
            for (unsigned i = 1; i < slices; i++) sum = sum + left_tile[i * sharing + threadIdx.x];
            store4(partial + k * j.y_channels + channel, sum, valid);
        }
        __syncthreads();
    }
}
