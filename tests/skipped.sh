#!/bin/sh
# Prints the tests that could not run on this machine, from the folder that they wrote to. With
# CI=true it fails if a test was skipped for another reason than a missing Go or Java toolchain, a
# kernel feature that the machine does not offer, or a Consul that only `make registries` builds
# (ALLOWED_IN_CI in tests/support/mod.rs).
set -eu
folder=$1
count=$(find "$folder" -type f | wc -l)
if [ "$count" = 0 ]; then
    echo "No test was skipped."
    exit 0
fi
echo
echo "=== SKIPPED: $count test(s) could not run on this machine ==="
bad=0
for file in "$folder"/*; do
    echo "  $(basename "$file"): $(cat "$file")"
    case "$(cat "$file")" in
    "no go on PATH"* | "no java on PATH"* | "no kernel feature"* | "no consul was built"*) ;;
    *) bad=1 ;;
    esac
done
if [ "${CI-}" = true ] && [ "$bad" = 1 ]; then
    echo "With CI=true only a missing Go or Java toolchain, kernel feature or Consul may skip a test." >&2
    exit 1
fi
