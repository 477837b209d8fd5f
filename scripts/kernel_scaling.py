#!/usr/bin/env python3
"""Joins two results of the same kernels, on one thread and on more, into one file for the README's table.

    supernet bench kernels --threads 1 --json > one.json
    supernet bench kernels --threads 2 --json > two.json
    python3 scripts/kernel_scaling.py one.json two.json > benches/results/DATE-kernels.json
"""
import json, sys


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    one, more = (json.load(open(name)) for name in sys.argv[1:])
    alone = {case["name"]: case for case in one["cases"]}
    rows = []
    for case in more["cases"]:
        if case["passed"] and case["name"] in alone:
            kept = ("name", "op", "flops", "bytes", "milliseconds", "roofline_share")
            rows.append({key: case[key] for key in kept} | {"milliseconds_one": alone[case["name"]]["milliseconds"]})
    print(json.dumps({"machine": more["machine"], "ceilings": more["ceilings"], "failed": more["failed"], "cases": rows}))


if __name__ == "__main__":
    main()
