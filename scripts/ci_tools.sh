#!/usr/bin/env bash
# Installs what tests/gpu needs on a Debian or Ubuntu machine without a GPU: a C++ compiler (g++ brings its sanitizers'
# libraries), Mesa's lavapipe (a Vulkan device on the CPU), and NVRTC (NVIDIA's compiler, a wheel on PyPI; never part of this
# repository). Run it as often as you like, as root or with sudo. Evaluate what it prints to point the tests at NVRTC and to
# make missing tools an error:
#     eval "$(scripts/ci_tools.sh)"
set -euo pipefail

nvrtc_version=13.0.88
cache="${SUPERNET_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/supernet-tools}"
nvrtc="$cache/nvrtc-$nvrtc_version"

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

{
    packages=()
    for package in g++ libvulkan1 mesa-vulkan-drivers python3-pip unzip; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep --quiet '^installed$' \
            || packages+=("$package")
    done
    # Any pip will do, not only the system's.
    if python3 -m pip --version >/dev/null 2>&1; then packages=("${packages[@]/python3-pip/}"); fi
    read -r -a packages <<<"${packages[*]:-}"
    if [ "${#packages[@]}" -gt 0 ]; then
        as_root apt-get update
        as_root apt-get install --yes --no-install-recommends "${packages[@]}"
    fi

    if ! compgen -G "$nvrtc/nvidia/*/lib/libnvrtc.so.13" >/dev/null; then
        unpacked="$(mktemp --directory)"
        trap 'rm -rf "$unpacked"' EXIT
        python3 -m pip download --no-deps --dest "$unpacked" "nvidia-cuda-nvrtc==$nvrtc_version"
        mkdir -p "$nvrtc"
        unzip -q -o "$unpacked"/*.whl 'nvidia/*' -x '*.alt.so*' -d "$nvrtc"
    fi
} >&2

echo "export SUPERNET_NVRTC='$(compgen -G "$nvrtc/nvidia/*/lib/libnvrtc.so.13")'"
echo "export SUPERNET_REQUIRE_NVRTC=1"
echo "export SUPERNET_REQUIRE_WGPU=1"
echo "export SUPERNET_REQUIRE_ASAN=1"
if [ -n "${GITHUB_ENV:-}" ]; then
    {
        echo "SUPERNET_NVRTC=$(compgen -G "$nvrtc/nvidia/*/lib/libnvrtc.so.13")"
        echo "SUPERNET_REQUIRE_NVRTC=1"
        echo "SUPERNET_REQUIRE_WGPU=1"
        echo "SUPERNET_REQUIRE_ASAN=1"
    } >>"$GITHUB_ENV"
fi
