#!/bin/sh
# Runs the fuzz targets, by cargo-fuzz on the stable toolchain.
#
#   tests/fuzz/fuzz.sh run SECONDS [TARGET…]   each target (all, where none is named) for so long; what reaches new code goes to
#                                              target/fuzz/corpus, what breaks something to tests/fuzz/artifacts
#   tests/fuzz/fuzz.sh keep [TARGET…]          the fewest inputs that reach all that was reached become tests/fuzz/corpus
#
# No sanitizer: this is safe code, in which what goes wrong panics, and those need a nightly toolchain.
set -eu
cd "$(dirname "$0")/../.."

command=${1-}
case "$command" in
run) seconds=$2 && shift 2 ;;
keep) shift ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
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
        cargo fuzz run $options "$target" "$found" "$kept" -- -max_total_time="$seconds" -timeout=20 -max_len=4096 -print_final_stats=1
        ;;
    keep)
        rm -rf "$kept.new" && mkdir -p "$kept.new"
        # shellcheck disable=SC2086
        cargo fuzz run $options "$target" "$kept.new" "$kept" "$found" -- -merge=1 -max_len=4096
        rm -rf "$kept" && mv "$kept.new" "$kept"
        ;;
    esac
done
