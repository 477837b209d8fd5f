#!/usr/bin/env bash
# Runs one stage on a machine with an NVIDIA GPU, from the folder that gpu_bundle.sh made; no Rust needed. Each stage ends in
# less than ten minutes and writes JSON into $OUT.
# usage: OUT=FOLDER gpu_run.sh STAGE
#   parity         every case of the kernels, in f32 and in tf32, and whole steps against PyTorch's values, on the device
#   sanitize       compute-sanitizer over the small cases: TOOLS="memcheck racecheck initcheck"
#   step           whole steps, first and second order, with profiles: CHANNELS=16 LAYERS=8 BATCHES="64 256"
#                  PRECISIONS="f32 tf32 bf16"; in f32 once more without overlapping kernels
#   kernels        every kernel at the shapes of real searches, or those whose names have a part of FILTER=a,b
#   sinkhorn       transport: the usual problems and SHAPES="1x5000x64 1x10000x64 1x50000x64"
#   search SPEC    a search of EPOCHS=50 epochs, SPEC such as cifar:cifar-10-batches-bin
#   transfer SPEC SOURCE   pretrains on SOURCE for SOURCE_EPOCHS=50, and searches for SPEC from there in EPOCHS=17
#   peer [ARGS]    the PyTorch script of the bundle, with its arguments
# SECONDS_AT_MOST=570 ends a stage; DEVICE=cuda names another device.
set -euo pipefail
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage
stage=$1
shift
bundle=$(cd "$(dirname "$0")" && pwd)
out=${OUT:?name a folder for the results: OUT=FOLDER}
mkdir -p "$out"
out=$(cd "$out" && pwd)
device=${DEVICE:-cuda}
limit=${SECONDS_AT_MOST:-570}
supernet=$bundle/supernet
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
deadline=$((SECONDS + limit))

# What is left of the stage's time, for `timeout`.
left() {
    local rest=$((deadline - SECONDS))
    echo $((rest > 1 ? rest : 1))
}

# PyTorch brings an NVRTC, which is not in the loader's path.
if [ -z "${SUPERNET_NVRTC:-}" ]; then
    found=$(python3 - <<'PYTHON' || true
import glob, site, sys
folders = site.getsitepackages() + [site.getusersitepackages()] + sys.path
files = [f for folder in folders for f in glob.glob(folder + "/nvidia/*/lib/libnvrtc.so.1[23]")]
print(sorted(files, key=lambda file: file[-2:])[-1] if files else "")
PYTHON
    )
    # The device's own search comes first where it finds one.
    if [ -n "$found" ] && "$supernet" devices | grep --quiet 'no NVRTC'; then
        export SUPERNET_NVRTC=$found
    fi
fi
# Compiled kernels are kept between stages.
export SUPERNET_CACHE=${SUPERNET_CACHE:-$bundle/cache}

echo "machine: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi')"
"$supernet" devices --json >"$out/devices.json"

# Writes $out/NAME.json: the stage's own JSON in `result`, with the machine, the commit and the status around it.
finish() { # name, status, file with JSON or lines of text
    python3 - "$out/$1.json" "$bundle/commit" "$@" <<'PYTHON'
import json, subprocess, sys, time
target, commit, name, status, source = sys.argv[1:6]
text = open(source).read()
try:
    result = json.loads(text)
except ValueError:
    result = text.splitlines()[-400:]
asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv,noheader"]
try:
    gpu = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
except OSError:
    gpu = None
made = {"stage": name, "status": int(status), "commit": open(commit).read().strip(), "gpu": gpu,
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "result": result}
json.dump(made, open(target, "w"), indent=1)
PYTHON
    echo "$1: status $2, $out/$1.json"
    [ "$2" -eq 0 ] || failed=1
}
failed=0

# Runs a command within the stage's time and keeps its standard output as the result of NAME.
measure() { # name, command
    local name=$1 status=0
    shift
    echo "$name: $*"
    timeout "$(left)" "$@" >"$work/$name" 2>"$work/$name.err" || status=$?
    tail -n 3 "$work/$name.err" >&2
    if [ "$status" -ne 0 ]; then cat "$work/$name.err" >>"$work/$name"; fi
    finish "$name" "$status" "$work/$name"
}

# Keeps what is worth keeping of a run folder.
keep() { # folder, name
    for file in genotype.json metrics.jsonl config.toml transfer.json; do
        [ ! -e "$work/$1/$file" ] || cp "$work/$1/$file" "$out/$2-$file"
    done
}

# The tests find their fixtures below this folder.
export CARGO_MANIFEST_DIR=$bundle SUPERNET_REQUIRE_CUDA=1

case $stage in
parity)
    measure parity "$bundle/suite" --test-threads=1 --nocapture gpu::cuda_device::kernels gpu::steps::cuda
    ;;
sanitize)
    sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | tail -n 1 || true)
    [ -n "$sanitizer" ] || { echo "there is no compute-sanitizer: it comes with CUDA's toolkit" >&2; exit 1; }
    small=(--exact gpu::cuda_device::small_kernels_agree_with_the_reference --test-threads=1 --nocapture)
    # Compiled outside of the sanitizer first, which slows the host down as well.
    measure small "$bundle/suite" "${small[@]}"
    for tool in ${TOOLS:-memcheck racecheck initcheck}; do
        measure "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$bundle/suite" "${small[@]}"
    done
    ;;
step)
    for batch in ${BATCHES:-64 256}; do
        for order in first second; do
            for precision in ${PRECISIONS:-f32 tf32 bf16}; do
                name=step-b$batch-$order
                [ "$precision" = f32 ] || name=$name-$precision
                step=(bench step --device "$device" --precision "$precision" --channels "${CHANNELS:-16}" --layers "${LAYERS:-8}"
                    --batch "$batch" --order "$order" --size "${SIZE:-32x32x3}" --warmup "${WARMUP:-5}" --steps "${STEPS:-30}" --json)
                measure "$name" "$supernet" "${step[@]}" --profile
                [ "$precision" != f32 ] || measure "$name-no-overlap" "$supernet" "${step[@]}" --no-overlap
            done
        done
    done
    ;;
kernels)
    measure kernels "$supernet" bench kernels --device "$device" --filter "${FILTER:-/}" ${QUICK:+--quick} --json
    ;;
sinkhorn)
    measure sinkhorn "$supernet" bench transport --device "$device" ${QUICK:+--quick} --json
    for shape in ${SHAPES-1x5000x64 1x10000x64 1x50000x64}; do
        measure "sinkhorn-$shape" "$supernet" bench transport --device "$device" --shape "$shape" --quick --json
    done
    ;;
search)
    [ $# -ge 1 ] || usage
    spec=$1
    shift
    measure search "$supernet" search --data "$spec" --device "$device" --epochs "${EPOCHS:-50}" \
        --channels "${CHANNELS:-16}" --layers "${LAYERS:-8}" --batch "${BATCH:-64}" --out "$work/run" --json "$@"
    keep run search
    ;;
transfer)
    [ $# -ge 2 ] || usage
    spec=$1
    source=$2
    shift 2
    geometry=(--device "$device" --channels "${CHANNELS:-16}" --layers "${LAYERS:-8}" --batch "${BATCH:-64}" --size "${IMAGES:-32x32}")
    measure pretrain "$supernet" pretrain --data "$source" "${geometry[@]}" --epochs "${SOURCE_EPOCHS:-50}" --out "$work/source" \
        --zoo "$work/zoo" --name source --json
    keep source pretrain
    measure transfer "$supernet" search --data "$spec" "${geometry[@]}" --epochs "${EPOCHS:-17}" --zoo "$work/zoo" \
        --warm-start source --out "$work/run" --json "$@"
    keep run transfer
    ;;
peer)
    [ -e "$bundle/peer.py" ] || { echo "the bundle was made without PEER" >&2; exit 1; }
    measure peer python3 "$bundle/peer.py" "$@"
    ;;
*)
    usage
    ;;
esac
exit "$failed"
