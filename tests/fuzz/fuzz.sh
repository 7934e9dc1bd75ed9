#!/bin/sh
# Runs the fuzz targets with cargo-fuzz, on the stable toolchain and without a sanitizer.
#
#   tests/fuzz/fuzz.sh run SECONDS [TARGET…]   runs each target (default: all) for this long; writes
#                                              inputs that reach new code to target/fuzz/corpus, and
#                                              inputs that fail to tests/fuzz/artifacts
#   tests/fuzz/fuzz.sh keep [TARGET…]          minimizes the corpus into tests/fuzz/corpus

# A sanitizer needs a nightly toolchain, and safe code panics on a fault anyway.
set -eu
cd "$(dirname "$0")/../.."

command=${1-}
case "$command" in
run) seconds=$2 && shift 2 ;;
keep) shift ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

options="--fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none"
[ $# -gt 0 ] || set -- $(cargo fuzz list --fuzz-dir tests/fuzz)
for target; do
    found=target/fuzz/corpus/$target
    kept=tests/fuzz/corpus/$target
    mkdir -p "$found" "$kept"
    case "$command" in
    run)
        echo "$target:"
        # shellcheck disable=SC2086 # the options are words
        cargo fuzz run $options "$target" "$found" "$kept" -- \
            -max_total_time="$seconds" -timeout=20 -max_len=4096 -print_final_stats=1
        ;;
    keep)
        rm -rf "$kept.new" && mkdir -p "$kept.new"
        # shellcheck disable=SC2086
        cargo fuzz run $options "$target" "$kept.new" "$kept" "$found" -- \
            -merge=1 -max_len=4096
        rm -rf "$kept" && mv "$kept.new" "$kept"
        ;;
    esac
done
