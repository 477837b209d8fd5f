#!/usr/bin/env python3
"""Transport libraries on the CPU, as `supernet bench transport` measures the program: from points to costs.

    python transport.py --threads 2
    python transport.py --threads 2 --filter 1x2000

Two cases: 190 problems of 256 x 256 points in 64 dimensions (the class pairs of two datasets with twenty classes), and one
of 2,000 x 2,000; 100 iterations each, epsilon a twentieth of the mean cost |x - y|^2 / 2, the cost <P, C> at the end.
Everything is given its best form: problems side by side where the library can, f32 where it is faster. `emd2` is exact.
Prints one JSON row a measurement.
"""
import argparse, json, os, statistics, sys, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--filter", default="", metavar="PART", help="only cases with this part in their names")
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(args.threads)
torch.set_grad_enabled(False)
ITERATIONS, EPSILON = 100, 0.05


def points(problems, n, d):
    """Normal points around as many centres as make so many pairs; the left and the right ones of all pairs, f32."""
    count = next(k for k in range(2, 10**6) if k * (k - 1) // 2 >= problems)
    rng = np.random.default_rng(0)
    clouds = (rng.standard_normal((count, n, d)) + rng.standard_normal((count, 1, d))).astype(np.float32)
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)][:problems]
    return clouds[[a for a, _ in pairs]], clouds[[b for _, b in pairs]]


def costs(x, y):
    return 0.5 * np.maximum((x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None, :] - 2 * x @ y.transpose(0, 2, 1), 0)


def torch_costs(x, y):
    return 0.5 * ((x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None, :] - 2 * x @ y.transpose(1, 2)).clamp(min=0)


def numpy_kernel(x, y):
    """The plain loop u = a / K v, v = b / K'u, one problem after the other: a matrix of 256 x 256 stays in the cache."""
    out = []
    for a, b in zip(x, y):
        c = costs(a[None], b[None])[0]
        k = np.exp(-c / (EPSILON * c.mean()))
        v = np.ones(len(b), c.dtype)
        for _ in range(ITERATIONS):
            u = np.float32(1 / len(a)) / (k @ v)
            v = np.float32(1 / len(b)) / (u @ k)
        out.append(u @ (k * c) @ v)
    return np.array(out)


def torch_log(x, y):
    """The log-domain loop, all problems at once."""
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    c = torch_costs(x, y)
    eps = EPSILON * c.mean((1, 2), keepdim=True)
    m = -c / eps
    f, g = torch.zeros(c.shape[:2]), torch.zeros(c.shape[0], c.shape[2])
    for _ in range(ITERATIONS):
        f = -np.log(c.shape[1]) - torch.logsumexp(m + g[:, None, :], 2)
        g = -np.log(c.shape[2]) - torch.logsumexp(m + f[:, :, None], 1)
    return ((m + f[:, :, None] + g[:, None, :]).exp() * c).sum((1, 2)).numpy()


def pot(method, dtype):
    import ot

    def solve(x, y):
        out = []
        for a, b in zip(x.astype(dtype), y.astype(dtype)):
            c = costs(a[None], b[None])[0]
            w, z = (np.full(len(s), 1 / len(s), dtype) for s in (a, b))
            p = ot.sinkhorn(w, z, c, EPSILON * c.mean(), method=method, numItermax=ITERATIONS, stopThr=0.0, warn=False)
            out.append((p * c).sum())
        return np.array(out)
    return solve


def pot_batch(x, y):
    """POT's solver of many problems of one size (log domain)."""
    import ot
    c = torch_costs(torch.from_numpy(x), torch.from_numpy(y))
    # One regularisation for all problems there; their mean costs are nearly equal.
    reg = float(EPSILON * c.mean())
    return ot.solve_batch(c, reg, max_iter=ITERATIONS, tol=0.0).value_linear.numpy()


def geomloss(x, y):
    """One problem or many of one size; the schedule of eps is made as long as the others' iterations."""
    from geomloss import SamplesLoss
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    blur = float((EPSILON * torch_costs(x[:1], y[:1]).mean()).sqrt())
    diameter = float(torch.cat([x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])]).std(0).norm()) * 4
    scaling = (blur / diameter) ** (1 / ITERATIONS)
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, diameter=diameter, scaling=scaling, debias=False, backend="tensorized")
    return np.atleast_1d(loss(x, y).numpy())


def emd(x, y):
    import ot
    out = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64)):
        c = costs(a[None], b[None])[0]
        out.append(ot.emd2([], [], c, numItermax=10**7))
    return np.array(out)


SOLVERS = {
    "numpy kernel loop": ("kernel", numpy_kernel),
    "POT sinkhorn f32": ("kernel", lambda x, y: pot("sinkhorn", np.float32)(x, y)),
    "POT sinkhorn f64": ("kernel", lambda x, y: pot("sinkhorn", np.float64)(x, y)),
    "POT sinkhorn_log f32": ("log", lambda x, y: pot("sinkhorn_log", np.float32)(x, y)),
    "POT solve_batch": ("log", pot_batch),
    "torch logsumexp loop": ("log", torch_log),
    "geomloss tensorized": ("log", geomloss),
    "POT emd2 (exact)": ("exact", emd),
}


def main():
    import geomloss as geomloss_module
    import ot
    version = f"POT {ot.__version__}, geomloss {geomloss_module.__version__}, numpy {np.__version__}, torch {torch.__version__}"
    for problems, n, d in ((190, 256, 64), (1, 2000, 64)):
        case = f"{problems}x{n}x{n}/d{d}"
        if args.filter not in case:
            continue
        x, y = points(problems, n, d)
        for name, (kind, solver) in SOLVERS.items():
            row = {"peer": name, "case": f"transport/{case}", "variant": kind, "version": version}
            try:
                seconds = []
                for _ in range(args.rounds):
                    start = time.perf_counter()
                    value = solver(x, y)
                    seconds.append(time.perf_counter() - start)
                row["milliseconds"] = [round(1e3 * s, 3) for s in seconds]
                row["mean_cost"] = float(np.mean(value))
            except (AttributeError, TypeError, MemoryError) as error:
                row["failed"] = f"{type(error).__name__}: {error}"
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
