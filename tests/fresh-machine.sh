#!/bin/sh
# Runs a command in the committed state of this checkout, on a new minimal Debian.
#
#   tests/fresh-machine.sh make test
#
# The machine has debootstrap's minbase, make, git, ca-certificates and this machine's Rust
# toolchain. It is a folder in $TMPDIR (default /var/tmp) with mounts and processes of its own and
# this machine's network, and is removed at the end. Needs root, debootstrap, a Debian, and a Rust
# toolchain in a folder of its own, as rustup installs it. Exit code: the command's.
set -eu
cd "$(dirname "$0")/.."
PATH=$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin

if [ $# = 0 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
fail() {
    echo "tests/fresh-machine.sh: $1" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || fail "only root can make a machine: sudo --preserve-env=HOME $0 $*"
toolchain=$(rustc --print sysroot) || fail "no Rust toolchain on PATH"
[ -x "$toolchain/bin/cargo" ] && [ "$toolchain" != /usr ] ||
    fail "the Rust toolchain in $toolchain has no folder of its own: use rustup's"

root=$(mktemp -d "${TMPDIR:-/var/tmp}/fresh-machine-XXXXXX")
machine=
trap 'rm -rf --one-file-system "$root"' EXIT
trap '[ -z "$machine" ] || kill -KILL "$machine"; exit 130' INT TERM

tests/debian.sh "$root" ca-certificates,git,make
# Tests also run as users other than root.
chmod 755 "$root"
git clone -q . "$root/src"
# How this machine reaches the network: name servers, certificate authorities, cargo's registries.
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" || true
mkdir -p "$root/opt/rust" "$root/root/.cargo" "$root/old"
! [ -e "${CARGO_HOME:-$HOME/.cargo}/config.toml" ] ||
    cp "${CARGO_HOME:-$HOME/.cargo}/config.toml" "$root/root/.cargo/"

export root toolchain
# In a chroot the tests could not make namespaces, and would be skipped. unshare runs in the
# background, because it passes no signal on; when it ends, every process of the machine is killed.
unshare --mount --pid --fork --kill-child --propagation private sh -euc '
    mount --bind "$root" "$root"
    mount --bind -o ro "$toolchain" "$root/opt/rust"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/run"
    cd "$root"
    pivot_root . old
    cd /src
    umount -l /old
    exec env -i HOME=/root LANG=C.UTF-8 TERM="${TERM-dumb}" CI="${CI-}" \
        PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
' sh "$@" &
machine=$!
wait "$machine"
