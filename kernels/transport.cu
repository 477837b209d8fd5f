// Entropic optimal transport (src/ops/transport.rs): PairCost writes the cost matrices of a batch of problems, Sinkhorn
// iterates on their potentials, with those matrices or with costs that it computes from the points. The table holds the
// problems of a launch. Exponents are to base 2: a potential u with weight w enters as the shift log2(w) + u log2(e) / eps,
// and sums of powers keep their largest exponent apart.
#include "costs.cuh"

struct TransportParams {
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
    unsigned annealed;
    unsigned iterations;
    unsigned begin;
    unsigned right;
    Spot weights;
    Spot schedule;
    Spot potentials;
    Spot status;
    Spot shifts;
    Spot soft;
};

struct TransportProblem {
    unsigned n;
    unsigned m;
    unsigned x;
    unsigned y;
    unsigned f;
    unsigned g;
    unsigned cost;
    unsigned stride;
    unsigned symmetric;
    unsigned number;
    unsigned block;
    unsigned stretches;
};

// Shifts staged at once.
constexpr unsigned CHUNK = 1024;
// Exponents that a thread takes at once: their largest one is found before any power.
constexpr unsigned AHEAD = 4;
// Fewest threads that share a row in sinkhorn_small: one sector of memory.
constexpr unsigned LANES = 8;
// Columns of the schedule.
constexpr unsigned SCHEDULE = 8;
constexpr float LN_2 = 0.693147181f;

// ------------------------------------------------------------------------------------------------------------- costs

// C[i, j] = point_scale |x_i - y_j|^2 + label_scale W[l(x_i), l(y_j)], a block a tile.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
pair_cost(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const TransportProblem& q = table[problem_of(table, p.problems, block)];
    const unsigned across = (q.stride + TILE - 1) / TILE;
    const unsigned row = (block - q.block) / across * TILE;
    const unsigned column = (block - q.block) % across * TILE;
    // The last tile of a row may hold nothing but padding.
    const unsigned rows = q.n - row;
    const unsigned columns = q.m - min(q.m, column);
    const float* points = at(pages, p.points);
    const float* left = points + (q.x + row) * p.point_stride;
    const float* right = points + (q.y + min(q.m, column)) * p.point_stride;
    const unsigned tx = threadIdx.x % SIDE;
    const unsigned ty = threadIdx.x / SIDE;

    float sum[OWN][OWN];
    square_distances(sum, p, left, rows, right, columns);
#pragma unroll
    for (unsigned r = 0; r < OWN; r++) {
        const unsigned i = row + ty + r * SIDE;
#pragma unroll
        for (unsigned c = 0; c < OWN; c++) {
            const unsigned j = column + tx + c * SIDE;
            if (i >= q.n || j >= q.stride) continue;
            float value = j < q.m ? p.point_scale * sum[r][c] : 0.0f;
            if (p.labelled && j < q.m) value = with_labels(p, pages, value, q.x + i, q.y + j);
            at(pages, p.cost)[q.cost + i * q.stride + j] = value;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- progress

// What an iteration needs of the schedule and the status of its problem (struct Progress in Rust).
struct Progress {
    float first, last, factor, tolerance;
    float most;
    float rho;
    float steps;
    float done;
    float eps;
    float error;
    float state;
};

__device__ inline Progress progress_of(const TransportParams& p, const Pages& pages, unsigned number) {
    const float* given = at(pages, p.schedule) + number * SCHEDULE;
    const float* status = at(pages, p.status) + number * STATUS;
    const float eps = status[1] > 0.0f ? status[1] : given[0];
    return {given[0], given[1], given[2], given[3], given[4], given[5], given[6], status[0], eps, status[2], status[3]};
}

__device__ inline void keep(const TransportParams& p, const Pages& pages, unsigned number, const Progress& now) {
    float* status = at(pages, p.status) + number * STATUS;
    status[0] = now.done;
    status[1] = now.eps;
    status[2] = now.error;
    status[3] = now.state;
}

// Books an iteration that found `error`.
__device__ inline void advance(Progress& now, float error, bool annealed) {
    const bool settled = now.eps <= now.last;
    now.done += 1.0f;
    now.error = error;
    if (annealed) {
        if (now.done > now.steps + 1.0f) now.state = 2.0f;
        // The first value serves the step from zero and two half steps.
        if (now.done >= now.steps) {
            now.eps = now.last;
        } else if (now.done > 2.0f) {
            now.eps = fmaxf(now.eps * now.factor, now.last);
        }
    } else {
        if (settled && error <= now.tolerance) {
            now.state = 1.0f;
        } else if (now.done >= now.most) {
            now.state = 2.0f;
        }
        // Whoever stops early is judged at the eps of the last iteration.
        if (now.state == 0.0f) now.eps = fmaxf(now.eps * now.factor, now.last);
    }
}

// The numbers of one iteration.
struct Pace {
    float scale;    // log2(e) / eps
    float unit;     // eps ln(2)
    float step;     // share of a whole step
    float damping;  // rho / (rho + eps), or 1 where the marginals must be met
};

__device__ inline Pace pace_of(const Progress& now, bool annealed, bool symmetric) {
    const bool half = annealed ? now.done > 0.0f && now.done <= now.steps : symmetric;
    return {LOG2_E / now.eps, now.eps * LN_2, half ? 0.5f : 1.0f, now.rho > 0.0f ? now.rho / (now.rho + now.eps) : 1.0f};
}

// A potential after the iteration that found its soft c-transform.
__device__ inline float moved(float potential, float soft, const Pace& pace) {
    return potential + pace.step * (pace.damping * soft - potential);
}

// How far a left marginal is off, in shares of its weight. The plan of an unfinished schedule may have any mass.
__device__ inline float deviation(float potential, float soft, const Pace& pace, float rho) {
    const float off = rho > 0.0f ? (pace.damping * soft - potential) * (pace.scale * LN_2)
                                 : exp2f(fminf((potential - soft) * pace.scale, 120.0f)) - 1.0f;
    return fminf(fabsf(off), 1e30f);
}

// ------------------------------------------------------------------------------------------------------ sums of powers

// sum 2^top, a sum of powers of two.
struct Powers {
    float top, sum;
};

__device__ inline Powers join(const Powers& a, const Powers& b) {
    const float top = fmaxf(a.top, b.top);
    return {top, a.sum * exp2f(a.top - top) + b.sum * exp2f(b.top - top)};
}

__device__ inline Powers add_four(Powers own, const float* x) {
    const float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    if (top > own.top) {
        own.sum *= exp2f(own.top - top);
        own.top = top;
    }
    own.sum += (exp2f(x[0] - own.top) + exp2f(x[1] - own.top)) + (exp2f(x[2] - own.top) + exp2f(x[3] - own.top));
    return own;
}

// Adds the powers of shift - scale cost over the staged points first, first + step, ... of `count`; their costs lie
// `pitch` elements apart.
__device__ inline Powers gather(Powers own, const float* shifts, const float* costs, unsigned pitch, unsigned first,
                                unsigned step, unsigned count, float scale) {
    for (unsigned j = first; j < count; j += AHEAD * step) {
        float x[AHEAD];
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            const unsigned i = j + k * step;
            x[k] = i < count ? shifts[i] - scale * costs[i * pitch] : NOTHING;
        }
        own = add_four(own, x);
    }
    return own;
}

// Merges the powers of `ranks` threads that are `step` apart, a power of two of them; rank 0 gets the result.
__device__ inline Powers fold(Powers own, unsigned rank, unsigned ranks, unsigned step) {
    __shared__ float tops[BLOCK];
    __shared__ float sums[BLOCK];
    const unsigned t = threadIdx.x;
    for (unsigned half = ranks / 2; half > 0; half /= 2) {
        tops[t] = own.top;
        sums[t] = own.sum;
        __syncthreads();
        if (rank < half) own = join(own, {tops[t + half * step], sums[t + half * step]});
        __syncthreads();
    }
    return own;
}

// The soft c-transform: -eps log of a sum.
__device__ inline float soft_of(const Powers& all, float unit) { return -(unit * (all.top + log2f(all.sum))); }

// The least power of two that is no less.
__device__ inline unsigned power_of_two(unsigned v) {
    unsigned power = 1;
    while (power < v) power *= 2;
    return power;
}

// All iterations of a replay on a problem of at most BLOCK points a side, a block each. Thread t owns the potentials f_t
// and g_t.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sinkhorn_small(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    __shared__ float shifts[BLOCK];
    __shared__ float softs[BLOCK];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const TransportProblem& q = table[block];
    const unsigned t = threadIdx.x;
    const bool symmetric = q.symmetric != 0;
    const float* costs = at(pages, p.cost) + q.cost;
    const float* weights = at(pages, p.weights);
    float* potentials = at(pages, p.potentials);
    Progress now = progress_of(p, pages, q.number);
    const float a = t < q.n ? weights[q.f + t] : 1.0f;
    const float log_a = log2f(a);
    const float log_b = t < q.m ? log2f(weights[q.g + t]) : 0.0f;
    float f = t < q.n ? potentials[q.f + t] : 0.0f;
    float g = t < q.m ? potentials[q.g + t] : 0.0f;
    // Few rows are shared by many threads, many rows by a few.
    const unsigned lanes = max(LANES, BLOCK / power_of_two(q.n));
    const unsigned lane = t % lanes;
    // All columns are done at once.
    const unsigned columns = power_of_two(q.m);
    const unsigned column = t % columns;
    const unsigned rank = t / columns;
    __syncthreads();

    for (unsigned k = 0; k < p.iterations && now.state == 0.0f; k++) {
        const Pace pace = pace_of(now, p.annealed, symmetric);
        shifts[t] = g * pace.scale + log_b;
        __syncthreads();
        for (unsigned first = 0; first < q.n; first += BLOCK / lanes) {
            const unsigned i = first + t / lanes;
            Powers own = {NOTHING, 0.0f};
            if (i < q.n) own = gather(own, shifts, costs + i * q.stride, 1, lane, lanes, q.m, pace.scale);
            own = fold(own, lane, lanes, 1);
            if (lane == 0 && i < q.n) softs[i] = soft_of(own, pace.unit);
        }
        __syncthreads();
        float error = 0.0f;
        float next = 0.0f;
        if (t < q.n) {
            error = a * deviation(f, softs[t], pace, now.rho);
            next = moved(f, softs[t], pace);
        }
        shifts[t] = (p.annealed ? f : next) * pace.scale + log_a;
        error = block_sum(error);
        if (symmetric) {
            g = next;
        } else {
            Powers own = {NOTHING, 0.0f};
            if (column < q.m) own = gather(own, shifts, costs + column, q.stride, rank, BLOCK / columns, q.n, pace.scale);
            own = fold(own, rank, BLOCK / columns, columns);
            if (t < q.m) g = moved(g, soft_of(own, pace.unit), pace);
            __syncthreads();
        }
        f = next;
        advance(now, error, p.annealed);
    }

    if (t < q.n) potentials[q.f + t] = f;
    if (t < q.m && !symmetric) potentials[q.g + t] = g;
    if (t == 0) keep(p, pages, q.number, now);
}

// ------------------------------------------------------------------------------------------------- larger problems

// Copies shifts to shared memory.
__device__ inline void stage_shifts(float* staged, const float* shifts, unsigned count) {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += BLOCK) staged[i] = shifts[i];
    __syncthreads();
}

// The soft c-transform of left point i, and its shift for the columns.
__device__ inline void take_left(const TransportParams& p, const Pages& pages, const TransportProblem& q, const Pace& pace,
                                 unsigned i, const Powers& all) {
    const float soft = soft_of(all, pace.unit);
    at(pages, p.soft)[q.f + i] = soft;
    if (q.symmetric) return;
    const float f = at(pages, p.potentials)[q.f + i];
    const float log_a = log2f(at(pages, p.weights)[q.f + i]);
    at(pages, p.shifts)[q.f + i] = (p.annealed ? f : moved(f, soft, pace)) * pace.scale + log_a;
}

// The new potential of right point j.
__device__ inline void take_right(const TransportParams& p, const Pages& pages, const TransportProblem& q, const Pace& pace,
                                  unsigned j, const Powers& all) {
    float* g = at(pages, p.potentials) + q.g + j;
    *g = moved(*g, soft_of(all, pace.unit), pace);
}

// Soft c-transforms of SIDE left points, and their shifts for the columns.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sinkhorn_rows(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    __shared__ float staged[CHUNK];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const TransportProblem& q = table[problem_of(table, p.problems, block)];
    const Progress now = progress_of(p, pages, q.number);
    if (now.state != 0.0f) return;
    const Pace pace = pace_of(now, p.annealed, q.symmetric != 0);
    const unsigned lane = threadIdx.x % SIDE;
    const unsigned i = (block - q.block) * SIDE + threadIdx.x / SIDE;
    const float* shifts = at(pages, p.shifts);

    Powers own = {NOTHING, 0.0f};
    for (unsigned first = 0; first < q.m; first += CHUNK) {
        const unsigned count = min(CHUNK, q.m - first);
        stage_shifts(staged, shifts + q.g + first, count);
        const float* costs = at(pages, p.cost) + q.cost + i * q.stride + first;
        if (i < q.n) own = gather(own, staged, costs, 1, lane, SIDE, count, pace.scale);
    }
    own = fold(own, lane, SIDE, 1);
    if (lane == 0 && i < q.n) take_left(p, pages, q, pace, i, own);
}

// New potentials of SIDE right points.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sinkhorn_columns(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    __shared__ float staged[CHUNK];
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const TransportProblem& q = table[problem_of(table, p.problems, block)];
    const Progress now = progress_of(p, pages, q.number);
    if (now.state != 0.0f) return;
    const Pace pace = pace_of(now, p.annealed, q.symmetric != 0);
    const unsigned rank = threadIdx.x / SIDE;
    const unsigned j = (block - q.block) * SIDE + threadIdx.x % SIDE;

    Powers own = {NOTHING, 0.0f};
    for (unsigned first = 0; first < q.n; first += CHUNK) {
        const unsigned count = min(CHUNK, q.n - first);
        stage_shifts(staged, at(pages, p.shifts) + q.f + first, count);
        const float* costs = at(pages, p.cost) + q.cost + first * q.stride + j;
        if (j < q.m) own = gather(own, staged, costs, q.stride, rank, SIDE, count, pace.scale);
    }
    own = fold(own, rank, SIDE, SIDE);
    if (rank == 0 && j < q.m) take_right(p, pages, q, pace, j, own);
}

// Sums of powers of TILE points of one side over a stretch of the other side, a block each. Their costs are computed from
// the points, as often as they are needed.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sinkhorn_points(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    // From shared memory the problem is read again for every tile: registers are scarce between them.
    __shared__ TransportProblem q;
    if (threadIdx.x == 0) q = table[problem_of(table, p.problems, block)];
    __syncthreads();
    const Progress now = progress_of(p, pages, q.number);
    if (now.state != 0.0f) return;
    const unsigned others = p.right ? q.n : q.m;
    const unsigned stretch = (block - q.block) % q.stretches;
    const unsigned tiles = (others + TILE - 1) / TILE;
    const unsigned length = (tiles + q.stretches - 1) / q.stretches * TILE;
    const unsigned end = min(others, (stretch + 1) * length);
    const unsigned tx = threadIdx.x % SIDE;
    const unsigned ty = threadIdx.x / SIDE;

    Powers own[OWN];
#pragma unroll
    for (unsigned r = 0; r < OWN; r++) own[r] = {NOTHING, 0.0f};
    for (unsigned first = stretch * length; first < end; first += TILE) {
        const float* points = at(pages, p.points);
        const unsigned row = (block - q.block) / q.stretches * TILE;
        const unsigned count = p.right ? q.m : q.n;
        float cost[OWN][OWN];
        square_distances(cost, p, points + ((p.right ? q.y : q.x) + row) * p.point_stride, count - row,
                         points + ((p.right ? q.x : q.y) + first) * p.point_stride, end - first);
        const float* shifts = at(pages, p.shifts) + (p.right ? q.f : q.g);
        const float scale = LOG2_E / now.eps;
        float shift[OWN];
#pragma unroll
        for (unsigned c = 0; c < OWN; c++) {
            const unsigned j = first + tx + c * SIDE;
            shift[c] = j < end ? shifts[j] : NOTHING;
        }
#pragma unroll
        for (unsigned r = 0; r < OWN; r++) {
            const unsigned i = row + ty + r * SIDE;
            float* x = cost[r];
#pragma unroll
            for (unsigned c = 0; c < OWN; c++) {
                const unsigned j = first + tx + c * SIDE;
                float value = p.point_scale * x[c];
                if (p.labelled && i < count && j < end) {
                    value = with_labels(p, pages, value, q.x + (p.right ? j : i), q.y + (p.right ? i : j));
                }
                x[c] = shift[c] - scale * value;
            }
            own[r] = add_four(own[r], x);
        }
    }

    const unsigned count = p.right ? q.m : q.n;
    const unsigned row = (block - q.block) / q.stretches * TILE;
    float* sums = at(pages, p.cost) + q.cost + 2 * stretch * count;
#pragma unroll
    for (unsigned r = 0; r < OWN; r++) {
        const unsigned i = row + ty + r * SIDE;
        const Powers all = fold(own[r], tx, SIDE, 1);
        if (tx == 0 && i < count) {
            sums[2 * i] = all.top;
            sums[2 * i + 1] = all.sum;
        }
    }
}

// Merges the stretches of BLOCK points in order, and takes what comes of them.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sinkhorn_merge(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const TransportProblem& q = table[problem_of(table, p.problems, block)];
    const Progress now = progress_of(p, pages, q.number);
    if (now.state != 0.0f) return;
    const Pace pace = pace_of(now, p.annealed, q.symmetric != 0);
    const unsigned count = p.right ? q.m : q.n;
    const unsigned i = (block - q.block) * BLOCK + threadIdx.x;
    if (i >= count) return;
    const float* sums = at(pages, p.cost) + q.cost + 2 * i;
    Powers all = {sums[0], sums[1]};
    for (unsigned stretch = 1; stretch < q.stretches; stretch++) {
        const float* next = sums + 2 * stretch * count;
        all = join(all, {next[0], next[1]});
    }
    if (p.right) {
        take_right(p, pages, q, pace, i, all);
    } else {
        take_left(p, pages, q, pace, i, all);
    }
}

// Books an iteration, a block a problem: left potentials, error and status; then the right shifts for the next one.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
sinkhorn_advance(const __grid_constant__ TransportParams p, const __grid_constant__ Pages pages, const TransportProblem* table) {
    after_others();
    const unsigned block = block_index();
    if (block >= p.blocks) return;
    const TransportProblem& q = table[block];
    Progress now = progress_of(p, pages, q.number);
    if (now.state != 0.0f && !p.begin) return;
    const float* weights = at(pages, p.weights);
    float* potentials = at(pages, p.potentials);

    float error = 0.0f;
    if (!p.begin) {
        const Pace pace = pace_of(now, p.annealed, q.symmetric != 0);
        for (unsigned i = threadIdx.x; i < q.n; i += BLOCK) {
            const float f = potentials[q.f + i];
            const float soft = at(pages, p.soft)[q.f + i];
            error += weights[q.f + i] * deviation(f, soft, pace, now.rho);
            potentials[q.f + i] = moved(f, soft, pace);
        }
    }
    error = block_sum(error);
    if (!p.begin) advance(now, error, p.annealed);

    const float scale = LOG2_E / now.eps;
    for (unsigned j = threadIdx.x; j < q.m; j += BLOCK) {
        at(pages, p.shifts)[q.g + j] = potentials[q.g + j] * scale + log2f(weights[q.g + j]);
    }
    if (threadIdx.x == 0) keep(p, pages, q.number, now);
}
