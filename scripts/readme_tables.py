#!/usr/bin/env python3
"""Writes the tables of the README from committed results, between the comments that mark them.

    python3 scripts/readme_tables.py [--check]        with --check: exit status 1 if the README differs
"""
import json, os, statistics, sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
README = os.path.join(ROOT, "README.md")
RESULTS = os.path.join(ROOT, "benches", "results")
# The newest results; the comment around a table names the one that it is made of.
PEERS, GROWTH = "2026-11-24-peers.json", "2026-11-24-growth.json"
EXPERIMENT = "2026-11-25-experiment.json"
KERNELS = "2026-11-25-kernels.json"
TRANSPORT = "2026-11-25-transport-peers.json"
STEP = "2026-11-25-step.json"


def title(case):
    kind, *rest = case.split("/")
    if kind == "search":
        order, c, layers, batch = rest
        return f"search, {order} order, C={c[1:]} L={layers[1:]} batch {batch[1:]}"
    c, layers, batch = rest
    return f"training of the derived network, C={c[1:]} L={layers[1:]} batch {batch[1:]}"


def median(row):
    return statistics.median(row["milliseconds"]) if row.get("milliseconds") else None


def number(ms):
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def gib(row):
    return f"{row['peak_rss_bytes'] / 2**30:.1f}" if "peak_rss_bytes" in row else "?"


def peers(result):
    rows = result["rows"]
    of = lambda case, peer: [r for r in rows if r["case"] == case and r["peer"] == peer and median(r)]
    cases = list(dict.fromkeys(r["case"] for r in rows if r["peer"] == "supernet"))
    versions = {r["version"] for r in rows if r["peer"] == "pytorch" and "version" in r}
    machine = result["machine"]
    out = [f"Medians in milliseconds on {machine['cores']} cores of an {machine['cpu']} ({machine['level']}), "
           f"{machine['threads']} threads, f32, {machine['date']}"
           + (f"; PyTorch {', '.join(sorted(versions))}" if versions else "") + ".", "",
           "| step | supernet | PyTorch NCHW | NHWC | lean NCHW | lean NHWC | compiled | best / supernet | memory, GiB |",
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    variants = ("plain nchw", "plain nhwc", "lean nchw", "lean nhwc", "compiled nhwc")
    for case in (c for c in cases if c.startswith(("search", "train"))):
        ours = of(case, "supernet")
        theirs = {r["variant"]: r for r in of(case, "pytorch")}
        if not ours or not theirs:
            continue
        best = min(theirs.values(), key=median)
        cells = [number(median(theirs[v])) if v in theirs else "–" for v in variants]
        ratio = median(best) / median(ours[0])
        out.append(f"| {title(case)} | **{number(median(ours[0]))}** | {' | '.join(cells)} | **{ratio:.1f}** | "
                   f"{gib(ours[0])} against {gib(best)} |")
    out += ["", "One layer, forward and backward with respect to input and weights:", "",
            "| layer, channels, images | supernet | PyTorch, best layout | burn | candle |", "| --- | --- | --- | --- | --- |"]
    for case in (c for c in cases if c.startswith("layer")):
        _, c, side, batch, name = case.split("/")
        cells = []
        for peer in ("pytorch", "burn", "candle"):
            found = of(case, peer)
            if found:
                cells.append(number(min(median(r) for r in found)))
            else:
                cannot = any("cannot" in r for r in rows if r["case"] == case and r["peer"] == peer)
                cells.append("cannot" if cannot else "–")
        ours = of(case, "supernet")
        if ours:
            out.append(f"| {name}, {c[1:]}, {batch[1:]} of {side} | **{number(median(ours[0]))}** | {' | '.join(cells)} |")
    return "\n".join(out)


def transport(result):
    rows = [r for r in result["rows"] if r["case"].startswith("transport") and median(r)]
    # Those that the peers were given too.
    cases = list(dict.fromkeys(r["case"] for r in rows if r["peer"] != "supernet"))
    machine = result["machine"]
    heads = []
    for case in cases:
        (problems, m, n), d = case.split("/")[1].split("x"), case.split("/d")[1]
        heads.append(f"{problems} problem{'s' * (problems != '1')} of {m} x {n} points, {d} dimensions")
    out = [f"Medians in milliseconds on {machine['cores']} cores of an {machine['cpu']} ({machine['level']}), f32 unless named; "
           f"{', '.join(sorted({r['version'] for r in rows if 'version' in r}))}. In brackets: how many times the time of supernet.", "",
           f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(cases)}"]
    for variant, name in (("log", "log domain"), ("kernel", "kernel domain"), ("exact", "exact")):
        here = [r for r in rows if r["variant"] == variant]
        best = {r["case"]: median(r) for r in here if r["peer"] == "supernet"}
        for peer in dict.fromkeys(r["peer"] for r in here):
            cells = []
            for case in cases:
                found = [median(r) for r in here if r["case"] == case and r["peer"] == peer]
                cell = number(found[0]) if found else "–"
                if peer == "supernet":
                    cell = f"**{cell}**"
                elif found and case in best:
                    cell += f" ({found[0] / best[case]:.1f})"
                cells.append(cell)
            out.append(f"| {name}: {peer.replace(' (exact)', '')} | {' | '.join(cells)} |")
    return "\n".join(out)


def growth(result):
    series = result["growth"]
    machine = series[0]["machine"]
    out = [f"How the first-order step grows around C=16 L=8 batch 64 on 32x32x3, milliseconds on {machine['cores']} cores of "
           f"an {machine['cpu']} ({machine['level']}), {machine['date']}:", "",
           "| growing | values | time, ms | exponent of time | of work | of memory | GFLOP/s |",
           "| --- | --- | --- | --- | --- | --- | --- |"]
    for one in series:
        each = lambda values: ", ".join(values)
        out.append(f"| {one['grow']} | {each(str(p['value']) for p in one['points'])} | "
                   f"{each(number(c['milliseconds']) for c in one['cases'])} | {one['time']['exponent']:.2f} | "
                   f"{one['work']['exponent']:.2f} | {one['memory']['exponent']:.2f} | "
                   f"{each(format(p['gflops'], '.0f') for p in one['points'])} |")
    return "\n".join(out)


# Ops that no network records: they run by their reference, to check the fused ones.
ELEMENTARY = {"relu", "relu_backward", "depthwise", "depthwise_backward", "batch_norm", "batch_norm_backward", "scale",
              "scale_backward"}


def kernels(result):
    """Shares of the roofline and gain of a second thread, by op, of the cases that are long enough to be cut in two."""
    machine, ceilings = result["machine"], result["ceilings"]
    copies = {c["bytes"] >> 20: c["gigabytes_per_second"] for c in ceilings["copy"]}
    out = [f"Kernels on {machine['cores']} cores of an {machine['cpu']} ({machine['level']}), {machine['date']}: cases of 50 "
           f"microseconds and more. Ceilings on {machine['threads']} threads: {ceilings['gflops']:.0f} GFLOP/s of multiply-adds "
           f"({ceilings['gflops_one']:.0f} on one), copies at {copies[1]:.0f} GB/s in 1 MiB, {copies[16]:.0f} in 16 MiB, "
           f"{copies[256]:.0f} in 256 MiB.", "",
           "| op | cases | median share of its ceiling | lowest | highest | two threads against one, median |",
           "| --- | --- | --- | --- | --- | --- |"]
    long = [case for case in result["cases"] if case["milliseconds"] >= 0.05 and case["op"] not in ELEMENTARY]
    for op in dict.fromkeys(case["op"] for case in long):
        own = [case for case in long if case["op"] == op]
        shares = [100 * case["roofline_share"] for case in own]
        gain = statistics.median(case["milliseconds_one"] / case["milliseconds"] for case in own)
        out.append(f"| {op} | {len(own)} | {statistics.median(shares):.0f} % | {min(shares):.0f} % | {max(shares):.0f} % | "
                   f"{gain:.2f} |")
    return "\n".join(out)


def profile(result):
    machine, peak = result["machine"], result["ceilings"]["gflops"]
    out = [f"The first-order step C=16 L=8 batch 64 took {number(result['milliseconds'])} ms there ({result['gflops']:.0f} of "
           f"{peak:.0f} GFLOP/s, {100 * result['gflops'] / peak:.0f} %; {result['peak_rss_bytes'] / 2**30:.1f} GiB), of it by op, with the "
           "least time that arithmetic and traffic allow:", "",
           "| op | launches | ms | share | GFLOP/s | GB/s | floor, ms | gap, ms |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in result["profile"]:
        if row["time_share"] >= 0.005:
            out.append(f"| {row['op']} | {row['count']} | {row['milliseconds']:.1f} | {100 * row['time_share']:.1f} % | "
                       f"{row['gflops']:.0f} | {row['gigabytes_per_second']:.0f} | {row['floor_milliseconds']:.1f} | "
                       f"{row['milliseconds'] - row['floor_milliseconds']:.1f} |")
    return "\n".join(out)


NAMES = {"scratch": "scratch", "nearest": "nearest source (OT)", "multi": "multi-dataset supernet", "random": "random source",
         "largest": "largest source", "weights_only": "nearest, weights only", "alphas_only": "nearest, alphas only",
         "finetune": "fine-tuned network of the nearest"}


def experiment(result):
    protocol = result["protocol"]
    interval = lambda s: f"{100 * s['mean']:+.2f} [{100 * s['interval'][0]:+.2f}, {100 * s['interval'][1]:+.2f}]"
    spread = lambda s: f"{100 * s['mean']:.2f} ± {100 * s['deviation']:.2f}"
    cell = lambda text: text if text else "–"
    out = [f"{len(protocol['data'])} targets, {len(result['seeds'])} seeds, images of {protocol['size'][0]}x{protocol['size'][1]}, "
           f"C={protocol['space'][0]} L={protocol['space'][1]}, {protocol['epochs']} epochs of search in every arm, then "
           f"{protocol['training_epochs']} of training with C={protocol['training_channels']}; "
           f"{result['finished'][0]} of {result['finished'][1]} jobs.", "",
           "| arm | test accuracy, % | gain over scratch, points [95 %] | targets gained | epochs to scratch's best | sooner | "
           "never there | regret, points |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        epochs, speedup, regret = row.get("epochs"), row.get("speedup"), row.get("regret")
        own = row["policy"] == "scratch"
        out.append(f"| {NAMES[row['policy']]} | {spread(row['test_accuracy'])} | {'–' if own else interval(row['gain'])} | "
                   f"{'–' if own else str(row['positive']) + ' of ' + str(len(row['targets']))} | "
                   f"{cell(epochs and format(epochs['mean'], '.1f'))} | {cell(speedup and format(speedup, '.1f') + ' x')} | "
                   f"{cell(epochs and str(len(row['never'])))} | {cell(regret and format(100 * regret['mean'], '.2f'))} |")
    targets = [r["target"] for r in result["relations"]]
    out += ["", f"| test accuracy, % | {' | '.join(targets)} |", f"| --- |{' --- |' * len(targets)}"]
    for row in result["rows"]:
        of = {t["target"]: spread(t["test_accuracy"]) for t in row["targets"]}
        out.append(f"| {NAMES[row['policy']]} | {' | '.join(of[t] for t in targets)} |")
    rho = lambda s: f"{s['mean']:+.2f} ± {s['deviation']:.2f}"
    seconds = sum(p["seconds"] for p in result["pretraining"])
    joint = sum(p["seconds"] for p in result["pretraining"] if p["name"].startswith("without-"))
    out += ["", f"Rank correlation of distance with gain {rho(result['with_gain'])} (-1: the nearer the better), with epochs "
            f"{rho(result['with_epochs'])} (+1: the nearer the sooner), over targets. Pretraining took {seconds / 60:.0f} minutes of "
            f"one thread, of it {joint / 60:.0f} for the supernets of five datasets."]
    return "\n".join(out)


TABLES = [
    ("steps and layers", PEERS, peers),
    ("growth of the step", GROWTH, growth),
    ("kernels", KERNELS, kernels),
    ("profile", STEP, profile),
    ("transport", TRANSPORT, transport),
    ("transfer", EXPERIMENT, experiment),
]


def main():
    with open(README) as file:
        readme = file.read()
    renewed = readme
    for what, name, table in TABLES:
        begin, end = f"<!-- {what}, from {name} -->", f"<!-- end of {what} -->"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            sys.exit(f"README.md needs one `{begin}` and one `{end}`")
        with open(os.path.join(RESULTS, name)) as file:
            text = table(json.load(file))
        start, rest = renewed.split(begin)
        renewed = f"{start}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    if "--check" in sys.argv and renewed != readme:
        sys.exit("the tables of README.md are not those of benches/results: run scripts/readme_tables.py")
    if "--check" not in sys.argv:
        with open(README, "w") as file:
            file.write(renewed)


if __name__ == "__main__":
    main()
