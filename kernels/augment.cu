// Augmentation of image batches and drop-path masks (src/ops/augment.rs). A draw depends on seed and counter only, and
// has the bits that the CPU gives it.
#include "common.cuh"

struct AugmentParams {
    unsigned blocks;
    unsigned channels;
    unsigned lanes;
    unsigned groups;
    unsigned chunks;
    unsigned height;
    unsigned width;
    unsigned pad;
    unsigned flip;
    unsigned cutout;
    unsigned seed_low;
    unsigned seed_high;
    unsigned map_stride;
    unsigned out_stride;
    unsigned accumulate;
    unsigned unused;
    Spot map;
    Spot index;
    Spot epoch;
    Spot out;
};

struct AugmentQuad {
    float mean_0;
    float mean_1;
    float mean_2;
    float mean_3;
    float deviation_0;
    float deviation_1;
    float deviation_2;
    float deviation_3;
};

struct DropMaskParams {
    unsigned blocks;
    unsigned elements;
    unsigned columns;
    unsigned out_stride;
    unsigned seed_low;
    unsigned seed_high;
    unsigned accumulate;
    unsigned unused_0;
    Spot probability;
    Spot step;
    Spot out;
    Spot unused_1;
};

// Purposes of draws (ops::augment::purpose).
constexpr unsigned AUGMENT = 1;
constexpr unsigned DROP_PATH = 2;

// Pixels of one image that a thread writes.
constexpr unsigned ROWS = 4;

__device__ inline float4 divide(float4 a, float4 b) { return make_float4(a.x / b.x, a.y / b.y, a.z / b.z, a.w / b.w); }

// Whether a coordinate lies in a hole around `centre`; below the hole the difference wraps around.
__device__ inline bool in_hole(unsigned at, unsigned centre, unsigned cutout) { return at + cutout / 2 - centre < cutout; }

// A block writes a chunk of the pixels of one image.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
augment_forward(const __grid_constant__ AugmentParams p, const __grid_constant__ Pages pages, const AugmentQuad* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const Lane lane = lane_of(p.channels, p.lanes, block % p.groups);
    if (!lane.used) return;
    const unsigned image = block / p.groups / p.chunks;
    const unsigned first = block / p.groups % p.chunks * ROWS * lane.rows + lane.row;
    const unsigned pixels = p.height * p.width;

    const unsigned index = unsigned(at(pages, p.index)[image]);
    const unsigned epoch = unsigned(*at(pages, p.epoch));
    const Words a = philox({index, epoch, AUGMENT, 0}, p.seed_low, p.seed_high);
    const Words b = philox({index, epoch, AUGMENT, 1}, p.seed_low, p.seed_high);
    const unsigned span = 2 * p.pad + 1;
    const unsigned down = below(a.x, span);
    const unsigned right = below(a.y, span);
    const bool flip = p.flip && a.z >> 31;
    const unsigned hole_y = below(b.x, p.height);
    const unsigned hole_x = below(b.y, p.width);

    const AugmentQuad& q = table[lane.channel / 4];
    const float4 mean = make_float4(q.mean_0, q.mean_1, q.mean_2, q.mean_3);
    const float4 deviation = make_float4(q.deviation_0, q.deviation_1, q.deviation_2, q.deviation_3);
    const float* map = at(pages, p.map) + lane.channel;
    float* out = at(pages, p.out) + lane.channel;
#pragma unroll
    for (unsigned k = 0; k < ROWS; k++) {
        const unsigned pixel = first + k * lane.rows;
        if (pixel >= pixels) continue;
        const unsigned y = pixel / p.width, x = pixel % p.width;
        // In front of the image these wrap around.
        const unsigned from_y = y + down - p.pad;
        const unsigned from_x = (flip ? p.width - 1 - x : x) + right - p.pad;
        float4 raw = quad(0.0f);
        if (from_y < p.height && from_x < p.width) {
            raw = load4(map + (image * pixels + from_y * p.width + from_x) * p.map_stride, lane.valid);
        }
        const bool hole = in_hole(y, hole_y, p.cutout) && in_hole(x, hole_x, p.cutout);
        const float4 value = divide(divide(raw, quad(255.0f)) - mean, deviation);
        put4(out + (image * pixels + pixel) * p.out_stride, hole ? quad(0.0f) : value, lane.valid, p.accumulate);
    }
}

// A thread writes one factor.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
drop_mask(const __grid_constant__ DropMaskParams p, const __grid_constant__ Pages pages, const NoTable*) {
    after_others();
    const unsigned block = block_index();
    const unsigned element = block * BLOCK + threadIdx.x;
    if (block >= p.blocks || element >= p.elements) return;
    const unsigned path = element / p.columns, row = element % p.columns;
    const float probability = *at(pages, p.probability);
    const unsigned step = unsigned(*at(pages, p.step));
    const Words bits = philox({row, path, DROP_PATH, step}, p.seed_low, p.seed_high);
    const float factor = uniform_of(bits.x) < probability ? 0.0f : 1.0f / (1.0f - probability);
    float* out = at(pages, p.out) + path * p.out_stride + row;
    *out = p.accumulate ? *out + factor : factor;
}
