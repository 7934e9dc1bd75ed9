//! The keys that do not belong to a kind of registry.

use super::key::{Key, keys};

keys! { GENERAL:
    LISTEN = "" "listen" List "ADDR:PORT" "addresses with port" r#"["127.0.0.1:5300"]"#
        "Listen on these addresses, over UDP and TCP; non-loopback addresses require `allow`. \
         `0.0.0.0` and `[::]` mean every address of the machine, including addresses added later.";
    ALLOW = "" "allow" List "CIDR" "networks, such as `10.0.0.0/8`" "[]"
        "Accept queries from these networks, in addition to loopback; other clients get REFUSED.";
    REGISTRY = "" "registry" List "URL"
        "`etcd://host:port[,host:port]`, `consul://host:port[,host:port]`, \
         `zookeeper://host:port[,host:port]/root`, `nacos://host:port[,host:port]`, \
         `polaris://host:port[,host:port]`, `file:///dir`" "[]"
        => "GoFrame's `gsvc` in the temp directory, if root or the server's user owns it"
        "Follow these registries. To give a registry its own settings, such as a user, replace \
         this list with one section `[registry.NAME]` per registry in the file.";
    MERGE = "" "merge" Text "union|first" "`union` or `first`" r#""union""#
        "If several registries have a service, serve the instances of all of them, without \
         duplicate endpoints (`union`), or only those of the registry configured first (`first`).";
    ZONE = "" "zone" List "NAME" "domain names" r#"["svc"]"#
        "Serve these zones, each with all services. SRV targets and PTR names are in the first \
         zone.";
    DEPLOYMENT = "" "deployment" Text "NAME" "" r#""default""#
        "Assume this GoFrame deployment if a name omits it.";
    NAMESPACE = "" "namespace" Text "NAME" "" r#""default""#
        "Assume this GoFrame namespace if a name omits it.";
    HEADS = "" "heads" List "HEAD" "" r#"["service", "services"]"#
        "Read registry keys that start with one of these segments. GoFrame has written `service` \
         since v2.3.3 and wrote `services` before.";
    VERSION_FALLBACK = "" "version-fallback" Bool "BOOL" "" "true"
        "Answer with all versions of a service if it has no instance of version `latest`.";
    ANSWERS = "" "answers" TextOrNumber "all|fit|N" "`all`, `fit` or 1 to 65535" r#""all""#
        "Records per answer. `all`: all that fit; sets TC if some do not. `fit`: all that fit, \
         without TC. N: at most N. `1` spreads the load of clients that sort addresses.";
    TTL = "" "ttl" Duration "DURATION" "whole seconds, up to 1day" r#""5s""#
        "TTL of positive answers.";
    NEGATIVE_TTL = "" "negative-ttl" Duration "DURATION" "whole seconds, up to 1day" r#""1s""#
        "TTL of negative answers, for names and types that do not exist (RFC 2308).";
    DOCKER0 = "" "docker0" Text "drop|keep" "`drop` or `keep`" r#""drop""#
        "Ignore (`drop`) or serve (`keep`) an endpoint at 172.17.0.1, the default bridge of every \
         Docker host, if the service has the same port at another address.";
    REMOVAL_GRACE = "" "removal-grace" Duration "DURATION" "up to 1h; `0s` turns it off" r#""12s""#
        "Keep instances this long after a mass removal, so that programs can register again after \
         a registry outage.";
    MAX_INSTANCES_PER_SERVICE = "" "max-instances-per-service" Number "N" "instances, 1 to 21845"
        "10000"
        "Limit on instances per service in each registry; further ones are rejected.";
    MAX_KEYS = "" "max-keys" Number "N" "keys, 1 to 268435455" "2000000"
        "Limit on keys per registry; further ones are rejected.";
    TCP_CONNECTIONS = "" "tcp-connections" Number "N" "connections, 1 to 65535" "4096"
        "Limit on open connections over TCP, TLS and QUIC together; at most half of the open-file \
         limit (RLIMIT_NOFILE). At the limit, a new connection replaces one that is idle or \
         stalled.";
    TCP_CONNECTIONS_PER_SOURCE = "" "tcp-connections-per-source" Number "N"
        "connections, 1 to 65535" "1024"
        "Limit on open connections of one client address.";
    TCP_CONNECTIONS_PER_LOOPBACK_SOURCE = "" "tcp-connections-per-loopback-source" Number "N"
        "connections, 1 to 65535" "3072"
        "Limit on open connections of one loopback address, which all programs of the machine may \
         share.";
    TCP_IDLE_TIMEOUT = "" "tcp-idle-timeout" Duration "DURATION" "1s to 1h" r#""10s""#
        "Close a connection after this long without a query, or sooner while more than half of \
         `tcp-connections` are open.";
    UPSTREAM = "" "upstream" List "UPSTREAM"
        "`ADDR[:PORT]`, `tcp://ADDR[:PORT]`, `tls://ADDR[:PORT][#NAME]`, \
         `https://ADDR[:PORT]/PATH[#NAME]`, `system`, `off`, or `DOMAIN=` and one of the first four"
        r#"["system"]"#
        "Forward names outside the served zones to these upstreams. `system`: the system's name \
         servers, followed as they change. `off` (alone): refuse such names. `DOMAIN=ADDR`: an \
         upstream for one domain; if only such entries exist, other names use `system`.";
    UPSTREAM_ORDER = "" "upstream-order" Text "ORDER" "`strict` or `fastest`" r#""""#
        => "`strict` for `DOMAIN=` entries and a resolv.conf without `options rotate`, else \
            `fastest`"
        "Order in which upstreams are queried. `strict`: as listed; a later upstream is queried \
         once every earlier one has failed, is dead, or has been silent for 400 ms. `fastest`: \
         shortest round-trip time first.";
    UPSTREAM_CA_FILE = "" "upstream-ca-file" Text "FILE" "PEM file" r#""""#
        => "the system's trust store"
        "Trust these CA certificates for upstreams over TLS and HTTPS.";
    UPSTREAM_RANDOM_CASE = "" "upstream-random-case" Bool "BOOL" "" "false"
        "Randomize the case of query names to upstreams (0x20), and require responses to preserve \
         it. This makes forgery harder, but some old servers do not preserve it.";
    FORWARD_SINGLE_LABEL = "" "forward-single-label" Bool "BOOL" "" "false"
        "Also forward A and AAAA queries for single-label names, such as `printer`, to upstreams \
         with public addresses. If off, only upstreams with private addresses get these queries; \
         without such an upstream, the response is NXDOMAIN. Queries of other types are always \
         forwarded.";
    CACHE_SIZE = "" "cache-size" Size "SIZE" "up to 64GiB; `0` turns it off" r#""32MiB""#
        "Limit the memory of the upstream cache.";
    SERVE_STALE = "" "serve-stale" Duration "DURATION" "up to 30days; `0s` turns it off" r#""1day""#
        "Serve stale data for this long after its TTL expired, while no upstream responds (RFC \
         8767).";
    REBINDING_GUARD = "" "rebinding-guard" Bool "BOOL" "" "false"
        "Withhold upstream responses with private or loopback addresses, to prevent DNS rebinding.";
    REBINDING_ALLOW = "" "rebinding-allow" List "NAME" "domain names" "[]"
        "Exempt these domains from `rebinding-guard`. Domains with a `DOMAIN=` entry under \
         `upstream` are always exempt.";
    FORWARD_OPCODES = "" "forward-opcodes" Bool "BOOL" "" "false"
        "Forward messages with opcodes other than QUERY, such as NOTIFY and UPDATE. If off, they \
         get NOTIMP.";
    ADMIN_LISTEN = "" "admin-listen" Text "ADDR:PORT|off" "loopback address with port, or `off`"
        r#""127.0.0.1:5380""#
        "Serve metrics, health and the JSON interface over HTTP on this address, in addition to \
         the socket in the runtime directory.";
    RUNTIME_DIR = "" "runtime-dir" Text "DIR" "directory" r#""""#
        => "`state-dir` if set, else $RUNTIME_DIRECTORY (set by systemd), else /run/svcdns for \
            root, else $XDG_RUNTIME_DIR/svcdns, else svcdns-UID in the temp directory"
        "Directory of the server's socket, by which commands find the server.";
    STATE_DIR = "" "state-dir" Text "DIR" "directory" r#""""#
        => "$STATE_DIRECTORY (set by systemd), else /var/lib/svcdns for root, else \
            $XDG_STATE_HOME/svcdns, else ~/.local/state/svcdns"
        "Directory of the data kept across restarts. If set, also the default of `runtime-dir`.";
    SNAPSHOT = "" "snapshot" Bool "BOOL" "" "true"
        "Save the keys of each registry with servers to the state directory, and answer from them \
         if svcdns starts while the registry is unreachable.";
    MAX_STALE = "" "max-stale" Duration "DURATION" "1m to 365days" r#""7days""#
        "Do not answer from a snapshot that is older than this when svcdns starts.";
    LOG = "" "log" Text "FILTER"
        "level (`error` to `trace`), or per module: `info,svcdns::upstream=debug`"
        r#""info""#
        "Filter log messages on standard error. A level without a module applies to svcdns only; \
         libraries then log errors only.";
    LOG_QUERIES = "" "log-queries" Number "N" "queries, from 1; `0` turns it off" "0"
        "Log every Nth query of each thread at level `info`, with client, name, transport and \
         result.";
    TLS_LISTEN = "tls" "listen" List "ADDR[:PORT]" "addresses, with port 853 unless specified" "[]"
        "Listen on these addresses for DNS over TLS. Requires `cert-file` and `key-file`; \
         non-loopback addresses also require `allow`.";
    TLS_QUIC_LISTEN = "tls" "quic-listen" List "ADDR[:PORT]"
        "addresses, with port 853 unless specified" "[]"
        "Listen on these addresses for DNS over QUIC. Requires `cert-file` and `key-file`; \
         non-loopback addresses also require `allow`.";
    TLS_CERT_FILE = "tls" "cert-file" Text "FILE" "PEM file" r#""""#
        "Certificate of the TLS and QUIC listeners, followed by its intermediate certificates. \
         svcdns reloads it when the file changes.";
    TLS_KEY_FILE = "tls" "key-file" Text "FILE" "PEM file" r#""""#
        "Private key of the certificate.";
    BRIDGE_ENABLED = "bridge" "enabled" Bool "BOOL" "" "false"
        "Give each bridged service a loopback address, and carry connections of this machine to \
         that address to an instance, whatever its port.";
    BRIDGE_POOL = "bridge" "pool" Text "CIDR"
        "network within 127.0.0.0/8, at most /28, without 127.0.0.0/24 and 127.255.255.255"
        r#""127.83.0.0/16""#
        "Take the addresses of bridged services from this network.";
    BRIDGE_PORTS = "bridge" "ports" NumberList "PORT" "ports, 1 to 65535" "[80, 443]"
        "Ports that lead to the first port of each registration: 80 to those with protocol `http`, \
         443 to those with `https`, or `http` where nothing is `https`; any other one to all. \
         Further ports lead to the endpoints with that port.";
    BRIDGE_PROTOCOLS = "bridge" "protocols" List "PROTOCOL" "values of the metadata `protocol`"
        r#"["http", "https"]"#
        "Bridge services with one of these protocols; `tcp` stands for registrations without one.";
    BRIDGE_INCLUDE = "bridge" "include" List "PATTERN" "names without the zone; `*` is any text"
        "[]" => "every name"
        "Bridge only names that match one of these patterns.";
    BRIDGE_EXCLUDE = "bridge" "exclude" List "PATTERN" "names without the zone; `*` is any text"
        "[]"
        "Bridge no name that matches one of these patterns.";
    BRIDGE_NAMESPACES = "bridge" "namespaces" List "NAME" "" "[]" => "every namespace"
        "Bridge only services in these namespaces.";
    BRIDGE_BIND = "bridge" "bind" Bool "BOOL" "" "false"
        "Bind `bridge.ports` at each address instead of redirecting the pool with nftables. Each \
         of these ports can then not be bound at 0.0.0.0 by a program started later.";
    BRIDGE_PROXY_PROTOCOL = "bridge" "proxy-protocol" Bool "BOOL" "" "false"
        "Send a PROXY protocol header (version 2) with the client's address to each instance.";
    BRIDGE_CONNECTIONS = "bridge" "connections" Number "N" "connections, 1 to 1000000" "16384"
        "Limit on open connections through the bridge; at most 3/32 of the open-file limit \
         (RLIMIT_NOFILE). At the limit, new connections are reset.";
    BRIDGE_CONNECTIONS_PER_SERVICE = "bridge" "connections-per-service" Number "N"
        "connections, 1 to 1000000" "4096"
        "Limit on open connections through the bridge to one service.";
    BRIDGE_IDLE_TIMEOUT = "bridge" "idle-timeout" Duration "DURATION"
        "up to 1day; `0s` turns it off" r#""0s""#
        "Reset a connection after this long without a byte in either direction.";
    BRIDGE_DRAIN = "bridge" "drain" Duration "DURATION" "up to 1h" r#""10s""#
        "Let open connections finish for this long at shutdown.";
    CHECKS_ENABLED = "checks" "enabled" Bool "BOOL" "" "false"
        "Check the endpoints of the instances, and leave out those that fail while others of the \
         same name pass. The other keys of this section then apply.";
    CHECKS_NAMES = "checks" "names" List "PATTERN"
        "names without zone; `*` stands for any characters" r#"["*"]"#
        "Check the instances of these services.";
    CHECKS_PROTOCOLS = "checks" "protocols" List "PROTOCOL" "such as `http`" "[]"
        => "all instances"
        "Check only instances whose metadata has one of these values for the key `protocol`. \
         GoFrame's servers register `http`, `https` or `grpc`.";
    CHECKS_PATH = "checks" "path" Text "PATH" "such as `/health`" r#""""#
        => "TCP connections only"
        "Check instances with an HTTP GET request of this path, unless their metadata tells \
         another protocol than `http` or `https`. A response of status 2xx or 3xx passes. All \
         others are checked by opening a TCP connection.";
    CHECKS_INTERVAL = "checks" "interval" Duration "DURATION" "100ms to 1h" r#""2s""#
        "Time between two checks of an endpoint.";
    CHECKS_TIMEOUT = "checks" "timeout" Duration "DURATION" "100ms to `interval`" r#""1s""#
        "A check fails if it takes longer.";
    CHECKS_RISE = "checks" "rise" Number "N" "checks, 1 to 100" "2"
        "An endpoint that failed passes again after this many successful checks in a row.";
    CHECKS_FALL = "checks" "fall" Number "N" "checks, 1 to 100" "3"
        "An endpoint fails after this many failed checks in a row.";
    CHECKS_JITTER = "checks" "jitter" Number "PERCENT" "percent, 0 to 100" "10"
        "Lengthen each interval by a random time, up to this share of it.";
    CHECKS_MAX_PER_SECOND = "checks" "max-per-second" Number "N" "checks, 1 to 10000" "500"
        "Limit on checks per second. If there are more endpoints than that allows, the interval \
         becomes longer.";
}

impl Key {
    /// Returns whether the key names the server's runtime or state directory.
    pub fn is_directory(&self) -> bool {
        [RUNTIME_DIR, STATE_DIR].contains(&self)
    }
}
