#!/usr/bin/env bash
# Makes the zoo that comes with the program: a supernet for every built-in dataset but fashion, which `supernet demo` takes
# as a dataset that the zoo has never seen, one for all of them together, and the points by which distances are taken (of the
# trunk of the latter). About an hour on two cores; any number of threads gives the same bits.
# usage: scripts/make_zoo.sh SUPERNET_BINARY OUT, where OUT/zoo is the result
set -euo pipefail
supernet=$1 out=$2
common=(--size 28x28 --channels 8 --layers 5 --batch 32 --alpha-learning-rate 0.003 --crop-padding 2 --flip false --seed 1)
entry() { # name, epochs, licence, datasets
    local name=$1 epochs=$2 licence=$3 data=()
    shift 3
    for dataset in "$@"; do data+=(--data "builtin:$dataset"); done
    "$supernet" pretrain "${data[@]}" "${common[@]}" --epochs "$epochs" --out "$out/$name" --name "$name" --zoo "$out/all-points"
    "$supernet" zoo --zoo "$out/zoo" add "$out/$name/checkpoint.safetensors" --name "$name" --licence "$licence" --no-coreset
}
entry mnist 30 "MIT" mnist
entry animal 30 "MIT" animal
entry scripts 30 "OFL-1.1" scripts
entry emoji 30 "Apache-2.0, CC-BY-4.0" emoji
entry textures 30 "CC0-1.0, public domain, CC-BY-2.0" textures
entry all 15 "those of its datasets: see data/builtin/LICENSES" mnist animal scripts emoji textures
"$supernet" zoo --zoo "$out/zoo" embed --embedder zoo --trunk all
