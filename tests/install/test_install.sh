#!/usr/bin/env bash
# Installs the library into an empty prefix and builds users against it, as an embedder would: through
# pkg-config with the shared and with the static library, and as a meson subproject. Needs no network.
#
# usage: test_install.sh SOURCE_ROOT BUILD_ROOT MESON COMPILER...
set -euo pipefail
source_root=$1 build_root=$2 meson=$3
shift 3
compiler=("$@")

work=$(mktemp -d "$build_root/install-XXXXXX")
trap 'rm -rf "$work"' EXIT
consumer=$source_root/tests/install/consumer.cpp

step() { echo "== $*" >&2; }

run() { # executable
    "$1" "$work/tensors.safetensors"
    rm "$work/tensors.safetensors"
}

step install
"$meson" install -C "$build_root" --no-rebuild --destdir "$work/stage" --quiet
pc=$(find "$work/stage" -name safering.pc)
prefix=$(sed -n 's/^prefix=//p' "$pc")
# The staged tree is not where it says it is; everything else in the file is used as installed.
sed -i "s|^prefix=.*|prefix=$work/stage$prefix|" "$pc"
export PKG_CONFIG_PATH=${pc%/*}
library_directory=$(pkg-config --variable=libdir safering)

# Built only where the option `tools` is on.
[[ ! -e $work/stage$prefix/bin/safering ]] || "$work/stage$prefix/bin/safering" --version

# The commands that docs/cpp.md gives an embedder, with this build's compiler.
documented() { # what sets the command apart
    local command
    command=$(sed -n "s/ *#.*//; /^g++ .*pkg-config $1/p" "$source_root/docs/cpp.md")
    [[ -n $command ]] || { echo "docs/cpp.md has no command with pkg-config $1" >&2; exit 1; }
    (cd "$work/embedder" && g++() { "${compiler[@]}" -Wall -Werror "$@"; } && eval "$command")
}
mkdir "$work/embedder"
cp "$consumer" "$work/embedder/trainer.cpp"

step "user of the shared library"
documented "--cflags"
LD_LIBRARY_PATH=$library_directory run "$work/embedder/trainer"

step "user of the static library"
# -lsafering prefers a shared library as long as there is one.
rm "$library_directory"/libsafering.so*
documented "--static"
if ldd "$work/embedder/trainer" | grep -q safering; then
    echo "the static user wants the shared library" >&2
    exit 1
fi
run "$work/embedder/trainer"

step "meson subproject"
mkdir -p "$work/project/subprojects"
cp "$source_root/tests/install/subproject/meson.build" "$consumer" "$work/project"
ln -s "$source_root" "$work/project/subprojects/safering"
# Unoptimised, and several sources at a time: whether it builds and links is what is asked.
CXX="${compiler[*]}" "$meson" setup "$work/project/build" "$work/project" --wrap-mode=nodownload \
    --force-fallback-for=safering --buildtype=plain --unity=subprojects --unity-size=8 -Dsafering:werror=true >&2
"$meson" compile -C "$work/project/build" >&2
run "$work/project/build/consumer"
