#!/usr/bin/env bash
# Runs stages on a machine with an NVIDIA GPU, from the folder that gpu_bundle.sh made; no Rust needed. Everything that is
# measured writes JSON into $OUT as soon as it is done; what fails, or runs out of its time, does not stop what follows.
# usage: OUT=FOLDER gpu_run.sh STAGE
#   first          parity, step, sinkhorn, and every EVERY=10th case of sanitize, each within its share of the time
#   second SPEC    a search of EPOCHS=50 epochs, or as many as fit into its share (an epoch is timed first), then kernels of
#                  FILTER=/c16/32x32/b64/ and, if the bundle has one, the peer
#   parity         every case of the kernels, in f32, tf32 and bf16, and whole steps against PyTorch's values, on the device
#   sanitize       compute-sanitizer over the small cases, or every EVERY-th: TOOLS="memcheck racecheck initcheck"
#   step           whole steps, first and second order, with profiles: CHANNELS=16 LAYERS=8 BATCHES="64 256"
#                  PRECISIONS="f32 tf32 bf16"; in f32 once more without overlapping kernels
#   kernels        every kernel at the shapes of real searches, or those whose names have a part of FILTER=a,b, in PRECISIONS
#   sinkhorn       transport: the usual problems (not with USUAL=) and SHAPES="1x5000x64 1x10000x64 1x50000x64", with costs that are stored and
#                  with costs that are recomputed
#   search SPEC    a search of EPOCHS=50 epochs, SPEC such as cifar:cifar-10-batches-bin
#   transfer SPEC SOURCE   pretrains on SOURCE for SOURCE_EPOCHS=50, and searches for SPEC from there in EPOCHS=17
#   peer [ARGS]    the PyTorch script of the bundle, with its arguments
# SECONDS_AT_MOST=560 ends it all; DEVICE=cuda names another device. summary.json says what was done.
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
limit=${SECONDS_AT_MOST:-560}
supernet=$bundle/supernet
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
# The script's own seconds count from its start. A stage ends at `deadline`; `granted` is where the shares so far end.
deadline=$limit
granted=0

# Seconds that are left of the stage's time.
left() { echo $((deadline - SECONDS)); }

# Runs a stage within a percentage of all time, and whatever those before it left of theirs.
share() { # percentage, stage
    granted=$((granted + $1 * limit / 100))
    deadline=$((granted < limit ? granted : limit))
    shift
    "$@" || failed=1
    deadline=$limit
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

# Writes $out/NAME.json: the stage's own JSON in `result`, with the machine, the commit and the status around it (124: out of
# time), and what else is to be said in `note`. What was done is in summary.json.
finish() { # name, status, file with JSON or lines of text, seconds
    python3 - "$out/$1.json" "$bundle/commit" "$@" "$out/summary.json" "${note:-}" <<'PYTHON'
import json, subprocess, sys, time
target, commit, name, status, source, seconds, summary, note = sys.argv[1:9]
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
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "seconds": int(seconds), "note": note or None, "result": result}
json.dump(made, open(target, "w"), indent=1)
try:
    done = json.load(open(summary))
except (OSError, ValueError):
    done = {}
done[name] = {"status": int(status), "seconds": int(seconds)}
json.dump(done, open(summary, "w"), indent=1)
PYTHON
    echo "$1: status $2 after $4 s, $out/$1.json"
    if [ "$2" -eq 0 ]; then done_well+=("$1"); else failed=1 done_badly+=("$1 ($2)"); fi
}
failed=0
done_well=()
done_badly=()

# Runs a command within the stage's time and keeps its standard output as the result of NAME. An interrupt lets a search save
# itself.
measure() { # name, command
    local name=$1 status=0 start=$SECONDS
    shift
    : >"$work/$name.err"
    if [ "$(left)" -lt 2 ]; then
        echo "no time was left for it" >"$work/$name"
        status=124
    else
        echo "$name: $*"
        timeout --signal=INT --kill-after=5 "$(left)" "$@" >"$work/$name" 2>"$work/$name.err" || status=$?
    fi
    tail -n 3 "$work/$name.err" >&2
    if [ "$status" -ne 0 ]; then cat "$work/$name.err" >>"$work/$name"; fi
    finish "$name" "$status" "$work/$name" $((SECONDS - start))
}

# Keeps what is worth keeping of a run folder.
keep() { # folder, name
    for file in genotype.json metrics.jsonl config.toml transfer.json; do
        [ ! -e "$work/$1/$file" ] || cp "$work/$1/$file" "$out/$2-$file"
    done
}

# The tests find their fixtures below this folder.
export CARGO_MANIFEST_DIR=$bundle SUPERNET_REQUIRE_CUDA=1

run_parity() {
    measure parity "$bundle/suite" --test-threads=1 --nocapture gpu::cuda_device::kernels gpu::steps::cuda
}

run_sanitize() {
    local sanitizer tool
    sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | tail -n 1 || true)
    if [ -z "$sanitizer" ]; then
        echo "there is no compute-sanitizer: it comes with CUDA's toolkit" | tee "$work/sanitize" >&2
        finish sanitize 127 "$work/sanitize" 0
        return
    fi
    local small=(--exact gpu::cuda_device::small_kernels_agree_with_the_reference --test-threads=1 --nocapture)
    export SUPERNET_EVERY=${EVERY:-1}
    # Compiled outside of the sanitizer first, which slows the host down as well.
    measure small "$bundle/suite" "${small[@]}"
    for tool in ${TOOLS:-memcheck racecheck initcheck}; do
        measure "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$bundle/suite" "${small[@]}"
    done
}

run_step() {
    local batch order precision name
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
}

run_kernels() {
    local precision name
    for precision in ${PRECISIONS:-f32 tf32 bf16}; do
        name=kernels
        [ "$precision" = f32 ] || name=$name-$precision
        measure "$name" "$supernet" bench kernels --device "$device" --precision "$precision" --filter "${FILTER:-/}" \
            ${QUICK:+--quick} --json
    done
}

run_sinkhorn() {
    local shape
    [ -z "${USUAL-yes}" ] || measure sinkhorn "$supernet" bench transport --device "$device" ${QUICK:+--quick} --json
    for shape in ${SHAPES-1x5000x64 1x10000x64 1x50000x64}; do
        measure "sinkhorn-$shape" "$supernet" bench transport --device "$device" --shape "$shape" --quick --json
    done
}

searching() { # name, epochs, folder, SPEC and other arguments
    local name=$1 epochs=$2 folder=$3 spec=$4
    shift 4
    measure "$name" "$supernet" search --data "$spec" --device "$device" --epochs "$epochs" --channels "${CHANNELS:-16}" \
        --layers "${LAYERS:-8}" --batch "${BATCH:-64}" --out "$work/$folder" --json "$@"
    keep "$folder" "$name"
}

run_search() { searching search "${EPOCHS:-50}" run "$@"; }

# A search of as many epochs as fit into the time; learning rates fall to their end whatever their number.
run_fitting_search() {
    local asked=${EPOCHS:-50} epochs
    searching search-epoch 1 epoch "$@"
    # A tenth is left over, and some seconds for what stands around the epochs.
    epochs=$(python3 - "$work/epoch/metrics.jsonl" "$(left)" "$asked" <<'PYTHON'
import json, sys
metrics, seconds, asked = sys.argv[1:4]
try:
    epoch = json.loads(open(metrics).readlines()[-1])["seconds"]
    print(max(1, min(int(asked), int((int(seconds) - 10) / (1.1 * epoch)))))
except (OSError, ValueError, KeyError, IndexError):
    print(asked)
PYTHON
    )
    note="$epochs of $asked epochs, as many as fit into $(left) s"
    echo "search: $note"
    searching search "$epochs" run "$@"
    note=
}

run_transfer() { # SPEC SOURCE
    local spec=$1 source=$2
    shift 2
    local geometry=(--device "$device" --channels "${CHANNELS:-16}" --layers "${LAYERS:-8}" --batch "${BATCH:-64}" --size "${IMAGES:-32x32}")
    measure pretrain "$supernet" pretrain --data "$source" "${geometry[@]}" --epochs "${SOURCE_EPOCHS:-50}" --out "$work/source" \
        --zoo "$work/zoo" --name source --json
    keep source pretrain
    measure transfer "$supernet" search --data "$spec" "${geometry[@]}" --epochs "${EPOCHS:-17}" --zoo "$work/zoo" \
        --warm-start source --out "$work/run" --json "$@"
    keep run transfer
}

run_peer() { measure peer python3 "$bundle/peer.py" "$@"; }

case $stage in
first)
    share 35 run_parity
    share 25 run_step
    share 28 run_sinkhorn
    EVERY=${EVERY:-10} share 12 run_sanitize
    ;;
second)
    [ $# -ge 1 ] || usage
    share 65 run_fitting_search "$@"
    FILTER=${FILTER:-/c16/32x32/b64/} share 25 run_kernels
    if [ -e "$bundle/peer.py" ]; then share 10 run_peer; fi
    ;;
parity | sanitize | step | kernels | sinkhorn)
    "run_$stage" || failed=1
    ;;
search)
    [ $# -ge 1 ] || usage
    run_search "$@"
    ;;
transfer)
    [ $# -ge 2 ] || usage
    run_transfer "$@"
    ;;
peer)
    [ -e "$bundle/peer.py" ] || { echo "the bundle was made without PEER" >&2; exit 1; }
    run_peer "$@"
    ;;
*)
    usage
    ;;
esac
joined() { if [ $# -eq 0 ]; then echo none; else printf '%s, ' "$@" | sed 's/, $//'; fi; }
echo "summary: $SECONDS of $limit s; done: $(joined "${done_well[@]}"); failed or out of time: $(joined "${done_badly[@]}")"
exit "$failed"
