#!/usr/bin/env python3
"""Measures supernet and its peers side by side, in one run on one machine, and writes the samples as JSON.

    python3 benches/peers/run.py --out benches/results/2026-11-24-peers.json
    python3 benches/peers/run.py --filter train --out ...       only some cases; others in the file stay as they are
    python3 scripts/readme_tables.py                                            then renews the tables of the README

The peers: PyTorch and the transport libraries (a virtual environment of their own with the versions of requirements.txt), burn and candle (crates of
their own, with the versions of their Cargo.toml). A peer that cannot be had, say without network, is named on standard
error and in the result as missing; the others run. Rounds of ours and theirs alternate, so that a slow minute of the
machine hits both. `milliseconds` of a row holds the median of each round of ours, and every sample of a peer.
"""
import argparse, json, os, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TARGET = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
PEERS = os.path.join(TARGET, "peers")

# (kind, order, channels, layers, batch, steps of ours, steps of theirs)
STEPS = (("search", "first", 8, 5, 32, 20, 5), ("search", "first", 16, 8, 16, 15, 3),
         ("search", "first", 16, 8, 64, 6, 2), ("search", "second", 8, 5, 32, 10, 3),
         ("train", "", 36, 20, 96, 4, 2))
# Minutes after which a peer is given up: a compilation may take very long.
LIMIT = 15


def name_of(kind, order, c, layers, batch):
    return "/".join(filter(None, (kind, order, f"c{c}", f"l{layers}", f"b{batch}")))


class Peers:
    """What there is on this machine."""

    def __init__(self, wanted):
        self.missing = []
        self.ours = self.need("supernet", lambda: self.crate(ROOT, "supernet", TARGET, []))
        if self.ours is None:
            sys.exit("supernet itself does not build; see above")
        self.python = self.need("PyTorch", self.environment) if "pytorch" in wanted else None
        crate = lambda name: lambda: self.crate(os.path.join(HERE, name), f"{name}-layers", PEERS, ["--locked"])
        self.burn = self.need("burn", crate("burn")) if "burn" in wanted else None
        self.candle = self.need("candle", crate("candle")) if "candle" in wanted else None

    def need(self, name, make):
        try:
            return make()
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"\n!! {name} is missing: {error}\n!! Is there a network? Its rows will not be measured.\n",
                  file=sys.stderr)
            self.missing.append(name)
            return None

    def crate(self, folder, binary, target, flags):
        # Ours chooses its instructions at run time; these may use all that the machine has from the start.
        native = {} if folder == ROOT else {"RUSTFLAGS": "-C target-cpu=native"}
        subprocess.run(["cargo", "build", "--release", *flags, "--manifest-path", os.path.join(folder, "Cargo.toml"),
                        "--target-dir", target], check=True, env={**os.environ, **native})
        return os.path.join(target, "release", binary)

    def environment(self):
        given = os.environ.get("SUPERNET_PEERS_PYTHON")
        if given:
            subprocess.run([given, "-c", "import torch, numpy, safetensors, ot, geomloss"], check=True)
            return given
        python = os.path.join(PEERS, "venv", "bin", "python")
        if not os.path.exists(python):
            subprocess.run([sys.executable, "-m", "venv", os.path.join(PEERS, "venv")], check=True)
        requirements = os.path.join(HERE, "requirements.txt")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        return python


def rows_of(command):
    """The JSON rows that a command prints; none if it fails or takes too long."""
    print("+ " + " ".join(command[-12:]), file=sys.stderr)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60 * LIMIT, check=True)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    except subprocess.TimeoutExpired:
        return [{"failed": f"not done after {LIMIT} minutes"}]
    except subprocess.CalledProcessError as error:
        return [{"failed": f"exit status {error.returncode}"}]


def ours_step(peers, threads, kind, order, c, layers, batch, steps):
    command = [peers.ours, "bench", "step", "--json", "--threads", str(threads), "--channels", str(c), "--layers",
               str(layers), "--batch", str(batch), "--warmup", "1", "--steps", str(steps)]
    command += ["--derived", "--auxiliary", "0.4"] if kind == "train" else ["--order", order]
    report = rows_of(command)[0]
    if "failed" in report:
        return report, None
    case = report["cases"][0]
    row = {"milliseconds": [case["milliseconds"]], "peak_rss_bytes": report["peak_rss_bytes"],
           "gflops": report["gflops"]}
    return row, report["machine"]


def measure_steps(args, peers, add):
    for kind, order, c, layers, batch, ours, theirs in STEPS:
        case = name_of(kind, order, c, layers, batch)
        if args.filter not in case:
            continue
        variants = [("plain", "nchw"), ("plain", "nhwc")]
        if kind == "search":
            variants += [("lean", "nchw"), ("lean", "nhwc")]
        # Sixteen kinds of cells of the larger networks are not compiled within half an hour on two cores.
        if case.startswith("search/first/c8") and not args.no_compile:
            variants.append(("compiled", "nhwc"))
        for variant, layout in variants:
            row, machine = ours_step(peers, args.threads, kind, order, c, layers, batch, ours)
            add({"peer": "supernet", "case": case, "variant": ""}, row, machine)
            if peers.python:
                command = [peers.python, os.path.join(HERE, "pytorch.py"), kind, "--channels", str(c), "--layers",
                           str(layers), "--batch", str(batch), "--variant", variant, "--layout", layout, "--steps",
                           str(theirs), "--threads", str(args.threads)]
                command += ["--order", order] if order else []
                key = {"peer": "pytorch", "case": case, "variant": f"{variant} {layout}"}
                for row in rows_of(command):
                    add(key, row, None)


def measure_layers(args, peers, add):
    if "layer" not in args.filter and args.filter:
        return
    part = args.filter or "layer"
    for _ in range(2):
        for report in rows_of([peers.ours, "bench", "kernels", "--json", "--filter", part, "--threads",
                               str(args.threads)]):
            for case in report.get("cases", []):
                row = {"milliseconds": [case["milliseconds"]]}
                add({"peer": "supernet", "case": case["name"], "variant": ""}, row, report["machine"])
        commands = []
        if peers.python:
            commands += [[peers.python, os.path.join(HERE, "pytorch.py"), "layers", "--layout", layout, "--filter", part,
                          "--threads", str(args.threads)] for layout in ("nchw", "nhwc")]
        commands += [[binary, part] for binary in (peers.burn, peers.candle) if binary]
        for command in commands:
            for row in rows_of(command):
                if "case" in row:
                    add({"peer": row["peer"], "case": row["case"], "variant": row.get("variant", "")}, row, None)


def measure_transport(args, peers, add):
    """Whole solves; transport.py runs in the environment of PyTorch."""
    if args.filter and "transport" not in args.filter:
        return
    for _ in range(2):
        for report in rows_of([peers.ours, "bench", "transport", "--json", "--threads", str(args.threads)]):
            for case in report.get("cases", []):
                name, domain = case["name"].rsplit("/", 1)
                add({"peer": "supernet", "case": f"transport/{name}", "variant": domain},
                    {"milliseconds": [case["milliseconds"]]}, report["machine"])
        if peers.python:
            for row in rows_of([peers.python, os.path.join(HERE, "transport.py"), "--threads", str(args.threads),
                                "--rounds", "2"]):
                add({k: row.get(k, "") for k in ("peer", "case", "variant")}, row, None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="FILE", help="the result; cases measured again are replaced")
    parser.add_argument("--filter", default="", metavar="PART", help="only cases with this part in their names")
    parser.add_argument("--peers", default="pytorch,burn,candle", help="comma list [default: all]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes at C=8 L=5")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    peers = Peers(args.peers.split(","))
    result = {"bench": "peers", "machine": None, "missing": peers.missing, "rows": []}
    if os.path.exists(args.out):
        with open(args.out) as file:
            result["rows"] = json.load(file)["rows"]
    fresh = {}

    def add(key, row, machine):
        result["machine"] = machine or result["machine"]
        name = tuple(sorted(key.items()))
        if name not in fresh:
            kept = [r for r in result["rows"] if any(r.get(k) != v for k, v in key.items())]
            fresh[name] = dict(key, milliseconds=[])
            result["rows"] = kept + [fresh[name]]
        own = fresh[name]
        own["milliseconds"] += [round(ms, 4) for ms in row.get("milliseconds", [])]
        if "peak_rss_bytes" in row:
            own["peak_rss_bytes"] = max(own.get("peak_rss_bytes", 0), row["peak_rss_bytes"])
        own.update({k: row[k] for k in ("cannot", "failed", "version") if k in row})
        temporary = args.out + ".tmp"
        with open(temporary, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
        os.replace(temporary, args.out)

    if args.filter not in ("layer", "transport"):
        measure_steps(args, peers, add)
    measure_layers(args, peers, add)
    measure_transport(args, peers, add)
    print(f"{len(fresh)} rows in {args.out}")


if __name__ == "__main__":
    main()
