// What the files of separable convolutions share: the stencils of depthwise convolutions over tiles in shared memory, and
// products of such tiles with matrices.
//
// A tile has 8 lines by 8 columns of pixels. Threads own pixels of one channel, so that a line of a stencil's input is read once
// for all its taps; a region of shared memory holds what the tiles of a block reach, after the activation, zero beyond the image.
// Templates take the record of a job: both have the fields that are used here.
#pragma once
#include "common.cuh"

constexpr unsigned NORM = 1;
constexpr unsigned AFFINE = 2;

constexpr unsigned PIXELS = 64;
constexpr unsigned SIDE = 8;
// Pixels of a tile that a thread multiplies.
constexpr unsigned ROWS = 4;
// Quads of input channels that are in shared memory at once.
constexpr unsigned STEP = 4;
constexpr unsigned CHANNELS = 4 * STEP;

// Pixels of a tile are numbered so that what threads of a warp write to shared memory at once meets no bank twice.
__device__ inline unsigned line_of(unsigned pixel) { return pixel / 4 % 2 * 4 + pixel / 16; }
__device__ inline unsigned column_of(unsigned pixel) { return pixel / 8 % 2 * 4 + pixel % 4; }

// h = scale x + shift, for a quad of channels.
struct Norm {
    float4 scale, shift;
};

template <class Job>
__device__ inline Norm norm_of(const Job& j, const Pages& pages, unsigned channel, unsigned valid) {
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
    return rectified(n.scale * x + n.shift);
}

__device__ inline unsigned valid_of(unsigned channel, unsigned channels) {
    return channel < channels ? min(4u, channels - channel) : 0;
}

// The depthwise result at one output pixel, for kernels without a stencil below. Coordinates before the image wrap to large
// numbers.
template <class Job>
__device__ inline float4 depthwise(const Job& j, const Pages& pages, unsigned image, unsigned line, unsigned column, unsigned channel,
                                   unsigned valid) {
    const Norm n = norm_of(j, pages, channel, valid);
    const unsigned top = line * j.stride - j.pad;
    const unsigned left = column * j.stride - j.pad;
    const Map x = map_at(pages, j.x) + image * j.x_h * j.x_w * j.x_stride + channel;
    const float* weights = at(pages, j.depthwise) + channel;

    float4 sum = quad(0.0f);
    const unsigned reach = j.kernel * j.dilation;
    for (unsigned iy = top; iy != top + reach; iy += j.dilation) {
#pragma unroll 1
        for (unsigned ix = left; ix != left + reach; ix += j.dilation) {
            if (iy < j.x_h && ix < j.x_w) {
                float4 v = load4(x + (iy * j.x_w + ix) * j.x_stride, valid);
                settle(v);
                sum = sum + load4(weights, valid) * relu(n, v);
            }
            weights += j.tap_stride;
        }
    }
    return sum;
}

// Output pixels that a block computes at once: `tiles` tiles side by side, from this one on.
struct Corner {
    unsigned image, line, column;
};

template <class Job>
__device__ inline Corner corner_of(const Job& j, unsigned region) {
    const unsigned image = region / (j.across * j.down), place = region % (j.across * j.down);
    return {image, place / j.across * SIDE, place % j.across * j.tiles * SIDE};
}

// A region: two tiles and four pixels around them, 16 channels a pixel. Lines four apart begin at the other half of the banks.
constexpr unsigned REACH = 4;
constexpr unsigned LINE = (2 * SIDE + 2 * REACH) * CHANNELS + 4;
constexpr unsigned REGION = (SIDE + 2 * REACH) * LINE;

// Where a region keeps a pixel, counted from its first tile.
__device__ inline float* region_at(float* region, unsigned line, unsigned column) {
    return region + (REACH + line) * LINE + (REACH + column) * CHANNELS;
}

// Fills a region with `step` quads of channels, as far as taps reach beyond `tiles` tiles: `pixel` gives a quad at a place of the
// image and is asked for places within it only.
template <class Pixel>
__device__ inline void load_region(float* region, const Corner& corner, unsigned height, unsigned width, unsigned tiles,
                                   unsigned reach, unsigned step, Pixel pixel) {
    const unsigned across = tiles * SIDE + 2 * reach, count = (SIDE + 2 * reach) * across;
    const unsigned t = anew(threadIdx.x), q = t % step;
    float* first = region_at(region, 0, 0) - reach * (LINE + CHANNELS) + 4 * q;
    if (t >= BLOCK / step * step) return;
#pragma unroll 4
    for (unsigned place = t / step; place < count; place += BLOCK / step) {
        const unsigned down = place / across, right = place % across;
        const unsigned line = corner.line + down - reach, column = corner.column + right - reach;
        const float4 v = line < height && column < width ? pixel(line, column, q) : quad(0.0f);
        *reinterpret_cast<float4*>(first + down * LINE + right * CHANNELS) = v;
    }
}

// The same with the activation of a job's map.
template <class Job>
__device__ inline void load_map(const Job& j, const Pages& pages, float* region, const Corner& corner, unsigned base, unsigned reach,
                                unsigned step) {
    const unsigned channel = base + 4 * (anew(threadIdx.x) % step), valid = valid_of(channel, j.channels);
    const Norm n = norm_of(j, pages, channel, valid);
    const Map x = map_at(pages, j.x) + corner.image * j.x_h * j.x_w * j.x_stride + channel;
    const auto pixel = [&](unsigned line, unsigned column, unsigned) {
        return relu(n, load4(x + (line * j.x_w + column) * j.x_stride, valid));
    };
    load_region(region, corner, j.x_h, j.x_w, j.tiles, reach, step, pixel);
}

// What a thread computes of a region: a channel of eight pixels of a tile, two lines by four columns, neighbours under
// the stencil's dilation.
struct Patch {
    unsigned channel;  // among those of the region
    unsigned tile;
    unsigned line, column;
};

__device__ inline Patch patch_of(unsigned dilation) {
    const unsigned t = anew(threadIdx.x), line = t / 32 % 2, column = t / 64 % 2;
    // Next to each other, or every other one.
    const unsigned lines = dilation == 1 ? 2 : 1, columns = dilation == 1 ? 4 : 1;
    return {t % CHANNELS, t / 128, t / CHANNELS % 2 * 4 + line * lines, column * columns};
}

// The number of pixel (line, column) of a patch.
__device__ inline unsigned pixel_of(const Patch& patch, unsigned dilation, unsigned line, unsigned column) {
    const unsigned y = patch.line + line * dilation, x = patch.column + column * dilation;
    return y % 4 * 16 + x / 4 * 8 + y / 4 * 4 + x % 4;
}

// Threads that compute a tile.
constexpr unsigned TILE_THREADS = 128;

// sum += the stencil over a region in whose pixel (0, 0) of the patch `from` points. `weights` are those of the channel, a tap
// after the other in `tap_stride` steps, or with REVERSE from the last to the first.
template <unsigned KERNEL, unsigned DILATION, bool REVERSE>
__device__ inline void stencil(float (&sum)[2][4], const float* from, const float* weights, unsigned tap_stride) {
    constexpr unsigned reach = (KERNEL - 1) / 2 * DILATION;
    from -= reach * (LINE + CHANNELS);
    float above[KERNEL];
#pragma unroll
    for (unsigned line = 0; line <= KERNEL; line++) {
        float x[KERNEL + 3], w[KERNEL];
#pragma unroll
        for (unsigned i = 0; i < KERNEL + 3; i++) x[i] = from[line * DILATION * LINE + i * DILATION * CHANNELS];
        if (line > 0) {
#pragma unroll
            for (unsigned i = 0; i < KERNEL; i++) {
#pragma unroll
                for (unsigned c = 0; c < 4; c++) sum[1][c] += above[i] * x[i + c];
            }
        }
        if (line < KERNEL) {
#pragma unroll
            for (unsigned i = 0; i < KERNEL; i++) {
                const unsigned tap = line * KERNEL + i;
                w[i] = weights[(REVERSE ? KERNEL * KERNEL - 1 - tap : tap) * tap_stride];
#pragma unroll
                for (unsigned c = 0; c < 4; c++) sum[0][c] += w[i] * x[i + c];
                above[i] = w[i];
            }
        }
    }
}

// The same for the kernel of a job that has one of these stencils.
template <bool REVERSE>
__device__ inline void any_stencil(unsigned kernel, unsigned dilation, float (&sum)[2][4], const float* from, const float* weights,
                                   unsigned tap_stride) {
    if (kernel == 3 && dilation == 1) stencil<3, 1, REVERSE>(sum, from, weights, tap_stride);
    else if (kernel == 5 && dilation == 1) stencil<5, 1, REVERSE>(sum, from, weights, tap_stride);
    else if (kernel == 3) stencil<3, 2, REVERSE>(sum, from, weights, tap_stride);
    else stencil<5, 2, REVERSE>(sum, from, weights, tap_stride);
}

// Products of tiles, 64 pixels by `step` quads of channels each, with a matrix of as many rows and `lanes` quads of columns;
// `tile_lane` says what a thread owns.
#if TENSOR
constexpr unsigned TILE = CHANNELS / 2 * TILE_LEFT;
__device__ constexpr unsigned matrix_of(unsigned columns) { return CHANNELS / 2 * (8 * columns + 8); }

// Tensor cores multiply whole groups of eight channels.
__device__ inline unsigned whole_step(unsigned step) { return (step + 1) / 2 * 2; }

__device__ inline void put_pixel(float* tile, unsigned quad, unsigned pixel, float4 v) { put_row(tile, TILE_LEFT, 4 * quad, pixel, v); }

__device__ inline void put_value(float* tile, unsigned channel, unsigned pixel, float v) {
    tile[channel / 2 * TILE_LEFT + channel % 2 * 2 + pixel / 4 * 4 + pixel / 2 % 2 * half_of(TILE_LEFT) + pixel % 2] = factor(v);
}

__device__ inline void put_weights(float* matrix, unsigned lanes, unsigned channel, unsigned quad, float4 v) {
    put_columns(matrix, tile_right(lanes), channel, 4 * quad, v);
}

__device__ inline void multiply(float4 (&sum)[ROWS], const float* tile, const float* matrix, unsigned lanes, unsigned step,
                                unsigned tiles = 1) {
    tile_product(sum, tile, matrix, lanes, step, tiles, TILE);
}
#else
// A quad of channels after the other, each with room so that quads lie at different banks.
constexpr unsigned QUAD = 4 * (PIXELS + 1);
constexpr unsigned TILE = STEP * QUAD;
__device__ constexpr unsigned matrix_of(unsigned columns) { return CHANNELS * 4 * columns; }

__device__ inline unsigned whole_step(unsigned step) { return step; }

__device__ inline void put_pixel(float* tile, unsigned quad, unsigned pixel, float4 v) {
    *reinterpret_cast<float4*>(tile + quad * QUAD + 4 * pixel) = v;
}

__device__ inline void put_value(float* tile, unsigned channel, unsigned pixel, float v) {
    tile[channel / 4 * QUAD + 4 * pixel + channel % 4] = v;
}

__device__ inline void put_weights(float* matrix, unsigned lanes, unsigned channel, unsigned quad, float4 v) {
    *reinterpret_cast<float4*>(matrix + 4 * (channel * lanes + quad)) = v;
}

__device__ inline void multiply(float4 (&sum)[ROWS], const float* tile, const float* matrix, unsigned lanes, unsigned step,
                                unsigned tiles = 1) {
    const unsigned t = anew(threadIdx.x), pair = t / 64, across = (lanes + 3) / 4;
    const unsigned place = pair / across, column = pair % across * 4 + t % 4;
    if (place >= tiles || column >= lanes) return;
    const float4* d = reinterpret_cast<const float4*>(tile + place * TILE) + ROWS * (t / 4 % 16);
    const float4* w = reinterpret_cast<const float4*>(matrix) + column;
#pragma unroll 1
    for (unsigned q = 0; q < step; q++) {
        const float4 w0 = w[0], w1 = w[lanes], w2 = w[2 * lanes], w3 = w[3 * lanes];
#pragma unroll
        for (unsigned k = 0; k < ROWS; k++) sum[k] = sum[k] + d[k].x * w0 + d[k].y * w1 + d[k].z * w2 + d[k].w * w3;
        d += QUAD / 4;
        w += 4 * lanes;
    }
}
#endif
