#!/usr/bin/env python3
"""Writes the tables of the README from a result of run.py, between the comments that mark them.

    python3 benches/peers/table.py benches/results/2026-11-24-peers.json
    python3 benches/peers/table.py --check benches/results/2026-11-24-peers.json     exit status 1 if the README differs
"""
import json, os, statistics, sys

README = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "README.md")
BEGIN, END = "<!-- from benches/peers/table.py -->", "<!-- end -->"
LAYERS = ("dil_conv_3x3", "dil_conv_5x5", "relu_pointwise_batch_norm", "max_pool_3x3", "batch_norm")


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


def tables(result):
    rows = result["rows"]
    of = lambda case, peer: [r for r in rows if r["case"] == case and r["peer"] == peer and median(r)]
    cases = list(dict.fromkeys(r["case"] for r in rows if r["peer"] == "supernet"))
    versions = {r["version"] for r in rows if "version" in r}
    machine = result["machine"]
    out = [f"Medians in milliseconds on {machine['cores']} cores of an {machine['cpu']} ({machine['level']}), "
           f"{machine['threads']} threads, f32, {machine['date']}"
           + (f"; PyTorch {', '.join(sorted(versions))}" if versions else "") + ".", "",
           "| step | supernet | PyTorch NCHW | NHWC | lean NCHW | lean NHWC | compiled | best / supernet | memory, GiB |",
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    variants = ("plain nchw", "plain nhwc", "lean nchw", "lean nhwc", "compiled nhwc")
    for case in (c for c in cases if not c.startswith("layer")):
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


def main():
    check = "--check" in sys.argv
    files = [a for a in sys.argv[1:] if not a.startswith("-")]
    if len(files) != 1:
        sys.exit(__doc__)
    with open(files[0]) as file:
        text = tables(json.load(file))
    with open(README) as file:
        readme = file.read()
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        sys.exit(f"README.md needs one `{BEGIN}` and one `{END}`")
    start, rest = readme.split(BEGIN)
    renewed = f"{start}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"
    if check and renewed != readme:
        sys.exit(f"the tables of README.md are not those of {files[0]}: run benches/peers/table.py {files[0]}")
    if not check:
        with open(README, "w") as file:
            file.write(renewed)


if __name__ == "__main__":
    main()
