// What all kernels share. No other header is needed: NVRTC alone has neither <stdint.h> nor <cuda_fp16.h>.
//
// Every kernel has the signature (parameter record, pages, table of records); src/ops/launch.rs defines the contract. The
// device compiles each file with -DBLOCK=<threads of a block> and, once for each kind of launch, with -DWIDE=1 (every
// group of four channels is aligned to 16 bytes and whole) or -DWIDE=0 (nothing of the kind), and with -DHALVES=1 (some
// tensors are stored in halves) or -DHALVES=0; and files that multiply matrices with -DTENSOR=1 (on tensor cores, their factors
// rounded to tf32) or -DTENSOR=0.
#pragma once

// Older devices have no tensor cores for tf32.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#undef TENSOR
#define TENSOR 0
#endif

// Begins every kernel, in all of its threads. From compute capability 9.0 on, a launch may be brought up while the one before
// it still runs (src/device/cuda/graph.rs says why that is sound): the next may come once all blocks of this one are here, and
// none goes on before the launch before has ended and what it wrote can be seen.
__device__ inline void after_others() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
}

// The pages that a launch binds.
struct Pages {
    float* page[8];
};

// A tensor in a record: index into Pages, first element. The index has the bit HALF if the tensor is a Map stored in halves:
// as bf16, two elements a word, in whole quads.
struct __align__(8) Spot {
    unsigned page, at;
};

// Stands for the table of kernels that take none.
struct NoTable {};

// Parameters of kernels whose table holds jobs (src/ops/launch/jobs.rs).
struct JobsParams {
    unsigned blocks;
    unsigned jobs;
    unsigned unused_0;
    unsigned unused_1;
};

// The job of a block: the last record whose first block is not beyond it.
template <typename Job>
__device__ inline unsigned job_of(const Job* table, unsigned jobs, unsigned block) {
    unsigned low = 0;
    for (unsigned high = jobs; high - low > 1;) {
        const unsigned middle = (low + high) / 2;
        if (table[middle].first_block <= block) low = middle;
        else high = middle;
    }
    return low;
}

__device__ inline float* at(const Pages& pages, Spot spot) { return pages.page[spot.page] + spot.at; }

// Four neighbouring channels, the unit in which threads own maps.
__device__ inline float4 quad(float v) { return make_float4(v, v, v, v); }
__device__ inline float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ inline float4 operator-(float4 a, float4 b) { return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w); }
__device__ inline float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ inline float4 operator*(float a, float4 b) { return quad(a) * b; }

// max(0, v) that lets NaN through, as CUDA's max would not: a map that has overflowed would look sound.
__device__ inline float rectified(float v) { return v < 0.0f ? 0.0f : v; }
__device__ inline float4 rectified(float4 v) { return make_float4(rectified(v.x), rectified(v.y), rectified(v.z), rectified(v.w)); }

// 1 / sqrt(v + eps), correctly rounded in each step.
__device__ inline float4 inverse_deviation(float4 v, float eps) {
    return make_float4(1.0f / sqrtf(v.x + eps), 1.0f / sqrtf(v.y + eps), 1.0f / sqrtf(v.z + eps), 1.0f / sqrtf(v.w + eps));
}

// Has the compiler compute a quad before anything else begins, where there would not be enough registers for both.
__device__ inline void settle(float4& v) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w));
#endif
}

// A number that the compiler cannot know: what depends on it is computed anew and takes no register up to there.
__device__ inline unsigned anew(unsigned v) {
    asm volatile("" : "+r"(v));
    return v;
}

// The first `valid` of four channels; zero for the others.
__device__ inline float4 load4(const float* p, unsigned valid) {
#if WIDE
    return valid ? *reinterpret_cast<const float4*>(p) : quad(0.0f);
#else
    return make_float4(valid > 0 ? p[0] : 0.0f, valid > 1 ? p[1] : 0.0f, valid > 2 ? p[2] : 0.0f, valid > 3 ? p[3] : 0.0f);
#endif
}

__device__ inline void store4(float* p, float4 v, unsigned valid) {
#if WIDE
    if (valid) *reinterpret_cast<float4*>(p) = v;
#else
    if (valid > 0) p[0] = v.x;
    if (valid > 1) p[1] = v.y;
    if (valid > 2) p[2] = v.z;
    if (valid > 3) p[3] = v.w;
#endif
}

// A map that may be stored in halves, by the bit HALF of its spot: what convolutions and pools write for a normalisation
// (src/device/precision.rs). All else is reached by pointers.
#if HALVES
struct Map {
    const Pages& pages;
    Spot spot;
};

constexpr unsigned HALF = 0x10000u;

__device__ inline Map map_at(const Pages& pages, Spot spot) { return {pages, spot}; }
__device__ inline Map operator+(Map map, unsigned elements) { return {map.pages, {map.spot.page, map.spot.at + elements}}; }

__device__ inline bool in_halves(Map map) { return (map.spot.page & HALF) != 0; }

__device__ inline float* whole_at(Map map) { return map.pages.page[map.spot.page] + map.spot.at; }

// Two words that hold a quad.
__device__ inline uint2* halves_at(Map map) {
    return reinterpret_cast<uint2*>(map.pages.page[map.spot.page ^ HALF] + map.spot.at / 2);
}

__device__ inline float4 load4(Map map, unsigned valid) {
    float4 v;
    if (in_halves(map)) {
        const uint2 w = valid ? *halves_at(map) : make_uint2(0, 0);
        v = make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u), __uint_as_float(w.y << 16),
                        __uint_as_float(w.y & 0xffff0000u));
    } else {
        v = load4(whole_at(map), valid);
    }
    // Both ways end here.
    settle(v);
    return v;
}

// A number rounded to the nearest bf16, ties to even, in the high half of a word. NaN stays NaN.
__device__ inline unsigned rounded(float v) {
    const unsigned bits = __float_as_uint(v);
    return (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : bits + 0x7fffu + (bits >> 16 & 1u);
}

// Two numbers as a word.
__device__ inline unsigned word_of(float low, float high) { return rounded(low) >> 16 | (rounded(high) & 0xffff0000u); }

__device__ inline void store4(Map map, float4 v, unsigned valid) {
    if (!in_halves(map)) {
        store4(whole_at(map), v, valid);
    } else if (valid) {
        *halves_at(map) = make_uint2(word_of(v.x, v.y), word_of(v.z, v.w));
    }
}
#else
using Map = float*;

__device__ inline Map map_at(const Pages& pages, Spot spot) { return at(pages, spot); }
#endif

// Writes, or adds to what is there.
__device__ inline void put4(float* p, float4 v, unsigned valid, bool accumulate) {
    store4(p, accumulate ? load4(p, valid) + v : v, valid);
}

// The block's number, whatever shape its grid was folded into. Blocks beyond a record's `blocks` return at once.
__device__ inline unsigned block_index() { return blockIdx.x + blockIdx.y * gridDim.x; }

// A thread's place in a map: a quad of channels, and one of the rows that the block covers at once (struct Lanes in Rust).
struct Lane {
    unsigned channel;  // first of its channels
    unsigned valid;    // how many of the four exist
    unsigned row;      // among the rows that the block covers at once
    unsigned rows;     // how many those are
    bool used;         // threads that are left over take part in barriers only
};

__device__ inline Lane lane_of(unsigned channels, unsigned lanes, unsigned group) {
    Lane lane;
    lane.rows = BLOCK / lanes;
    lane.row = threadIdx.x / lanes;
    lane.channel = 4 * (group * lanes + threadIdx.x % lanes);
    lane.valid = lane.channel < channels ? min(4u, channels - lane.channel) : 0;
    lane.used = lane.row < lane.rows && lane.valid > 0;
    return lane;
}

// Channels rounded up to whole quads: the stride of partial sums in scratch.
__device__ inline unsigned padded(unsigned channels) { return (channels + 3) / 4 * 4; }

// Sum over all threads of the block, in a fixed order; every thread gets it.
__device__ inline float block_sum(float v) {
    __shared__ float warps[BLOCK / 32];
    for (unsigned distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned w = 0; w < BLOCK / 32; w++) sum += warps[w];
    __syncthreads();
    return sum;
}

// Number of values, their mean, and the sum of their squared deviations from it.
struct Moments {
    float count;
    float4 mean;
    float4 m2;
};

__device__ inline Moments none() { return {0.0f, quad(0.0f), quad(0.0f)}; }

// Merges centred moments (Chan, Golub & LeVeque 1979).
__device__ inline Moments merge(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    const float count = a.count + b.count;
    const float share = b.count / count;
    const float4 delta = b.mean - a.mean;
    return {count, a.mean + share * delta, a.m2 + b.m2 + (a.count * share) * (delta * delta)};
}

// Merges the moments of all threads that own the same channels, as a tree; row 0 gets the result.
__device__ inline Moments merge_rows(Moments own, const Lane& lane, unsigned lanes) {
    __shared__ float counts[BLOCK];
    __shared__ float4 means[BLOCK];
    __shared__ float4 m2s[BLOCK];
    const unsigned t = threadIdx.x;
    for (unsigned width = lane.rows; width > 1;) {
        counts[t] = own.count;
        means[t] = own.mean;
        m2s[t] = own.m2;
        __syncthreads();
        const unsigned half = (width + 1) / 2;
        if (lane.row + half < width) {
            const unsigned other = t + half * lanes;
            own = merge(own, {counts[other], means[other], m2s[other]});
        }
        width = half;
        __syncthreads();
    }
    return own;
}

// A chunk's moments in scratch: a row of means, a row of M2, the count (src/ops/launch/fold.rs).
__device__ inline unsigned moments_stride(unsigned channels) { return 2 * padded(channels) + 4; }

__device__ inline void store_moments(float* chunk, const Moments& m, unsigned channels, unsigned channel) {
    store4(chunk + channel, m.mean, 4);
    store4(chunk + padded(channels) + channel, m.m2, 4);
    if (channel == 0) store4(chunk + 2 * padded(channels), quad(m.count), 4);
}

// Sums of two quads over rows: of g, and of g times something.
struct RowSums {
    float4 s1, s2;
};

// Adds the sums of all threads that own the same channels; row 0 gets the result. `left` and `right` are shared.
__device__ inline RowSums add_rows(RowSums own, const Lane& lane, unsigned lanes, float4* left, float4* right) {
    const unsigned t = threadIdx.x;
    for (unsigned width = lane.rows; width > 1;) {
        left[t] = own.s1;
        right[t] = own.s2;
        __syncthreads();
        const unsigned half = (width + 1) / 2;
        if (lane.row + half < width) {
            own.s1 = own.s1 + left[t + half * lanes];
            own.s2 = own.s2 + right[t + half * lanes];
        }
        width = half;
        __syncthreads();
    }
    return own;
}

// The four words of one draw.
struct Words {
    unsigned x, y, z, w;
};

__device__ inline unsigned mulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }

// Philox4x32-10, bit by bit as in src/random.rs.
__device__ inline Words philox(Words counter, unsigned key_low, unsigned key_high) {
    Words x = counter;
    for (unsigned round = 0; round < 10; round++) {
        const unsigned a = 0xD2511F53u, b = 0xCD9E8D57u;
        x = {mulhi(b, x.z) ^ x.y ^ key_low, b * x.z, mulhi(a, x.x) ^ x.w ^ key_high, a * x.x};
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
    return x;
}

// A word as a number in [0, 1): its top 24 bits.
__device__ inline float uniform_of(unsigned word) { return float(word >> 8) * (1.0f / 16777216.0f); }

// A word as an integer below n.
__device__ inline unsigned below(unsigned word, unsigned n) { return mulhi(word, n); }

// Neither NaN nor infinite.
__device__ inline bool is_finite(float v) { return fabsf(v) <= 3.402823466e38f; }

// What a thread owns of products of tiles of 64 rows with `lanes` quads of columns, four rows by four columns: its `row` counts
// groups of four rows, through all tiles. A warp has 32 rows and 16 columns; warps that are left only take part in barriers.
constexpr unsigned TILE_ROWS = 64;

__device__ inline Lane tile_lane(unsigned channels, unsigned lanes, unsigned group, unsigned tiles = 1) {
    const unsigned t = anew(threadIdx.x), pair = t / 64, across = (lanes + 3) / 4;
    const unsigned tile = pair / across, column = pair % across * 4 + t % 4;
    Lane lane;
    lane.rows = tiles * TILE_ROWS / 4;
    lane.row = tile * TILE_ROWS / 4 + t / 4 % 16;
    lane.channel = 4 * (group * lanes + column);
    lane.valid = tile < tiles && column < lanes && lane.channel < channels ? min(4u, channels - lane.channel) : 0;
    lane.used = lane.valid > 0;
    return lane;
}

#if TENSOR
// A factor of a product, rounded to the nearest tf32, which has ten bits behind the point, ties away from zero.
__device__ inline float factor(float v) {
#ifdef __CUDA_ARCH__
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return __uint_as_float(bits);
#else
    const unsigned bits = __float_as_uint(v);
    return (bits & 0x7f800000u) == 0x7f800000u ? v : __uint_as_float((bits + 0x1000u) & 0xffffe000u);
#endif
}

// d += a b for a warp: 16 rows, 8 columns, 8 indices that are summed over. With lane = 4 g + q, a lane holds of `a` the rows g
// and g + 8 at index q (a0, a1) and at q + 4 (a2, a3), of `b` the column g at the same indices (b0, b1), and of `d` the columns
// 2 q and 2 q + 1 of row g (d0, d1) and of row g + 8 (d2, d3): PTX ISA, "Matrix Fragments for mma.m16n8k8".
__device__ inline void mma(float& d0, float& d1, float& d2, float& d3, float a0, float a1, float a2, float a3, float b0, float b1) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
                 : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
                   "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
#else
    const unsigned whole = 0xffffffffu, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    for (unsigned k = 0; k < 8; k++) {
        const float above = __shfl_sync(whole, k < 4 ? a0 : a2, 4 * g + k % 4);
        const float below = __shfl_sync(whole, k < 4 ? a1 : a3, 4 * g + k % 4);
        const float left = __shfl_sync(whole, k < 4 ? b0 : b1, 4 * (2 * q) + k % 4);
        const float right = __shfl_sync(whole, k < 4 ? b0 : b1, 4 * (2 * q + 1) + k % 4);
        d0 += above * left;
        d1 += above * right;
        d2 += below * left;
        d3 += below * right;
    }
#endif
}

// Tiles of factors: two neighbouring indices that are summed over lie together, so that a lane finds what it holds of a factor
// as a quad and no two lanes of a quarter of a warp meet at a bank. Of rows, each two of four lie in halves of their own.
// Strides are those from one pair of indices to the next.
__device__ inline unsigned left_stride_of(unsigned rows) { return 2 * rows + 8; }
__device__ inline unsigned right_stride_of(unsigned columns) { return 2 * columns + 8; }
__device__ inline unsigned half_of(unsigned left_stride) { return left_stride / 2 + 4; }

// Four rows, from a multiple of four on, at index k.
__device__ inline void put_rows(float* tile, unsigned stride, unsigned k, unsigned row, float4 v) {
    float* p = tile + k / 2 * stride + row + k % 2 * 2;
    p[0] = factor(v.x);
    p[1] = factor(v.y);
    p[half_of(stride)] = factor(v.z);
    p[half_of(stride) + 1] = factor(v.w);
}

// A row at four indices, from a multiple of four on.
__device__ inline void put_row(float* tile, unsigned stride, unsigned k, unsigned row, float4 v) {
    float* p = tile + k / 2 * stride + row / 4 * 4 + row / 2 % 2 * half_of(stride) + row % 2;
    p[0] = factor(v.x);
    p[2] = factor(v.y);
    p[stride] = factor(v.z);
    p[stride + 2] = factor(v.w);
}

// Four columns at index k.
__device__ inline void put_columns(float* tile, unsigned stride, unsigned k, unsigned column, float4 v) {
    float* p = tile + k / 2 * stride + 2 * column + k % 2;
    p[0] = factor(v.x);
    p[2] = factor(v.y);
    p[4] = factor(v.z);
    p[6] = factor(v.w);
}

// A column at four indices, from a multiple of four on.
__device__ inline void put_column(float* tile, unsigned stride, unsigned k, unsigned column, float4 v) {
    float* p = tile + k / 2 * stride + 2 * column;
    p[0] = factor(v.x);
    p[1] = factor(v.y);
    p[stride] = factor(v.z);
    p[stride + 1] = factor(v.w);
}

// acc += left * right for a warp, 32 rows and 16 columns, over the groups of eight indices first, first + by, ... of all that
// are below `end`. With lane = 4 g + q, a lane owns the rows 4 g .. 4 g + 3 and the columns 4 q .. 4 q + 3, and `left` points
// to the first of its rows, `right` to the column 2 g. What `mma` calls row and column is numbered for that: rows g and g + 8
// of its first call are the rows 4 g and 4 g + 1, columns g of its calls the columns 2 g and 2 g + 1, indices q and q + 4 the
// indices 2 q and 2 q + 1.
__device__ inline void product(float4 (&acc)[4], const float* left, const float* right, unsigned left_stride, unsigned right_stride,
                               unsigned first, unsigned end, unsigned by) {
#pragma unroll 1
    for (unsigned group = first; 8 * group < end; group += by) {
        const unsigned pair = 4 * group + threadIdx.x % 4;
        const float4 b = *reinterpret_cast<const float4*>(right + pair * right_stride);
        const float4 a = *reinterpret_cast<const float4*>(left + pair * left_stride);
        mma(acc[0].x, acc[0].z, acc[1].x, acc[1].z, a.x, a.y, a.z, a.w, b.x, b.y);
        mma(acc[0].y, acc[0].w, acc[1].y, acc[1].w, a.x, a.y, a.z, a.w, b.z, b.w);
        const float4 c = *reinterpret_cast<const float4*>(left + pair * left_stride + half_of(left_stride));
        mma(acc[2].x, acc[2].z, acc[3].x, acc[3].z, c.x, c.y, c.z, c.w, b.x, b.y);
        mma(acc[2].y, acc[2].w, acc[3].y, acc[3].w, c.x, c.y, c.z, c.w, b.z, b.w);
    }
}

// Strides of such tiles.
constexpr unsigned TILE_LEFT = 2 * TILE_ROWS + 8;
__device__ inline unsigned tile_right(unsigned lanes) { return right_stride_of((lanes + 3) / 4 * 16); }

// acc += left * right for tiles that lie `next` apart, over `step` quads of indices, an even number.
__device__ inline void tile_product(float4 (&acc)[4], const float* left, const float* right, unsigned lanes, unsigned step,
                                    unsigned tiles = 1, unsigned next = 0) {
    const unsigned t = anew(threadIdx.x), pair = t / 64, across = (lanes + 3) / 4, tile = pair / across;
    if (tile >= tiles) return;
    product(acc, left + tile * next + t / 4 % 16 * 4, right + 2 * (pair % across * 16 + t % 32 / 4 * 2), TILE_LEFT, tile_right(lanes),
            0, 4 * step, 1);
}
#endif
