#!/usr/bin/env bash
# The experiment of the README: search on builtin:fashion with three seeds, train each genotype, and train three random
# genotypes with the same budget. One line of JSON a run goes to OUT/results.jsonl; finished runs are not repeated.
# usage: scripts/fashion_experiment.sh SUPERNET_BINARY OUT
set -euo pipefail
supernet=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
train() { # name, genotype, seed
    [ -e "$out/$1/checkpoint.safetensors" ] && return
    "$supernet" train --genotype "$2" --data builtin:fashion --channels 12 --layers 5 --epochs 40 --batch 32 \
        --seed "$3" --auxiliary 0 --drop-path 0.1 --cutout 6 --crop-padding 2 --out "$out/$1" --json > "$out/$1.json"
    python3 -c "import json; r = json.load(open('$out/$1.json')); print(json.dumps({'run': '$1', 'seed': $3} | r))" \
        >> "$out/results.jsonl"
}
for seed in 1 2 3; do
    if [ ! -e "$out/search-$seed/done" ]; then
        "$supernet" search --data builtin:fashion --channels 8 --layers 5 --epochs 10 --batch 32 --seed "$seed" \
            --crop-padding 2 --out "$out/search-$seed" --json > "$out/search-$seed.json"
        python3 -c "import json; r = json.load(open('$out/search-$seed.json')); print(json.dumps({'run': 'search-$seed', 'seed': $seed} | r))" \
            >> "$out/results.jsonl"
        touch "$out/search-$seed/done"
    fi
    train "searched-$seed" "$out/search-$seed/genotype.json" "$seed"
    python3 "$here/random_genotype.py" "$seed" > "$out/random-$seed-genotype.json"
    train "random-$seed" "$out/random-$seed-genotype.json" "$seed"
done
