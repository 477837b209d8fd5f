// What plans of entropic transport are worth (Certificate and CostExtent, src/ops/transport). Costs are read from their
// matrices or computed from the points, in tiles as in transport.cu; all passes have a tile's costs and powers by the same
// functions, so that they see the same plan. A block owns TILE points of one side and a stretch of the other; a further
// launch merges the stretches in order, and a block a problem adds up what its points found.
//
// Passes: 0 sums and largest costs of rows; 1 masses and costs of rows; 2 masses of columns, before and after rows were
// rounded, and c-transforms; 3 masses, costs and c-transforms of rows that were rounded, and what they pay for a lack.
#include "costs.cuh"

struct CertificateParams {
    unsigned blocks;
    unsigned problems;
    unsigned channels;
    unsigned point_stride;
    Spot points;
    Spot labels;
    Spot distances;
    Spot cost;
    unsigned distance_stride;
    unsigned labelled;
    float point_scale;
    float label_scale;
    unsigned stored;
    unsigned stage;
    Spot weights;
    Spot potentials;
    Spot status;
    Spot vectors;
    Spot partials;
    Spot rows;
    unsigned length;
    unsigned unused;
};

struct CertificateProblem {
    unsigned n;
    unsigned m;
    unsigned x;
    unsigned y;
    unsigned f;
    unsigned g;
    unsigned cost;
    unsigned stride;
    unsigned partial;
    unsigned number;
    unsigned block;
    unsigned stretches;
};

// Threads that share a point of a tile when its sums are added up.
constexpr unsigned SHARERS = BLOCK / TILE;
// Columns of a certificate, and sums of a stretch.
constexpr unsigned CERTIFICATE = 14;
constexpr unsigned SUMS = 4;
// Powers stay below two to this: the plan of an unfinished schedule may have any mass.
constexpr float MOST = 60.0f;

// Vectors in scratch, placed like the potentials: of rows after pass 1, of columns after pass 2, of rows after pass 3.
constexpr unsigned FACTOR = 0;
constexpr unsigned MASS = 1;
constexpr unsigned VALUE = 2;
constexpr unsigned COLUMN = 3;
constexpr unsigned SHARE = 4;
constexpr unsigned LACK = 5;
constexpr unsigned LEAST_COLUMN = 6;
constexpr unsigned ROW = 7;
constexpr unsigned ROUNDED = 8;
constexpr unsigned LEAST_ROW = 9;
constexpr unsigned GAP = 10;

// ------------------------------------------------------------------------------------------------------------- costs

// Costs of a tile: [r][c] is that of row first_row + ty + r SIDE and column first_column + tx + c SIDE.
__device__ inline void cost_tile(float (&cost)[OWN][OWN], const CertificateParams& p, const Pages& pages,
                                 const CertificateProblem& q, unsigned first_row, unsigned first_column) {
    const unsigned tx = threadIdx.x % SIDE;
    const unsigned ty = threadIdx.x / SIDE;
    if (!p.stored) {
        const float* points = at(pages, p.points);
        square_distances(cost, p, points + (q.x + first_row) * p.point_stride, q.n - first_row,
                         points + (q.y + first_column) * p.point_stride, q.m - first_column);
    }
#pragma unroll
    for (unsigned r = 0; r < OWN; r++) {
        const unsigned i = first_row + ty + r * SIDE;
#pragma unroll
        for (unsigned c = 0; c < OWN; c++) {
            const unsigned j = first_column + tx + c * SIDE;
            const bool exists = i < q.n && j < q.m;
            if (p.stored) {
                cost[r][c] = exists ? at(pages, p.cost)[q.cost + i * q.stride + j] : 0.0f;
            } else {
                cost[r][c] = p.point_scale * cost[r][c];
                if (p.labelled && exists) cost[r][c] = with_labels(p, pages, cost[r][c], q.x + i, q.y + j);
            }
        }
    }
}

// The exponent of a point: log2(weight) + potential log2(e) / eps.
__device__ inline float shift_of(const CertificateParams& p, const Pages& pages, unsigned place, float scale) {
    return fmaf(at(pages, p.potentials)[place], scale, log2f(at(pages, p.weights)[place]));
}

// An element of the plan.
__device__ inline float power(float left, float right, float cost, float scale) {
    return exp2f(fminf(fmaf(-scale, cost, left + right), MOST));
}

__device__ inline float* vector(const CertificateParams& p, const Pages& pages, unsigned which, unsigned place) {
    return at(pages, p.vectors) + which * p.length + place;
}

__device__ inline float scale_of(const CertificateParams& p, const Pages& pages, const CertificateProblem& q) {
    return p.stage == 0 ? 0.0f : LOG2_E / at(pages, p.status)[q.number * STATUS + 1];
}

__device__ inline float add_or_least(float a, float b, bool least) { return least ? fminf(a, b) : a + b; }

// Adds to `total` (or takes the least of both) what the threads of a tile have of its points own, own + SIDE, ...: SIDE
// lanes each, which SHARERS threads take over.
__device__ inline float tally(float total, const float (&values)[OWN], unsigned own, unsigned lane, bool least) {
    __shared__ float parts[TILE * (SIDE + 1)];
#pragma unroll
    for (unsigned r = 0; r < OWN; r++) parts[(own + r * SIDE) * (SIDE + 1) + lane] = values[r];
    __syncthreads();
    const float* four = parts + threadIdx.x / SHARERS * (SIDE + 1) + threadIdx.x % SHARERS * (SIDE / SHARERS);
    const float sum = add_or_least(add_or_least(four[0], four[1], least), add_or_least(four[2], four[3], least), least);
    __syncthreads();
    return add_or_least(total, sum, least);
}

// What the SHARERS threads of a point have together.
__device__ inline float gathered(float total, bool least) {
    __shared__ float totals[BLOCK];
    totals[threadIdx.x] = total;
    __syncthreads();
    const float* four = totals + threadIdx.x / SHARERS * SHARERS;
    const float all = add_or_least(add_or_least(four[0], four[1], least), add_or_least(four[2], four[3], least), least);
    __syncthreads();
    return all;
}

// Writes the sums of a stretch of a point.
__device__ inline void put_sums(const CertificateParams& p, const Pages& pages, unsigned start, bool exists,
                                const float (&totals)[SUMS]) {
#pragma unroll
    for (unsigned k = 0; k < SUMS; k++) {
        const float all = gathered(totals[k], k == 2);
        if (threadIdx.x % SHARERS == 0 && exists) at(pages, p.partials)[start + k] = all;
    }
}

// Passes 0, 1 and 3 over TILE rows and a stretch of columns.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
certificate_rows(const __grid_constant__ CertificateParams p, const __grid_constant__ Pages pages,
                 const CertificateProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    // From shared memory the problem is read again for every tile: registers are scarce between them.
    __shared__ CertificateProblem q;
    if (threadIdx.x == 0) q = table[problem_of(table, p.problems, block)];
    __syncthreads();
    const float scale = scale_of(p, pages, q);
    const unsigned row = (block - q.block) / q.stretches * TILE;
    const unsigned stretch = (block - q.block) % q.stretches;
    const unsigned tiles = (q.m + TILE - 1) / TILE;
    const unsigned length = (tiles + q.stretches - 1) / q.stretches * TILE;
    const unsigned end = min(q.m, (stretch + 1) * length);
    const unsigned tx = threadIdx.x % SIDE;
    const unsigned ty = threadIdx.x / SIDE;

    float totals[SUMS] = {0.0f, 0.0f, -NOTHING, 0.0f};
    for (unsigned first = stretch * length; first < end; first += TILE) {
        float cost[OWN][OWN];
        cost_tile(cost, p, pages, q, row, first);
        if (p.stage != 0) {
            float shift[OWN];
            float share[OWN];
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) {
                const unsigned j = first + tx + c * SIDE;
                shift[c] = j < end ? shift_of(p, pages, q.g + j, scale) : NOTHING;
                share[c] = j < end && p.stage == 3 ? *vector(p, pages, SHARE, q.g + j) : 1.0f;
            }
            float mass[OWN];
            float value[OWN];
#pragma unroll
            for (unsigned r = 0; r < OWN; r++) {
                const unsigned i = row + ty + r * SIDE;
                const float left = i < q.n ? shift_of(p, pages, q.f + i, scale) : NOTHING;
                const float factor = i < q.n && p.stage == 3 ? *vector(p, pages, FACTOR, q.f + i) : 1.0f;
                float plan[OWN];
#pragma unroll
                for (unsigned c = 0; c < OWN; c++) plan[c] = factor * power(left, shift[c], cost[r][c], scale) * share[c];
                mass[r] = (plan[0] + plan[1]) + (plan[2] + plan[3]);
                value[r] = (plan[0] * cost[r][0] + plan[1] * cost[r][1]) + (plan[2] * cost[r][2] + plan[3] * cost[r][3]);
            }
            totals[0] = tally(totals[0], mass, ty, tx, false);
            totals[1] = tally(totals[1], value, ty, tx, false);
        }
        if (p.stage != 1) {
            float below[OWN];
            float lack[OWN];
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) {
                const unsigned j = first + tx + c * SIDE;
                below[c] = j < end ? (p.stage == 0 ? 0.0f : *vector(p, pages, LEAST_COLUMN, q.g + j)) : NOTHING;
                lack[c] = j < end ? (p.stage == 0 ? 1.0f : *vector(p, pages, LACK, q.g + j)) : 0.0f;
            }
            // Pass 0 has the largest cost, as the least of the negative ones.
            const float sign = p.stage == 0 ? -1.0f : 1.0f;
            float least[OWN];
            float gap[OWN];
#pragma unroll
            for (unsigned r = 0; r < OWN; r++) {
                const float* x = cost[r];
                least[r] = fminf(fminf(sign * x[0] - below[0], sign * x[1] - below[1]),
                                 fminf(sign * x[2] - below[2], sign * x[3] - below[3]));
                gap[r] = (lack[0] * x[0] + lack[1] * x[1]) + (lack[2] * x[2] + lack[3] * x[3]);
            }
            totals[2] = tally(totals[2], least, ty, tx, true);
            totals[3] = tally(totals[3], gap, ty, tx, false);
        }
    }
    const unsigned i = row + threadIdx.x / SHARERS;
    put_sums(p, pages, q.partial + SUMS * (stretch * q.n + i), i < q.n, totals);
}

// Pass 2 over TILE columns and a stretch of rows.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
certificate_columns(const __grid_constant__ CertificateParams p, const __grid_constant__ Pages pages,
                    const CertificateProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    __shared__ CertificateProblem q;
    if (threadIdx.x == 0) q = table[problem_of(table, p.problems, block)];
    __syncthreads();
    const float scale = scale_of(p, pages, q);
    const unsigned column = (block - q.block) / q.stretches * TILE;
    const unsigned stretch = (block - q.block) % q.stretches;
    const unsigned tiles = (q.n + TILE - 1) / TILE;
    const unsigned length = (tiles + q.stretches - 1) / q.stretches * TILE;
    const unsigned end = min(q.n, (stretch + 1) * length);
    const unsigned tx = threadIdx.x % SIDE;
    const unsigned ty = threadIdx.x / SIDE;

    float totals[SUMS] = {0.0f, 0.0f, -NOTHING, 0.0f};
    for (unsigned first = stretch * length; first < end; first += TILE) {
        float cost[OWN][OWN];
        cost_tile(cost, p, pages, q, first, column);
        float least[OWN];
#pragma unroll
        for (unsigned c = 0; c < OWN; c++) least[c] = -NOTHING;
#pragma unroll
        for (unsigned r = 0; r < OWN; r++) {
            const unsigned i = first + ty + r * SIDE;
            const float f = i < end ? at(pages, p.potentials)[q.f + i] : NOTHING;
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) least[c] = fminf(least[c], cost[r][c] - f);
        }
        totals[2] = tally(totals[2], least, tx, ty, true);
        float mass[OWN];
        float rounded[OWN];
        float shift[OWN];
#pragma unroll
        for (unsigned c = 0; c < OWN; c++) {
            const unsigned j = column + tx + c * SIDE;
            mass[c] = 0.0f;
            rounded[c] = 0.0f;
            shift[c] = j < q.m ? shift_of(p, pages, q.g + j, scale) : NOTHING;
        }
#pragma unroll
        for (unsigned r = 0; r < OWN; r++) {
            const unsigned i = first + ty + r * SIDE;
            const float left = i < end ? shift_of(p, pages, q.f + i, scale) : NOTHING;
            const float factor = i < end ? *vector(p, pages, FACTOR, q.f + i) : 0.0f;
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) {
                const float plan = power(left, shift[c], cost[r][c], scale);
                mass[c] += plan;
                rounded[c] += factor * plan;
            }
        }
        totals[0] = tally(totals[0], mass, tx, ty, false);
        totals[1] = tally(totals[1], rounded, tx, ty, false);
    }
    const unsigned j = column + threadIdx.x / SHARERS;
    put_sums(p, pages, q.partial + SUMS * (stretch * q.m + j), j < q.m, totals);
}

// The share of a sum that a weight leaves.
__device__ inline float share_of(float weight, float sum) { return sum > weight ? weight / sum : 1.0f; }

// Merges the stretches of BLOCK points in order, and takes what comes of them.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
certificate_merge(const __grid_constant__ CertificateParams p, const __grid_constant__ Pages pages,
                  const CertificateProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const CertificateProblem& q = table[problem_of(table, p.problems, block)];
    const bool right = p.stage == 2;
    const unsigned count = right ? q.m : q.n;
    const unsigned i = (block - q.block) * BLOCK + threadIdx.x;
    if (i >= count) return;
    const float* sums = at(pages, p.partials) + q.partial + SUMS * i;
    float all[SUMS] = {sums[0], sums[1], sums[2], sums[3]};
    for (unsigned stretch = 1; stretch < q.stretches; stretch++) {
        const float* next = sums + SUMS * stretch * count;
#pragma unroll
        for (unsigned k = 0; k < SUMS; k++) all[k] = add_or_least(all[k], next[k], k == 2);
    }
    const unsigned place = (right ? q.g : q.f) + i;
    if (p.stage == 1) {
        *vector(p, pages, MASS, place) = all[0];
        *vector(p, pages, VALUE, place) = all[1];
        *vector(p, pages, FACTOR, place) = share_of(at(pages, p.weights)[place], all[0]);
    } else if (right) {
        const float weight = at(pages, p.weights)[place];
        *vector(p, pages, COLUMN, place) = all[0];
        *vector(p, pages, SHARE, place) = share_of(weight, all[1]);
        *vector(p, pages, LACK, place) = fmaxf(weight - all[1], 0.0f);
        *vector(p, pages, LEAST_COLUMN, place) = all[2];
    } else {
        *vector(p, pages, ROW, place) = all[0];
        *vector(p, pages, ROUNDED, place) = all[1];
        *vector(p, pages, LEAST_ROW, place) = all[2];
        *vector(p, pages, GAP, place) = all[3];
    }
}

// Adds up what the points of a problem found, a block each.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
certificate_totals(const __grid_constant__ CertificateParams p, const __grid_constant__ Pages pages,
                   const CertificateProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const CertificateProblem& q = table[block];
    const float* weights = at(pages, p.weights);
    const float* potentials = at(pages, p.potentials);
    float value = 0.0f, upper = 0.0f, lower = 0.0f, dual = 0.0f, rows = 0.0f, columns = 0.0f, mass = 0.0f;
    float missing = 0.0f, paid = 0.0f;
    // Unrolled loops would need too many registers.
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < q.n; i += BLOCK) {
        const unsigned place = q.f + i;
        const float a = weights[place];
        const float lack = fmaxf(a - *vector(p, pages, ROW, place), 0.0f);
        value += *vector(p, pages, VALUE, place);
        mass += *vector(p, pages, MASS, place);
        rows += fabsf(*vector(p, pages, MASS, place) - a);
        upper += *vector(p, pages, ROUNDED, place);
        missing += lack;
        paid += lack * *vector(p, pages, GAP, place);
        lower += a * *vector(p, pages, LEAST_ROW, place);
        dual += a * potentials[place];
    }
#pragma unroll 1
    for (unsigned j = threadIdx.x; j < q.m; j += BLOCK) {
        const unsigned place = q.g + j;
        const float b = weights[place];
        columns += fabsf(*vector(p, pages, COLUMN, place) - b);
        lower += b * *vector(p, pages, LEAST_COLUMN, place);
        dual += b * potentials[place];
    }
    value = block_sum(value);
    upper = block_sum(upper);
    lower = block_sum(lower);
    dual = block_sum(dual);
    rows = block_sum(rows);
    columns = block_sum(columns);
    mass = block_sum(mass);
    missing = block_sum(missing);
    paid = block_sum(paid);
    if (threadIdx.x == 0) {
        if (missing > 0.0f) upper += paid / missing;
        const float numbers[CERTIFICATE / 2] = {value, upper, lower, dual, rows, columns, mass};
        float* to = at(pages, p.rows) + q.number * CERTIFICATE;
#pragma unroll
        for (unsigned k = 0; k < CERTIFICATE / 2; k++) {
            to[2 * k] = numbers[k];
            to[2 * k + 1] = 0.0f;
        }
    }
}

// The sum of a problem's costs and the largest of them, which is 0 at least, a block a problem.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
extent_totals(const __grid_constant__ CertificateParams p, const __grid_constant__ Pages pages,
              const CertificateProblem* table) {
    after_others();
    __shared__ float least[BLOCK];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const CertificateProblem& q = table[block];
    float sum = 0.0f;
    float own = 0.0f;
    for (unsigned i = threadIdx.x; i < q.n; i += BLOCK) {
        sum += *vector(p, pages, GAP, q.f + i);
        own = fminf(own, *vector(p, pages, LEAST_ROW, q.f + i));
    }
    sum = block_sum(sum);
    least[threadIdx.x] = own;
    __syncthreads();
    for (unsigned half = BLOCK / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) least[threadIdx.x] = fminf(least[threadIdx.x], least[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        float* to = at(pages, p.rows) + 2 * q.number;
        to[0] = sum;
        to[1] = -least[0];
    }
}
