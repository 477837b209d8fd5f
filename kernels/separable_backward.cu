// Gradients of separable convolutions (src/ops/separable.rs). One kernel takes the gradient dy back to the depthwise
// result, dd; one computes the gradients of both weights and of the input. Sums of normalised inputs are folded in pool.cu.
#include "separable.cuh"

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
    unsigned tiles;
    unsigned across;
    unsigned down;
    unsigned regions;
    unsigned chunk_regions;
    unsigned unused;
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
};

constexpr unsigned COEF = 4;
constexpr unsigned MASK = 8;
constexpr unsigned STORE = 16;
constexpr unsigned ADD = 32;
constexpr unsigned SUMS = 64;
constexpr unsigned TILED = 128;

// Kinds of jobs of separable_backward_gradients.
constexpr unsigned POINTWISE = 0;
constexpr unsigned TAPS = 1;
constexpr unsigned INPUT = 2;

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

// dd = dy pointwise^T, for `lanes` quads of a chunk of pixels, tile by tile. Keeps dy if it is to be read again. The pixels of a tile
// stand in order here.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
separable_backward_product(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const SeparableGradient* table) {
    after_others();
    // dy, a few channels at a time; and as many columns of the pointwise weights.
    __shared__ float4 tile[TILE / 4];
    __shared__ float4 matrix[matrix_of(BLOCK / CHANNELS) / 4];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const SeparableGradient& j = table[job_of(table, p.jobs, block)];
    const unsigned group = (block - j.first_block) % j.groups;
    const unsigned start = (block - j.first_block) / j.groups * j.chunk_rows;
    const Lane lane = tile_lane(j.channels, j.lanes, group);
    const unsigned end = min(start + j.chunk_rows, j.rows);
    const unsigned step = whole_step(j.step);
    const unsigned t = threadIdx.x;

    for (unsigned first = start; first < end; first += PIXELS) {
        float4 sum[ROWS] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
        for (unsigned base = 0; base < j.out_channels; base += 4 * step) {
            const unsigned pixel = t / step;
            const unsigned channel = base + 4 * (t % step);
            if (pixel < PIXELS) {
                const unsigned valid = valid_of(channel, j.out_channels);
                const bool there = first + pixel < end && valid > 0;
                const float4 dy = there ? term(j, pages, first + pixel, channel, valid) : quad(0.0f);
                put_pixel(reinterpret_cast<float*>(tile), t % step, pixel, dy);
                if (there && group == 0 && j.flags & STORE) {
                    store4(at(pages, j.dy) + (first + pixel) * padded(j.out_channels) + channel, dy, 4);
                }
            }
            const unsigned column = base + t % (4 * step);
            const unsigned quads = t / (4 * step);
            if (quads < j.lanes) {
                const unsigned row = 4 * (group * j.lanes + quads);
                const float* w = at(pages, j.pointwise) + row * j.weight_stride + column;
                const unsigned valid = column < j.out_channels ? valid_of(row, j.channels) : 0;
                float4 v = quad(0.0f);
                if (valid > 0) v.x = w[0];
                if (valid > 1) v.y = w[j.weight_stride];
                if (valid > 2) v.z = w[2 * j.weight_stride];
                if (valid > 3) v.w = w[3 * j.weight_stride];
                put_weights(reinterpret_cast<float*>(matrix), j.lanes, t % (4 * step), quads, v);
            }
            __syncthreads();
            multiply(sum, reinterpret_cast<const float*>(tile), reinterpret_cast<const float*>(matrix), j.lanes, step);
            __syncthreads();
        }
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) {
            const unsigned row = first + ROWS * lane.row + k;
            if (lane.used && row < end) store4(at(pages, j.dd) + row * padded(j.channels) + lane.channel, sum[k], 4);
        }
    }
}

// Products d^T dy over the 64 pixels of a tile: four channels by four output channels a thread. The threads that are left share the
// pixels.
struct Part {
    unsigned row, column;     // its quads of channels and of output channels
    unsigned split, splits;   // which of those that share the pixels, and how many do
    unsigned sharing;         // threads that a split has
};

// Quads of output channels, at most.
constexpr unsigned OUT_QUADS = 16;

#if TENSOR
__device__ inline Part part_of(unsigned lanes, unsigned out_lanes) {
    const unsigned t = anew(threadIdx.x), warp = t / 32, lane = t % 32, units = (out_lanes + 3) / 4;
    return {lane / 4, warp % units * 4 + lane % 4, warp / units, BLOCK / 32 / units, 32 * units};
}

constexpr unsigned LEFT_STRIDE = 2 * CHANNELS + 8;
constexpr unsigned LEFT = PIXELS / 2 * LEFT_STRIDE;
constexpr unsigned RIGHT = PIXELS / 2 * (8 * OUT_QUADS + 8);

__device__ inline void put_d(float* left, unsigned channel, unsigned pixel, float v) {
    left[pixel / 2 * LEFT_STRIDE + pixel % 2 * 2 + channel / 4 * 4 + channel / 2 % 2 * half_of(LEFT_STRIDE) + channel % 2] = factor(v);
}

__device__ inline void put_d4(float* left, unsigned quad, unsigned pixel, float4 v) { put_rows(left, LEFT_STRIDE, pixel, 4 * quad, v); }

__device__ inline void put_dy(float* right, unsigned out_lanes, unsigned quad, unsigned pixel, float4 v) {
    put_columns(right, tile_right(out_lanes), pixel, 4 * quad, v);
}

__device__ inline void multiply_pixels(float4 (&sum)[4], const Part& part, const float* left, const float* right, unsigned lanes,
                                       unsigned out_lanes) {
    if (part.split >= part.splits) return;
    // Rows that do not exist are read as others and not kept.
    const float* a = left + 4 * (part.row < lanes ? part.row : 0);
    const float* b = right + 2 * (4 * (part.column - threadIdx.x % 4) + threadIdx.x % 32 / 4 * 2);
    product(sum, a, b, LEFT_STRIDE, tile_right(out_lanes), part.split, PIXELS, part.splits);
}
#else
__device__ inline Part part_of(unsigned lanes, unsigned out_lanes) {
    const unsigned t = anew(threadIdx.x), pairs = lanes * out_lanes, pair = t % pairs;
    return {pair / out_lanes, pair % out_lanes, t / pairs, BLOCK / pairs, pairs};
}

constexpr unsigned LEFT = TILE;
constexpr unsigned RIGHT = PIXELS * 4 * OUT_QUADS;

__device__ inline void put_d(float* left, unsigned channel, unsigned pixel, float v) { put_value(left, channel, pixel, v); }

__device__ inline void put_d4(float* left, unsigned quad, unsigned pixel, float4 v) { put_pixel(left, quad, pixel, v); }

__device__ inline void put_dy(float* right, unsigned out_lanes, unsigned quad, unsigned pixel, float4 v) {
    *reinterpret_cast<float4*>(right + 4 * (pixel * out_lanes + quad)) = v;
}

__device__ inline void multiply_pixels(float4 (&sum)[4], const Part& part, const float* left, const float* right, unsigned lanes,
                                       unsigned out_lanes) {
    if (part.split >= part.splits) return;
    const float4* d = reinterpret_cast<const float4*>(left + part.row * QUAD);
    const float4* dy = reinterpret_cast<const float4*>(right) + part.column;
#pragma unroll 1
    for (unsigned pixel = part.split; pixel < PIXELS; pixel += part.splits) {
        const float4 a = d[pixel], b = dy[pixel * out_lanes];
        sum[0] = sum[0] + a.x * b;
        sum[1] = sum[1] + a.y * b;
        sum[2] = sum[2] + a.z * b;
        sum[3] = sum[3] + a.w * b;
    }
}
#endif

// Shared memory of separable_backward_gradients: a region, and what stands behind it.
constexpr unsigned MEMORY = REGION + LEFT + RIGHT;

// The gradient at the output for the pixels of a tile, by the threads from `first` on. Pixels of a tile are given by `row_of`, which
// says whether they exist.
template <class RowOf>
__device__ inline void load_dy(const SeparableGradient& j, const Pages& pages, float* right, unsigned base, unsigned first, RowOf row_of) {
    for (unsigned i = anew(threadIdx.x) - first; i < PIXELS * j.out_lanes; i += BLOCK - first) {
        const unsigned pixel = i / j.out_lanes, channel = base + 4 * (i % j.out_lanes);
        unsigned row = 0;
        const unsigned valid = row_of(pixel, row) ? valid_of(channel, j.out_channels) : 0;
        put_dy(right, j.out_lanes, i % j.out_lanes, pixel, load4(at(pages, j.g) + row * j.g_stride + channel, valid));
    }
}

// Gradient of the pointwise weights, d^T dy over a chunk of pixels.
__device__ inline void pointwise_gradient(const SeparableGradient& j, const Pages& pages, unsigned index, float* memory) {
    float *left = memory + REGION, *right = left + LEFT;
    const unsigned chunk = index / j.out_groups / j.groups;
    const unsigned base = 4 * (index / j.out_groups % j.groups * j.lanes), out_base = 4 * (index % j.out_groups * j.out_lanes);
    const unsigned t = anew(threadIdx.x);
    float4 sum[4] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
    if (j.flags & TILED) {
        const Patch patch = patch_of(j.dilation);
        for (unsigned now = chunk * j.chunk_regions; now < min((chunk + 1) * j.chunk_regions, j.regions); now++) {
            const Corner corner = corner_of(j, now);
            load_map(j, pages, memory, corner, base, j.pad, j.lanes);
            __syncthreads();
            for (unsigned place = 0; place < j.tiles; place++) {
                if (t >= TILE_THREADS) {
                    load_dy(j, pages, right, out_base, TILE_THREADS, [&](unsigned pixel, unsigned& row) {
                        const unsigned line = corner.line + line_of(pixel), column = corner.column + place * SIDE + column_of(pixel);
                        row = (corner.image * j.y_h + line) * j.y_w + column;
                        return line < j.y_h && column < j.y_w;
                    });
                } else if (patch.channel < 4 * j.lanes) {
                    float d[2][4] = {};
                    const unsigned channel = base + patch.channel;
                    if (channel < j.channels) {
                        const float* from = region_at(memory, patch.line, place * SIDE + patch.column) + patch.channel;
                        any_stencil<false>(j.kernel, j.dilation, d, from, at(pages, j.depthwise) + channel, j.tap_stride);
                    }
#pragma unroll
                    for (unsigned i = 0; i < 8; i++) put_d(left, patch.channel, pixel_of(patch, j.dilation, i / 4, i % 4), d[i / 4][i % 4]);
                }
                __syncthreads();
                multiply_pixels(sum, part_of(j.lanes, j.out_lanes), left, right, j.lanes, j.out_lanes);
                __syncthreads();
            }
        }
    } else {
        const unsigned end = min((chunk + 1) * j.chunk_rows, j.rows);
        for (unsigned first = chunk * j.chunk_rows; first < end; first += PIXELS) {
            if (t < PIXELS * j.lanes) {
                const unsigned pixel = t / j.lanes, row = first + pixel, channel = base + 4 * (t % j.lanes);
                const unsigned valid = row < end ? valid_of(channel, j.channels) : 0;
                const unsigned image = row / (j.y_h * j.y_w), place = row % (j.y_h * j.y_w);
                const float4 d = valid ? depthwise(j, pages, image, place / j.y_w, place % j.y_w, channel, valid) : quad(0.0f);
                put_d4(left, t % j.lanes, pixel, d);
            }
            load_dy(j, pages, right, out_base, 0, [&](unsigned pixel, unsigned& row) {
                row = first + pixel;
                return row < end;
            });
            __syncthreads();
            multiply_pixels(sum, part_of(j.lanes, j.out_lanes), left, right, j.lanes, j.out_lanes);
            __syncthreads();
        }
    }

    const Part part = part_of(j.lanes, j.out_lanes);
    float4* sums = reinterpret_cast<float4*>(memory);
#pragma unroll
    for (unsigned r = 0; r < 4; r++) sums[r * BLOCK + t] = sum[r];
    __syncthreads();
    if (part.split > 0 || part.row >= j.lanes || part.column >= j.out_lanes) return;
    const unsigned row = base + 4 * part.row, out_channel = out_base + 4 * part.column;
    const unsigned valid = valid_of(out_channel, j.out_channels);
    float* partial = at(pages, j.partial) + chunk * padded(j.channels * j.out_channels) + row * j.out_channels + out_channel;
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        if (row + r >= j.channels) break;
        for (unsigned split = 1; split < part.splits; split++) sum[r] = sum[r] + sums[r * BLOCK + t + split * part.sharing];
        store4(partial + r * j.out_channels, sum[r], valid);
    }
}

// Lines of taps that a thread sums, at most, and taps of a line.
constexpr unsigned TAP_LINES = 3;
constexpr unsigned TAP_COLUMNS = 5;

// acc += what a patch adds to the gradients of `lines` lines of taps from line `first` on: `dd` points at the gradient at the depthwise
// result of its pixel (0, 0), at `line` and `column` of the image, `from` at this pixel in a region.
template <unsigned KERNEL, unsigned DILATION>
__device__ inline void taps_of(float (&acc)[TAP_LINES][TAP_COLUMNS], const SeparableGradient& j, const float* dd, unsigned line,
                               unsigned column, const float* from, unsigned first, unsigned lines) {
    float d[2][4];
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        const unsigned below = i / 4 * DILATION, beside = i % 4 * DILATION;
        const bool there = line + below < j.y_h && column + beside < j.y_w;
        d[i / 4][i % 4] = there ? dd[(below * j.y_w + beside) * padded(j.channels)] : 0.0f;
    }
    from += first * DILATION * LINE;
    from -= (KERNEL - 1) / 2 * DILATION * (LINE + CHANNELS);
#pragma unroll
    for (unsigned l = 0; l <= (KERNEL + 1) / 2; l++) {
        if (l > lines) break;
#pragma unroll
        for (unsigned i = 0; i < KERNEL + 3; i++) {
            const float x = from[l * DILATION * LINE + i * DILATION * CHANNELS];
#pragma unroll
            for (unsigned c = 0; c < 4; c++) {
                if (i < c || i - c >= KERNEL) continue;
                if (l < (KERNEL + 1) / 2) acc[l][i - c] += d[0][c] * x;
                if (l > 0) acc[l - 1][i - c] += d[1][c] * x;
            }
        }
    }
}

// Gradient of the depthwise weights over a chunk of regions: a thread sums half of a channel's taps over its patches.
__device__ inline void taps_over_tiles(const SeparableGradient& j, const Pages& pages, unsigned index, float* memory) {
    const unsigned t = anew(threadIdx.x), half = t / TILE_THREADS, chunk = index / j.groups, base = 4 * (index % j.groups * j.lanes);
    const unsigned first = half * ((j.kernel + 1) / 2), lines = half ? j.kernel / 2 : (j.kernel + 1) / 2;
    float acc[TAP_LINES][TAP_COLUMNS] = {};
    for (unsigned now = chunk * j.chunk_regions; now < min((chunk + 1) * j.chunk_regions, j.regions); now++) {
        const Corner corner = corner_of(j, now);
        load_map(j, pages, memory, corner, base, j.pad, j.lanes);
        __syncthreads();
        const Patch patch = patch_of(j.dilation);
        const unsigned channel = base + patch.channel;
        const bool active = patch.channel < 4 * j.lanes && channel < j.channels;
        for (unsigned place = 0; place < j.tiles && active; place++) {
            const unsigned line = corner.line + patch.line, column = corner.column + place * SIDE + patch.column;
            const float* dd = at(pages, j.dd) + ((corner.image * j.y_h + line) * j.y_w + column) * padded(j.channels) + channel;
            const float* from = region_at(memory, patch.line, place * SIDE + patch.column) + patch.channel;
            if (j.kernel == 3 && j.dilation == 1) taps_of<3, 1>(acc, j, dd, line, column, from, first, lines);
            else if (j.kernel == 5 && j.dilation == 1) taps_of<5, 1>(acc, j, dd, line, column, from, first, lines);
            else if (j.kernel == 3) taps_of<3, 2>(acc, j, dd, line, column, from, first, lines);
            else taps_of<5, 2>(acc, j, dd, line, column, from, first, lines);
        }
        __syncthreads();
    }

    // Both halves of a warp have the same channels, and so have the warps of a half of the block.
    constexpr unsigned ALL = TAP_LINES * TAP_COLUMNS;
#pragma unroll
    for (unsigned i = 0; i < ALL; i++) {
        const float own = acc[i / TAP_COLUMNS][i % TAP_COLUMNS], both = own + __shfl_xor_sync(0xffffffffu, own, CHANNELS);
        if (t % 32 < CHANNELS) memory[(t / 32 * ALL + i) * CHANNELS + t % CHANNELS] = both;
    }
    __syncthreads();
    for (unsigned i = t; i < j.kernel * j.kernel * CHANNELS; i += BLOCK) {
        const unsigned tap = i / CHANNELS, place = i % CHANNELS;
        if (place >= 4 * j.lanes || base + place >= j.channels) continue;
        const unsigned line = tap / j.kernel, upper = (j.kernel + 1) / 2, below = line >= upper;
        const unsigned slot = (line - below * upper) * TAP_COLUMNS + tap % j.kernel;
        const float* sums = memory + (below * (TILE_THREADS / 32) * ALL + slot) * CHANNELS + place;
        float sum = 0.0f;
        for (unsigned warp = 0; warp < TILE_THREADS / 32; warp++) sum += sums[warp * ALL * CHANNELS];
        at(pages, j.partial)[chunk * padded(j.kernel * j.kernel * j.channels) + tap * j.channels + base + place] = sum;
    }
}

// The same for kernels without a stencil, over a chunk of pixels: a thread owns a tap and a quad of channels; the threads that are
// left share the pixels.
__device__ inline void taps_over_rows(const SeparableGradient& j, const Pages& pages, unsigned index, float4* left) {
    const unsigned t = anew(threadIdx.x);
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

// What a thread keeps from pixel to pixel in a gradient of an input lies in shared memory, and the compiler must leave it there:
// there are not enough registers.
struct Kept {
    float4 left[BLOCK];
    float4 right[BLOCK];
    Norm norms[BLOCK];
};

// The gradient `g` of the activation becomes that of the input at a pixel, and is added to the sums of a normalised one.
__device__ inline void put_input(const SeparableGradient& j, const Pages& pages, unsigned row, const Lane& lane, float4 g, Kept& kept) {
    const unsigned t = anew(threadIdx.x);
    const float4 x = load4(map_at(pages, j.x) + row * j.x_stride + lane.channel, lane.valid);
    const float4 r = relu(kept.norms[t], x);
    g = make_float4(r.x > 0.0f ? g.x : 0.0f, r.y > 0.0f ? g.y : 0.0f, r.z > 0.0f ? g.z : 0.0f, r.w > 0.0f ? g.w : 0.0f);
    put4(at(pages, j.dx) + row * j.dx_stride + lane.channel, g, lane.valid, j.flags & ADD);
    if (j.flags & SUMS) {
        kept.left[t] = kept.left[t] + g;
        kept.right[t] = kept.right[t] + g * (x - load4(at(pages, j.mean) + lane.channel, lane.valid));
    }
}

// The activation's gradient in a tile, as quads of channels: elements from one pixel to the next. Pixels four lines apart lie at
// other banks.
constexpr unsigned PIXEL = CHANNELS + 4;

// Adds up a region's gradient of an activation over all branches that read it, and leaves it in the region's place.
__device__ inline void gather_tiles(const SeparableGradient* jobs, const Pages& pages, float* region, const Corner& corner, unsigned base) {
    const SeparableGradient& j = jobs[0];
    // A thread owns other pixels under another dilation.
    float near[2][4] = {}, far[2][4] = {};
    const Patch by_one = patch_of(1), by_two = patch_of(2);
    const bool owns = by_one.tile < j.tiles && by_one.channel < 4 * j.lanes;
    const unsigned channel = base + by_one.channel;
    for (unsigned b = 0; b < j.branches; b++) {
        const SeparableGradient& branch = jobs[b];
        const float* dd = at(pages, branch.dd) + corner.image * j.x_h * j.x_w * padded(j.channels) + base;
        const auto pixel = [&](unsigned line, unsigned column, unsigned q) {
            return load4(dd + (line * j.x_w + column) * padded(j.channels) + 4 * q, base + 4 * q < j.channels ? 4 : 0);
        };
        load_region(region, corner, j.x_h, j.x_w, j.tiles, branch.pad, j.lanes, pixel);
        __syncthreads();
        if (owns && channel < j.channels) {
            const float* weights = at(pages, branch.depthwise) + channel;
            const Patch patch = branch.dilation == 1 ? by_one : by_two;
            const float* from = region_at(region, patch.line, patch.tile * SIDE + patch.column) + patch.channel;
            if (branch.kernel == 3 && branch.dilation == 1) stencil<3, 1, true>(near, from, weights, branch.tap_stride);
            else if (branch.kernel == 5 && branch.dilation == 1) stencil<5, 1, true>(near, from, weights, branch.tap_stride);
            else if (branch.kernel == 3) stencil<3, 2, true>(far, from, weights, branch.tap_stride);
            else stencil<5, 2, true>(far, from, weights, branch.tap_stride);
        }
        __syncthreads();
    }
    float* to = region + by_one.tile * PIXELS * PIXEL + by_one.channel;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        if (owns) to[pixel_of(by_one, 1, i / 4, i % 4) * PIXEL] = near[i / 4][i % 4];
    }
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        if (owns) to[pixel_of(by_two, 2, i / 4, i % 4) * PIXEL] += far[i / 4][i % 4];
    }
    __syncthreads();
}

// Gradient of the input, over all branches that read it, for a chunk of its pixels.
__device__ inline void input_gradient(const SeparableGradient* jobs, const Pages& pages, unsigned index, float* memory) {
    const SeparableGradient& j = jobs[0];
    Kept& kept = *reinterpret_cast<Kept*>(memory + REGION);
    const unsigned t = anew(threadIdx.x);
    const unsigned chunk = index / j.groups;
    const Lane lane = lane_of(j.channels, j.lanes, index % j.groups);
    kept.norms[t] = norm_of(j, pages, lane.channel, lane.valid);
    kept.left[t] = kept.right[t] = quad(0.0f);
    if (j.flags & TILED) {
        for (unsigned now = chunk * j.chunk_regions; now < min((chunk + 1) * j.chunk_regions, j.regions); now++) {
            const Corner corner = corner_of(j, now);
            gather_tiles(jobs, pages, memory, corner, 4 * (index % j.groups * j.lanes));
            for (unsigned pixel = lane.row; pixel < j.tiles * PIXELS && lane.used; pixel += lane.rows) {
                const unsigned line = corner.line + line_of(pixel % PIXELS);
                const unsigned column = corner.column + pixel / PIXELS * SIDE + column_of(pixel % PIXELS);
                if (line >= j.x_h || column >= j.x_w) continue;
                const float4 g = *reinterpret_cast<const float4*>(memory + pixel * PIXEL + 4 * (t % j.lanes));
                put_input(j, pages, (corner.image * j.x_h + line) * j.x_w + column, lane, g, kept);
            }
            __syncthreads();
        }
    } else {
        const unsigned end = min((chunk + 1) * j.chunk_rows, j.x_rows);
        for (unsigned row = chunk * j.chunk_rows + lane.row; row < end && lane.used; row += lane.rows) {
            asm volatile("" ::: "memory");
            float4 g = quad(0.0f);
            for (unsigned b = 0; b < j.branches; b++) g = g + taps_at(jobs[b], pages, row, lane.channel, lane.valid);
            put_input(j, pages, row, lane, g, kept);
        }
    }
    if (!(j.flags & SUMS)) return;

    const RowSums own = add_rows({kept.left[t], kept.right[t]}, lane, j.lanes, kept.left, kept.right);
    if (lane.row == 0 && lane.used) {
        float* partial = at(pages, j.partial) + 2 * chunk * padded(j.channels) + lane.channel;
        store4(partial, own.s1, 4);
        store4(partial + padded(j.channels), own.s2, 4);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 3)
separable_backward_gradients(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const SeparableGradient* table) {
    after_others();
    __shared__ float4 memory[MEMORY / 4];
    float* shared = reinterpret_cast<float*>(memory);
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned job = job_of(table, p.jobs, block), kind = table[job].kind;
    // Nothing is computed for one kind of job because another needs it too.
    const unsigned index = block - table[job].first_block;
    if (kind == POINTWISE) return pointwise_gradient(table[anew(job)], pages, anew(index), shared);
    if (kind == INPUT) return input_gradient(table + anew(job), pages, anew(index), shared);
    if (!(table[job].flags & TILED)) return taps_over_rows(table[anew(job)], pages, anew(index), memory);
    taps_over_tiles(table[anew(job)], pages, anew(index), shared);
}
