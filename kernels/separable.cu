// Separable convolutions (src/ops/separable.rs): y = pointwise(depthwise(relu(h(x)))), and the moments of y.
#include "separable.cuh"

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
    unsigned tiles;
    unsigned across;
    unsigned down;
    unsigned regions;
    unsigned chunk_regions;
    unsigned branches;
    unsigned reach;
    float eps;
    Spot x;
    Spot mean;
    Spot variance;
    Spot gamma;
    Spot beta;
    Spot depthwise;
    Spot pointwise;
    Spot y;
    Spot partial;
};

constexpr unsigned MOMENTS = 4;
constexpr unsigned ADD = 8;
constexpr unsigned TILED = 16;

// Quads of output channels that a block computes, at most.
constexpr unsigned COLUMNS = 12;

// Moments in shared memory, a slot a thread: they would not fit into registers beside a tile's sums.
struct Slots {
    float count[BLOCK];
    float4 mean[BLOCK];
    float4 m2[BLOCK];
};

__device__ inline Moments moments_in(const Slots& slots, unsigned slot) { return {slots.count[slot], slots.mean[slot], slots.m2[slot]}; }

__device__ inline void put_moments(Slots& slots, unsigned slot, const Moments& all) {
    slots.count[slot] = all.count;
    slots.mean[slot] = all.mean;
    slots.m2[slot] = all.m2;
}

// The depthwise results of the tiles of a region, half a block a tile.
__device__ inline void stencil_tiles(const SeparableJob& j, const Pages& pages, float* tiles, float* region, unsigned base, unsigned step) {
    const Patch patch = patch_of(j.dilation);
    const unsigned channel = base + patch.channel;
    if (patch.tile >= j.tiles || patch.channel >= 4 * step) return;
    float sum[2][4] = {};
    if (channel < j.channels) {
        const float* from = region_at(region, patch.line, patch.tile * SIDE + patch.column) + patch.channel;
        any_stencil<false>(j.kernel, j.dilation, sum, from, at(pages, j.depthwise) + channel, j.tap_stride);
    }
    float* tile = tiles + patch.tile * TILE;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) put_value(tile, patch.channel, pixel_of(patch, j.dilation, i / 4, i % 4), sum[i / 4][i % 4]);
}

// That of one tile where there is no stencil: a quad of channels of one pixel a thread.
__device__ inline void gather_tile(const SeparableJob& j, const Pages& pages, float* tile, const Corner& corner, unsigned base,
                                   unsigned step) {
    const unsigned pixel = threadIdx.x / step, q = threadIdx.x % step;
    if (pixel >= PIXELS) return;
    const unsigned line = corner.line + line_of(pixel), column = corner.column + column_of(pixel);
    const unsigned channel = base + 4 * q, valid = valid_of(channel, j.channels);
    const bool there = line < j.y_h && column < j.y_w && valid > 0;
    put_pixel(tile, q, pixel, there ? depthwise(j, pages, corner.image, line, column, channel, valid) : quad(0.0f));
}

// Rows of the pointwise weights, as many as there are channels in the tiles.
__device__ inline void load_matrix(const SeparableJob& j, const Pages& pages, float* matrix, unsigned group, unsigned base, unsigned step) {
    for (unsigned i = anew(threadIdx.x); i < 4 * step * j.lanes; i += BLOCK) {
        const unsigned row = base + i / j.lanes, out = 4 * (group * j.lanes + i % j.lanes);
        const unsigned valid = row < j.channels ? valid_of(out, j.out_channels) : 0;
        put_weights(matrix, j.lanes, i / j.lanes, i % j.lanes, load4(at(pages, j.pointwise) + row * j.weight_stride + out, valid));
    }
}

// A block computes quads `lanes` wide of a chunk of regions, for all branches of its job: what they read of a map is brought into
// shared memory once if all its channels fit. A chunk is one region, unless the job has one branch.
extern "C" __global__ void __launch_bounds__(BLOCK, 3)
separable_forward(const __grid_constant__ JobsParams p, const __grid_constant__ Pages pages, const SeparableJob* table) {
    after_others();
    __shared__ float4 region[REGION / 4];
    __shared__ float4 tiles[2 * TILE / 4];
    __shared__ float4 matrix[matrix_of(COLUMNS) / 4];
    __shared__ Slots slots;
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const SeparableJob* job = table + job_of(table, p.jobs, block);
    const unsigned chunk = (block - job->first_block) / job->groups, group = (block - job->first_block) % job->groups;
    const unsigned start = chunk * job->chunk_regions, end = min(start + job->chunk_regions, job->regions);

    for (unsigned now = start; now < end; now++) {
        for (unsigned branch = 0; branch < job->branches; branch++) {
            const SeparableJob& j = job[branch];
            const unsigned step = whole_step(j.step);
            float4 sum[ROWS] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
            for (unsigned base = 0; base < j.channels; base += 4 * step) {
                const Corner corner = corner_of(j, now);
                load_matrix(j, pages, reinterpret_cast<float*>(matrix), group, base, step);
                if (!(j.flags & TILED)) {
                    gather_tile(j, pages, reinterpret_cast<float*>(tiles), corner, base, step);
                } else {
                    if (branch == 0 || j.channels > 4 * step) {
                        load_map(j, pages, reinterpret_cast<float*>(region), corner, base, j.reach, step);
                        __syncthreads();
                    }
                    stencil_tiles(j, pages, reinterpret_cast<float*>(tiles), reinterpret_cast<float*>(region), base, step);
                }
                __syncthreads();
                multiply(sum, reinterpret_cast<const float*>(tiles), reinterpret_cast<const float*>(matrix), j.lanes, step, j.tiles);
                __syncthreads();
            }

            const Lane lane = tile_lane(j.out_channels, j.lanes, group, j.tiles);
            const unsigned slot = lane.row * j.lanes + lane.channel / 4 - group * j.lanes;
            const Corner corner = corner_of(j, now);
            const unsigned pixel = ROWS * lane.row % PIXELS;
            const unsigned line = corner.line + line_of(pixel);
            const unsigned column = corner.column + ROWS * lane.row / PIXELS * SIDE + column_of(pixel);
            Moments part = none();
#pragma unroll
            for (unsigned k = 0; k < ROWS; k++) {
                if (!lane.used || line >= j.y_h || column + k >= j.y_w) continue;
                const unsigned row = (corner.image * j.y_h + line) * j.y_w + column + k;
                const Map y = map_at(pages, j.y) + row * j.y_stride + lane.channel;
                if (j.flags & ADD) sum[k] = load4(y, lane.valid) + sum[k];
                store4(y, sum[k], lane.valid);
                part.count += 1.0f;
                part.mean = part.mean + sum[k];
            }
            if (!(j.flags & MOMENTS)) continue;
            part.mean = (1.0f / max(part.count, 1.0f)) * part.mean;
#pragma unroll
            for (unsigned k = 0; k < ROWS; k++) {
                const float4 d = sum[k] - part.mean;
                if (line < j.y_h && column + k < j.y_w) part.m2 = part.m2 + d * d;
            }
            if (lane.used) put_moments(slots, slot, now == start ? part : merge(moments_in(slots, slot), part));
            if (now + 1 < end) continue;

            // Threads that hold moments of the same columns, as a tree.
            for (unsigned half = lane.rows / 2; half > 0; half /= 2) {
                __syncthreads();
                if (!lane.used || lane.row >= half) continue;
                put_moments(slots, slot, merge(moments_in(slots, slot), moments_in(slots, slot + half * j.lanes)));
            }
            if (lane.row == 0 && lane.used) {
                float* partial = at(pages, j.partial) + chunk * moments_stride(j.out_channels);
                store_moments(partial, moments_in(slots, slot), j.out_channels, lane.channel);
            }
        }
    }
}
