#!/bin/sh
# Builds and runs all tests, several programs at once: most of the time, tests wait.
#
#   tests/all.sh
#
# Prints the output of each test program when the program ends, and at the end the programs that
# failed. The output of a program that is still running is in target/test-output.
set -eu
cd "$(dirname "$0")/.."

output=target/test-output

# Runs one program, for xargs. Prints its name and result.
if [ "${1-}" = --run ]; then
    name=${2##*/}
    result=passed
    "$2" >"$output/$name" 2>&1 || result=FAILED
    echo "$name $result"
    exit
fi

# Programs at once, and tests at once in each of them. These keep two cores busy; more of them would
# only delay each other.
programs=4
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"

# Programs that start first, because they take longest.
first="install_owners battery install_systemd properties polaris_registry install etcd_login"

# Programs that run by themselves at the end, because they limit the time of an answer.
alone="forwarded_records install_pages routes server_connections upstream_order"

rm -rf "$output"
mkdir -p "$output"
cargo test --locked --no-run --message-format=json-render-diagnostics >"$output/messages.json"
cargo test --locked --doc
sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p' \
    "$output/messages.json" >"$output/programs"
for name in $first $alone; do
    grep -q "/$name-[0-9a-f]*$" "$output/programs" || {
        echo "There is no test program $name, which tests/all.sh names." >&2
        exit 1
    }
done

# Usage: pattern NAME…
pattern() {
    echo "/($(echo "$*" | tr ' ' '|'))-[0-9a-f]*$"
}

# Usage: run PROGRAMS_AT_ONCE <PATHS
run() {
    xargs -d '\n' -n 1 -P "$1" tests/all.sh --run | while read -r name result; do
        echo "$name" "$result" >>"$output/results"
        printf '\n     Running %s\n' "$name"
        cat "$output/$name"
    done
}

# shellcheck disable=SC2086 # lists of words
{
    grep -E "$(pattern $first)" "$output/programs"
    grep -Ev "$(pattern $first $alone)" "$output/programs"
} | run "$programs"
# shellcheck disable=SC2086
grep -E "$(pattern $alone)" "$output/programs" | run 1

passed=$(grep -c ' passed$' "$output/results" || true)
total=$(wc -l <"$output/programs")
echo
echo "$passed of $total test programs passed."
if [ "$passed" != "$total" ]; then
    sed -n 's/^\(.*\) FAILED$/  failed: \1/p' "$output/results"
    exit 1
fi
