#!/usr/bin/env bash
# Searches of a few epochs from the supernet of all other datasets and from nothing, and the training of what they find, on
# the zoos of an experiment (`supernet experiment --out EXPERIMENT`). One JSON line a search on standard output, as in
# benches/results/*-short-searches.jsonl.
#     scripts/short_searches.sh EXPERIMENT OUT [EPOCHS [SEEDS...]]
# ARMS, by default `multi scratch`, names the starts: scratch; multi, the supernet of all others; temper and reset, the same
# with its alphas scaled by a half or set to nothing.
set -euo pipefail
experiment=$1 out=$2 epochs=${3:-6}
seeds=("${@:4}")
[ "${#seeds[@]}" -gt 0 ] || seeds=(0 1 2)
common=(--size 16x16 --layers 5 --batch 32 --crop-padding 2 --flip false --threads 1)
for seed in "${seeds[@]}"; do
    for target in fashion mnist animal scripts textures emoji; do
        for arm in ${ARMS:-multi scratch}; do
            case $arm in
                scratch) start=(--warm-start none) ;;
                multi) start=(--warm-start joint) ;;
                temper | reset) start=(--warm-start joint --transfer-alphas "$arm") ;;
                *) echo "ARMS: unknown start $arm" >&2 && exit 2 ;;
            esac
            run="$out/$target-$seed-$arm"
            supernet search --data "builtin:$target" "${common[@]}" --channels 8 --alpha-learning-rate 0.003 --epochs "$epochs" \
                --seed "$seed" --zoo "$experiment/zoos/without-$target" "${start[@]}" --out "$run" --json >/dev/null
            supernet train --genotype "$run/genotype.json" --data "builtin:$target" "${common[@]}" --channels 12 --epochs 20 \
                --auxiliary 0 --drop-path 0.1 --cutout 4 --seed "$seed" --out "$run-net" --json >"$run-net.json"
            python3 - "$run" "$target" "$seed" "$arm" <<'P'
import json, sys
run, target, seed, arm = sys.argv[1:]
records = [json.loads(line) for line in open(run + "/metrics.jsonl")]
print(json.dumps({"target": target, "seed": int(seed), "arm": arm,
                  "epochs": len(records), "accuracies": [r["validation_accuracy"] for r in records],
                  "test_accuracy": json.load(open(run + "-net.json"))["test_accuracy"]}))
P
        done
    done
done
