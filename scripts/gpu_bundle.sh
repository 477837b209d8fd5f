#!/usr/bin/env bash
# Makes target/gpu-bundle, a folder that a machine with an NVIDIA GPU but without Rust can run: the binary, the test binary with
# its fixtures, gpu_run.sh, the peers' scripts, and PEER, a script of PyTorch to be measured on the GPU. At most 64 MiB.
# usage: [PEER=FILE.py] scripts/gpu_bundle.sh [release|dev]
set -euo pipefail
profile=${1:-release}
cd "$(dirname "$0")/.."
bundle=target/gpu-bundle
most_mib=64

echo "building: profile $profile, all features"
cargo build --profile "$profile" --all-features --bin supernet
# Cargo tells where it put what it built.
executable() { # kind of target, name
    python3 -c '
import json, sys
for line in sys.stdin:
    built = json.loads(line)
    target = built.get("target", {})
    if built.get("executable") and target["name"] == sys.argv[2] and sys.argv[1] in target["kind"]:
        print(built["executable"])
' "$1" "$2" | tail -n 1
}
supernet=$(cargo build --profile "$profile" --all-features --bin supernet --message-format json 2>/dev/null \
    | executable bin supernet)
suite=$(cargo test --profile "$profile" --all-features --test suite --no-run --message-format json | executable test suite)

rm -rf "$bundle"
mkdir -p "$bundle/tests/fixtures"
strip -o "$bundle/supernet" "$supernet"
strip -o "$bundle/suite" "$suite"
for fixture in supernet second_order derived; do
    cp "tests/fixtures/$fixture.safetensors" "$bundle/tests/fixtures/"
done
cp scripts/gpu_run.sh "$bundle/"
mkdir -p "$bundle/benches/peers"
cp benches/peers/*.py "$bundle/benches/peers/"
cp tests/fixtures/make_fixtures.py "$bundle/tests/fixtures/"
if [ -n "${PEER:-}" ]; then cp "$PEER" "$bundle/peer.py"; fi
git rev-parse HEAD >"$bundle/commit" 2>/dev/null || echo unknown >"$bundle/commit"

mib=$(du --summarize --apparent-size --block-size=1M "$bundle" | cut -f 1)
du --apparent-size --human-readable "$bundle"/* | sort --human-numeric-sort
if [ "$mib" -gt "$most_mib" ]; then
    echo "$bundle has $mib MiB, more than $most_mib" >&2
    exit 1
fi
# For machines to which little can be sent at once.
tar --create --xz --file "$bundle.tar.xz" --directory target gpu-bundle
echo "$bundle.tar.xz: $(du --apparent-size --human-readable "$bundle.tar.xz" | cut -f 1)"
echo "$bundle: $mib MiB; there: OUT=results $bundle/gpu_run.sh parity"
