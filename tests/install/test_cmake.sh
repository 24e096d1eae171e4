#!/usr/bin/env bash
# Installs the library into an empty prefix and builds users against it with CMake's find_package: with the shared
# library, with the static one, and with a version that is not there.
#
# usage: test_cmake.sh SOURCE_ROOT BUILD_ROOT MESON COMPILER...
set -euo pipefail
source_root=$1 build_root=$2 meson=$3
shift 3
export CXX=$*

if ! cmake --version >/dev/null 2>&1; then
    echo "no cmake here: tools/setup installs it" >&2
    exit 77
fi

work=$(mktemp -d "$build_root/cmake-XXXXXX")
trap 'rm -rf "$work"' EXIT

step() { echo "== $*" >&2; }

consumer() { # name, options of cmake
    cmake -G Ninja -S "$source_root/tests/install/cmake" -B "$work/$1" -DCMAKE_PREFIX_PATH="$prefix" "${@:2}" >&2
    cmake --build "$work/$1" >&2
    "$work/$1/consumer" "$work/$1/tensors.safetensors"
}

step install
"$meson" install -C "$build_root" --no-rebuild --destdir "$work/stage" --quiet
config=$(find "$work/stage" -name saferingConfig.cmake)
# The tree is not where it was to be installed: nothing in it may depend on that.
mv "$work/stage" "$work/elsewhere"
config=$work/elsewhere${config#"$work/stage"}
prefix=${config%/lib*}

step "user of the shared library"
consumer shared

step "user of the static library"
consumer static -Dsafering_USE_STATIC_LIBS=ON
if ldd "$work/static/consumer" | grep -q libsafering; then
    echo "the static user wants the shared library" >&2
    exit 1
fi

step "a version that is not there"
for version in 0.0 0.2 1.0; do
    mkdir -p "$work/other/$version"
    sed "s/safering 0.1/safering $version/; s|\.\./consumer|$source_root/tests/install/consumer|" \
        "$source_root/tests/install/cmake/CMakeLists.txt" >"$work/other/$version/CMakeLists.txt"
    if cmake -G Ninja -S "$work/other/$version" -B "$work/other/$version/build" -DCMAKE_PREFIX_PATH="$prefix" \
        >"$work/log" 2>&1; then
        echo "find_package took version $version" >&2
        exit 1
    fi
    grep -q "0.1.0" "$work/log" || { cat "$work/log" >&2; exit 1; }
done
