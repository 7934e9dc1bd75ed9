#!/bin/sh
# Installs the Debian packages that building or testing needs, and only those that are missing.
#
#   tests/setup.sh build     what `cargo build` needs
#   tests/setup.sh test      that, and what the tests start: etcd, ZooKeeper, dig, curl, node, …;
#                            also fetches the Go modules if there is a Go toolchain
#   tests/setup.sh bench     that, and the servers that only `make bench` compares with: knot, nsd,
#                            haproxy, …
#   tests/setup.sh systemd   what `cargo build` needs, and what boots a Debian: debootstrap,
#                            systemd-nspawn
#   tests/setup.sh monitoring   what the tests start, and Prometheus
#   tests/setup.sh fuzz      what `cargo build` and cargo-fuzz need
set -eu
cd "$(dirname "$0")/.."

# Pairs of a program or file and the package that has it. etcd-client's protocol files import
# protobuf's own.
build="cc:gcc /usr/include/stdio.h:libc6-dev protoc:protobuf-compiler
      google/protobuf/descriptor.proto:libprotobuf-dev"
test="etcd:etcd-server etcdctl:etcd-client dig:bind9-dnsutils curl:curl ip:iproute2
      unshare:util-linux mount:mount valgrind:valgrind getent:libc-bin python3:python3
      openssl:openssl kdig:knot-dnsutils node:nodejs musl-gcc:musl-tools dnsmasq:dnsmasq-base
      unbound:unbound dbus-daemon:dbus-daemon strace:strace chattr:e2fsprogs setpriv:util-linux
      faketime:faketime systemd-analyze:systemd
      systemd/libsystemd-shared:libsystemd-shared java:default-jre-headless
      /usr/share/java/zookeeper.jar:libzookeeper-java nft:nftables"
bench="knotd:knot nsd:nsd haproxy:haproxy socat:socat"
monitoring="prometheus:prometheus promtool:prometheus"
systemd="debootstrap:debootstrap systemd-nspawn:systemd-container ip:iproute2
         unshare:util-linux mount:mount"

case "${1-}" in
build) wanted=$build ;;
fuzz) wanted="$build c++:g++" ;;
test) wanted="$build $test" ;;
bench) wanted="$build $test $bench" ;;
monitoring) wanted="$build $test $monitoring" ;;
systemd) wanted="$build $systemd" ;;
*)
    echo "usage: tests/setup.sh build|test|bench|monitoring|systemd|fuzz" >&2
    exit 2
    ;;
esac

# `ip` is in /usr/sbin, which is not on every PATH.
PATH=$PATH:/usr/sbin:/sbin

is_there() {
    case "$1" in
    google/*) # Debian's, or beside a protoc from elsewhere.
        [ -e "/usr/include/$1" ] ||
            [ -e "$(dirname "$(command -v protoc || echo /)")/../include/$1" ] ;;
    systemd/*) # The tests unpack a systemd-resolved; this package pulls in its libraries.
        for file in /usr/lib/*/"$1"-*.so /usr/lib/"$1"-*.so; do
            [ ! -e "$file" ] || return 0
        done
        return 1 ;;
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing=
for pair in $wanted; do
    is_there "${pair%%:*}" || missing="${missing:+$missing }${pair##*:}"
done

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "Missing, and there is no apt-get to install it with: $missing" >&2
        exit 1
    fi
    sudo=
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "Missing: $missing. As root, run: apt-get install $missing" >&2
            exit 1
        fi
        sudo=sudo
    fi
    echo "Installing with apt-get${sudo:+ (by sudo)}: $missing" >&2

    # The tests start their own etcd. Debian starts the daemon of a package it installs, unless this
    # file forbids that.
    policy=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
        $sudo chmod 755 "$policy"
    fi
    trap '[ -z "$policy" ] || $sudo rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM

    # Recommended packages might take part in the machine's own name resolution.
    install() {
        # shellcheck disable=SC2086 # a list of words
        $sudo env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends $missing
    }
    install || { $sudo apt-get update -qq && install; }
    if [ -d /run/systemd/system ]; then
        for daemon in etcd-server:etcd unbound:unbound knot:knot nsd:nsd haproxy:haproxy \
            prometheus:prometheus; do
            case " $missing " in
            *" ${daemon%%:*} "*)
                echo "Disabling Debian's ${daemon##*:}.service: the tests start their own." >&2
                $sudo systemctl disable --quiet "${daemon##*:}.service" || true
                ;;
            esac
        done
    fi
fi

if [ "$1" != build ] && command -v go >/dev/null 2>&1; then
    (cd tests/goframe && go mod download)
fi
