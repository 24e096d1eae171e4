#!/usr/bin/env bash
# The API reference is made without a warning and has what its first page names.
#
# usage: test_reference.sh SOURCE_ROOT BUILD_ROOT
set -euo pipefail
source_root=$1
if ! doxygen --version >/dev/null 2>&1; then
    echo "no doxygen here: tools/setup installs it" >&2
    exit 77
fi
work=$(mktemp -d "$2/reference-XXXXXX")
trap 'rm -rf "$work"' EXIT

cd "$source_root"
{ cat include/Doxyfile && echo "OUTPUT_DIRECTORY = $work"; } | doxygen -
# Doxygen makes links of the names that it knows, and is silent about the others.
names=$(grep -o '<a [^>]*>safering::' "$work/html/index.html" | wc -l)
if [[ $names -eq 0 ]] || sed -E 's|<a [^>]*>[^<]*</a>||g' "$work/html/index.html" | grep 'safering::'; then
    echo "names on the first page are not in the reference" >&2
    exit 1
fi
