// Max and average pooling, with the moments of both, and their gradient (src/ops/launch/pool.rs). Both kernels also do folds
// that are due at the same time: of moments in the forward, of sums that become coefficients in the backward.
#include "common.cuh"

struct PoolJob {
    unsigned first_block;
    unsigned blocks;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned chunk_rows;
    unsigned flags;
    unsigned x_height;
    unsigned x_width;
    unsigned y_height;
    unsigned y_width;
    unsigned kernel;
    unsigned stride;
    unsigned pad;
    unsigned x_stride;
    unsigned max_stride;
    unsigned average_stride;
    unsigned chunks;
    unsigned unused;
    Spot x;
    Spot max;
    Spot average;
    Spot max_partial;
    Spot average_partial;
    Spot partial;
    Spot mean;
    Spot variance;
};

struct PoolTerm {
    unsigned first_block;
    unsigned blocks;
    unsigned terms;
    unsigned flags;
    unsigned rows;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned x_height;
    unsigned x_width;
    unsigned y_height;
    unsigned y_width;
    unsigned kernel;
    unsigned stride;
    unsigned pad;
    unsigned x_stride;
    unsigned dx_stride;
    unsigned y_stride;
    unsigned g_stride;
    unsigned coef_stride;
    unsigned chunks;
    float eps;
    unsigned unused_0;
    unsigned unused_1;
    Spot x;
    Spot dx;
    Spot y;
    Spot g;
    Spot coef;
    Spot mask;
    Spot mean;
    Spot variance;
    Spot gamma;
    Spot partial;
    Spot dgamma;
    Spot dbeta;
};

constexpr unsigned MAX = 1;
constexpr unsigned AVERAGE = 2;
constexpr unsigned MOMENTS = 4;
constexpr unsigned MAX_ADD = 8;
constexpr unsigned AVERAGE_ADD = 16;
constexpr unsigned COEF = 32;
constexpr unsigned MASK = 64;
constexpr unsigned ACCUMULATE = 128;
constexpr unsigned FOLD = 256;
constexpr unsigned AFFINE = 512;
constexpr unsigned DGAMMA_ADD = 1024;
constexpr unsigned DBETA_ADD = 2048;

__device__ inline bool has(unsigned flags, unsigned flag) { return (flags & flag) != 0; }

// The part of a window that lies within the image, along one axis.
struct Stretch {
    unsigned first, end;
};

__device__ inline Stretch window_of(unsigned out, unsigned kernel, unsigned stride, unsigned pad, unsigned side) {
    const unsigned start = out * stride;
    return {start > pad ? start - pad : 0, min(start + kernel - pad, side)};
}

// The windows that hold a pixel, along one axis.
__device__ inline Stretch windows_of(unsigned at, unsigned kernel, unsigned stride, unsigned pad, unsigned windows) {
    const unsigned last = at + pad;
    return {last >= kernel ? (last - kernel) / stride + 1 : 0, min(last / stride + 1, windows)};
}

__device__ inline float4 larger(float4 a, float4 b) {
    return make_float4(b.x > a.x ? b.x : a.x, b.y > a.y ? b.y : a.y, b.z > a.z ? b.z : a.z, b.w > a.w ? b.w : a.w);
}

// Merges moments of chunks to mean and variance.
__device__ inline void fold_moments(const PoolJob& j, const Pages& pages, unsigned block) {
    const Lane lane = lane_of(j.channels, j.lanes, block - j.first_block);
    const unsigned stride = moments_stride(j.channels);
    Moments own = none();
    for (unsigned chunk = lane.row; lane.used && chunk < j.chunks; chunk += lane.rows) {
        const float* partial = at(pages, j.partial) + chunk * stride;
        const float* mean = partial + lane.channel;
        own = merge(own, {partial[2 * padded(j.channels)], load4(mean, 4), load4(mean + padded(j.channels), 4)});
    }
    own = merge_rows(own, lane, j.lanes);
    if (lane.row == 0 && lane.used) {
        store4(at(pages, j.mean) + lane.channel, own.mean, lane.valid);
        store4(at(pages, j.variance) + lane.channel, (1.0f / own.count) * own.m2, lane.valid);
    }
}

// Pixels of a window that are under way at once: more would not leave enough registers.
constexpr unsigned UNROLL = WIDE && !HALVES ? 2 : 1;

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
pool_forward(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const PoolJob* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const PoolJob& j = table[job_of(table, p.jobs, block)];
    if (has(j.flags, FOLD)) return fold_moments(j, pages, block);
    const unsigned chunk = (block - j.first_block) / j.groups;
    const Lane lane = lane_of(j.channels, j.lanes, (block - j.first_block) % j.groups);
    const float* map = at(pages, j.x) + lane.channel;
    const unsigned first = chunk * j.chunk_rows;
    const unsigned end = min(first + j.chunk_rows, j.rows);

    Moments of_max = none(), of_average = none();
    for (unsigned row = first + lane.row; lane.used && row < end; row += lane.rows) {
        const unsigned line = row / j.y_width, image = line / j.y_height;
        const Stretch ys = window_of(line - image * j.y_height, j.kernel, j.stride, j.pad, j.x_height);
        const Stretch xs = window_of(row - line * j.y_width, j.kernel, j.stride, j.pad, j.x_width);
        float4 most = load4(map + ((image * j.x_height + ys.first) * j.x_width + xs.first) * j.x_stride, lane.valid);
        float4 sum = quad(0.0f);
        for (unsigned y = ys.first; y < ys.end; y++) {
            const float* pixel = map + ((image * j.x_height + y) * j.x_width + xs.first) * j.x_stride;
#pragma unroll UNROLL
            for (unsigned x = xs.first; x < xs.end; x++, pixel += j.x_stride) {
                const float4 v = load4(pixel, lane.valid);
                most = larger(most, v);
                sum = sum + v;
            }
        }
        if (has(j.flags, MAX)) {
            const Map out = map_at(pages, j.max) + row * j.max_stride + lane.channel;
            if (has(j.flags, MAX_ADD)) most = load4(out, lane.valid) + most;
            store4(out, most, lane.valid);
            if (has(j.flags, MOMENTS)) of_max = merge(of_max, {1.0f, most, quad(0.0f)});
        }
        if (has(j.flags, AVERAGE)) {
            const Map out = map_at(pages, j.average) + row * j.average_stride + lane.channel;
            float4 average = (1.0f / float((ys.end - ys.first) * (xs.end - xs.first))) * sum;
            if (has(j.flags, AVERAGE_ADD)) average = load4(out, lane.valid) + average;
            store4(out, average, lane.valid);
            if (has(j.flags, MOMENTS)) of_average = merge(of_average, {1.0f, average, quad(0.0f)});
        }
    }

    if (!has(j.flags, MOMENTS)) return;
    const unsigned at_chunk = chunk * moments_stride(j.channels);
    if (has(j.flags, MAX)) {
        of_max = merge_rows(of_max, lane, j.lanes);
        if (lane.row == 0 && lane.used) {
            store_moments(at(pages, j.max_partial) + at_chunk, of_max, j.channels, lane.channel);
        }
    }
    if (has(j.flags, AVERAGE)) {
        of_average = merge_rows(of_average, lane, j.lanes);
        if (lane.row == 0 && lane.used) {
            store_moments(at(pages, j.average_partial) + at_chunk, of_average, j.channels, lane.channel);
        }
    }
}

// Which windows, a bit each, a pixel wins for each of four channels.
struct Wins {
    unsigned x, y, z, w;
};

// A neighbour beats a pixel if it is larger, or as large and before it in row order.
__device__ inline bool beats(float other, float own, bool before) { return other > own || (before && other == own); }

// The windows in a rectangle, counted row by row of the pixel's `columns` windows, first of which is `first`.
__device__ inline unsigned bits_of(Stretch ys, Stretch xs, unsigned first_y, unsigned first_x, unsigned columns) {
    unsigned bits = 0;
    for (unsigned y = ys.first; y < ys.end; y++) {
        bits |= ((1u << (xs.end - xs.first)) - 1) << ((y - first_y) * columns + xs.first - first_x);
    }
    return bits;
}

__device__ inline Stretch both(Stretch a, Stretch b) { return {max(a.first, b.first), min(a.end, b.end)}; }

// Every other pixel of the windows takes from the pixel those windows that hold both, where it beats it.
__device__ inline Wins wins_of(const float* map, const PoolTerm& j, unsigned image, unsigned y, unsigned x, Stretch ys,
                               Stretch xs, unsigned valid) {
    const unsigned columns = xs.end - xs.first;
    const unsigned all = bits_of(ys, xs, ys.first, xs.first, columns);
    Wins wins = {all, all, all, all};
    const float4 own = load4(map + ((image * j.x_height + y) * j.x_width + x) * j.x_stride, valid);
    const unsigned top = window_of(ys.first, j.kernel, j.stride, j.pad, j.x_height).first;
    const unsigned bottom = window_of(ys.end - 1, j.kernel, j.stride, j.pad, j.x_height).end;
    const unsigned left = window_of(xs.first, j.kernel, j.stride, j.pad, j.x_width).first;
    const unsigned right = window_of(xs.end - 1, j.kernel, j.stride, j.pad, j.x_width).end;
    for (unsigned v = top; v < bottom; v++) {
        const Stretch rows = both(ys, windows_of(v, j.kernel, j.stride, j.pad, j.y_height));
        for (unsigned u = left; u < right; u++) {
            const Stretch cols = both(xs, windows_of(u, j.kernel, j.stride, j.pad, j.y_width));
            if (rows.first >= rows.end || cols.first >= cols.end || (v == y && u == x)) continue;
            const bool before = v < y || (v == y && u < x);
            const unsigned shared = bits_of(rows, cols, ys.first, xs.first, columns);
            const float4 other = load4(map + ((image * j.x_height + v) * j.x_width + u) * j.x_stride, valid);
            if (beats(other.x, own.x, before)) wins.x &= ~shared;
            if (beats(other.y, own.y, before)) wins.y &= ~shared;
            if (beats(other.z, own.z, before)) wins.z &= ~shared;
            if (beats(other.w, own.w, before)) wins.w &= ~shared;
        }
    }
    return wins;
}

// Coefficients a, b, d with dL/dx = a g + b x + d, and gradients of gamma and beta, from sums of g and of g (x - mean).
__device__ inline void fold_coefficients(const PoolTerm& j, const Pages& pages, const Lane& lane) {
    __shared__ float4 left[BLOCK];
    __shared__ float4 right[BLOCK];
    RowSums own = {quad(0.0f), quad(0.0f)};
#pragma unroll 1
    for (unsigned chunk = lane.row; lane.used && chunk < j.chunks; chunk += lane.rows) {
        const float* partial = at(pages, j.partial) + 2 * chunk * padded(j.channels) + lane.channel;
        own.s1 = own.s1 + load4(partial, 4);
        own.s2 = own.s2 + load4(partial + padded(j.channels), 4);
    }
    own = add_rows(own, lane, j.lanes, left, right);
    if (lane.row > 0 || !lane.used) return;

    const float4 inv = inverse_deviation(load4(at(pages, j.variance) + lane.channel, lane.valid), j.eps);
    const float share = 1.0f / float(j.rows);
    own.s2 = own.s2 * inv;
    float4 a = inv;
    if (has(j.flags, AFFINE)) {
        a = load4(at(pages, j.gamma) + lane.channel, lane.valid) * inv;
        put4(at(pages, j.dgamma) + lane.channel, own.s2, lane.valid, has(j.flags, DGAMMA_ADD));
        put4(at(pages, j.dbeta) + lane.channel, own.s1, lane.valid, has(j.flags, DBETA_ADD));
    }
    const float4 b = -share * (a * inv * own.s2);
    const float4 d = -share * (a * own.s1) - b * load4(at(pages, j.mean) + lane.channel, lane.valid);
    float* coef = at(pages, j.coef) + lane.channel;
    const bool add = has(j.flags, ACCUMULATE);
    put4(coef, a, lane.valid, add);
    put4(coef + j.coef_stride, b, lane.valid, add);
    put4(coef + 2 * j.coef_stride, d, lane.valid, add);
}

// A thread gathers the gradient of a quad of one pixel: of the windows that it wins, the shares of those that hold it, and
// what comes to the pixel directly.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
pool_backward(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const PoolTerm* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const unsigned index = job_of(table, p.jobs, block);
    const PoolTerm& j = table[index];
    const Lane lane = lane_of(j.channels, j.lanes, (block - j.first_block) % j.groups);
    if (has(j.flags, FOLD)) return fold_coefficients(j, pages, lane);
    const unsigned row = (block - j.first_block) / j.groups * lane.rows + lane.row;
    if (!lane.used || row >= j.rows) return;
    const unsigned line = row / j.x_width, image = line / j.x_height;
    const unsigned y = line - image * j.x_height, x = row - line * j.x_width;
    const Stretch ys = windows_of(y, j.kernel, j.stride, j.pad, j.y_height);
    const Stretch xs = windows_of(x, j.kernel, j.stride, j.pad, j.y_width);
    const bool covered = ys.first < ys.end && xs.first < xs.end;
    Wins wins = {0, 0, 0, 0};
    if (covered && has(j.flags, MAX)) wins = wins_of(at(pages, j.x) + lane.channel, j, image, y, x, ys, xs, lane.valid);

    float4 dx = quad(0.0f);
    for (unsigned term = 0; term < j.terms; term++) {
        const PoolTerm& t = table[index + term];
        const bool affine = has(t.flags, COEF), most = has(t.flags, MAX), average = has(t.flags, AVERAGE);
        float4 a = quad(has(t.flags, MASK) ? at(pages, t.mask)[image] : 1.0f), b = quad(0.0f), d = quad(0.0f);
        if (affine) {
            const float* coef = at(pages, t.coef) + lane.channel;
            a = a * load4(coef, lane.valid);
            b = load4(coef + t.coef_stride, lane.valid);
            d = load4(coef + 2 * t.coef_stride, lane.valid);
        }
        if (!most && !average) {
            dx = dx + a * load4(at(pages, t.g) + lane.channel + row * t.g_stride, lane.valid) + d;
            if (affine) dx = dx + b * load4(map_at(pages, t.y) + lane.channel + row * t.y_stride, lane.valid);
            continue;
        }
        unsigned bit = 1;
        for (unsigned v = ys.first; covered && v < ys.end; v++) {
            for (unsigned u = xs.first; u < xs.end; u++, bit <<= 1) {
                const unsigned out = (image * j.y_height + v) * j.y_width + u;
                if (most && ((wins.x | wins.y | wins.z | wins.w) & bit) == 0) continue;
                float4 dy = a * load4(at(pages, t.g) + lane.channel + out * t.g_stride, lane.valid) + d;
                if (affine) dy = dy + b * load4(map_at(pages, t.y) + lane.channel + out * t.y_stride, lane.valid);
                if (most) {
                    dy = make_float4(wins.x & bit ? dy.x : 0.0f, wins.y & bit ? dy.y : 0.0f, wins.z & bit ? dy.z : 0.0f,
                                     wins.w & bit ? dy.w : 0.0f);
                } else {
                    const Stretch height = window_of(v, j.kernel, j.stride, j.pad, j.x_height);
                    const Stretch width = window_of(u, j.kernel, j.stride, j.pad, j.x_width);
                    dy = (1.0f / float((height.end - height.first) * (width.end - width.first))) * dy;
                }
                dx = dx + dy;
            }
        }
    }
    put4(at(pages, j.dx) + row * j.dx_stride + lane.channel, dx, lane.valid, has(j.flags, ACCUMULATE));
}
