//! The keys that belong to no kind of registry.

use super::key::keys;

keys! { GENERAL:
    LISTEN = "" "listen" List "ADDR:PORT" "addresses with port" r#"["127.0.0.1:5300"]"#
        "Where to answer, over UDP and TCP. An address that is not loopback needs `allow`. `0.0.0.0` and `[::]` mean each address that the machine has, as they come and go.";
    ALLOW = "" "allow" List "CIDR" "networks" "[]"
        "Who may ask from other than loopback addresses; everyone else is refused.";
    REGISTRY = "" "registry" List "URL" "`etcd://host:port[,host:port]`, `file:///dir`" "[]"
        "The registries to follow. One that needs a user, a password or other keys of its own has a section `[registry.NAME]` in the file instead. Empty: the directory `gsvc` in the temp directory, where GoFrame's gRPC programs register by default, and only while it belongs to root or to the server's own user.";
    ZONE = "" "zone" List "NAME" "domain names" r#"["svc"]"#
        "The zones to serve; every zone holds all services. Targets of SRV and PTR records use the first.";
    DEPLOYMENT = "" "deployment" Text "NAME" "" r#""default""#
        "GoFrame's deployment that short names mean.";
    NAMESPACE = "" "namespace" Text "NAME" "" r#""default""#
        "GoFrame's namespace that short names mean.";
    HEADS = "" "heads" List "HEAD" "" r#"["service", "services"]"#
        "The first segments of the registry keys that are read: GoFrame writes `service` since v2.3.3 and wrote `services` before.";
    VERSION_FALLBACK = "" "version-fallback" Bool "BOOL" "" "true"
        "Whether a service without an instance of version `latest` answers with all its versions.";
    ANSWERS = "" "answers" TextOrNumber "all|fit|N" "`all`, `fit` or a number from 1" r#""all""#
        "Which addresses an answer holds: as many as fit and TC where some do not, as many as fit without TC, or at most so many. 1 balances clients that sort what they get.";
    TTL = "" "ttl" Duration "DURATION" "whole seconds, up to 1day" r#""5s""#
        "How long an answer may be cached.";
    NEGATIVE_TTL = "" "negative-ttl" Duration "DURATION" "whole seconds, up to 1day" r#""1s""#
        "How long the absence of a name or type may be cached.";
    DOCKER0 = "" "docker0" Text "drop|keep" "`drop` or `keep`" r#""drop""#
        "Whether an endpoint at 172.17.0.1 (every Docker host's own bridge) is left out when the service has the same port at another address.";
    REMOVAL_GRACE = "" "removal-grace" Duration "DURATION" "up to 1h; `0s` turns it off" r#""12s""#
        "How long a sudden removal of many instances is not believed: time for them to register again after an outage of the registry.";
    MAX_INSTANCES_PER_SERVICE = "" "max-instances-per-service" Number "N" "instances, 1 to 21845" "10000"
        "The most instances of one service that are served.";
    MAX_KEYS = "" "max-keys" Number "N" "keys, 1 to 268435455" "2000000"
        "The most keys of one registry that are followed.";
    TCP_CONNECTIONS = "" "tcp-connections" Number "N" "connections, 1 to 65535" "256"
        "The most TCP connections at a time.";
    TCP_IDLE_TIMEOUT = "" "tcp-idle-timeout" Duration "DURATION" "1s to 1h" r#""10s""#
        "How long a TCP connection may be idle.";
    UPSTREAM = "" "upstream" List "UPSTREAM" "`ADDR[:PORT]`, `tcp://ADDR[:PORT]`, `tls://ADDR[:PORT][#NAME]`, `https://ADDR[:PORT]/PATH[#NAME]`, `system`, `off`, or `DOMAIN=` and one of the first four" r#"["system"]"#
        "Who is asked for names outside the served zones. `system`: whom the system's own resolver would ask, followed while running. `off`, alone: nobody, such names are refused. `DOMAIN=…`: who is asked for that domain, several entries for one domain add up; with only such entries all other names go to `system`.";
    UPSTREAM_CA_FILE = "" "upstream-ca-file" Text "FILE" "file, PEM" r#""""#
        "The authorities that may vouch for upstreams over TLS and HTTPS. Empty: those the machine trusts.";
    UPSTREAM_RANDOM_CASE = "" "upstream-random-case" Bool "BOOL" "" "false"
        "Whether questions go to upstreams with letters in random case, which their answers must echo: harder to forge, and some old servers do not.";
    FORWARD_SINGLE_LABEL = "" "forward-single-label" Bool "BOOL" "" "false"
        "Whether A and AAAA queries for names of one label, such as `printer`, go to upstreams with public addresses. If false, only upstreams with private addresses get them; without one, the name does not exist. Queries of other types are always forwarded.";
    CACHE_SIZE = "" "cache-size" Size "SIZE" "up to 64GiB; `0` turns it off" r#""32MiB""#
        "The most memory for what upstreams said.";
    SERVE_STALE = "" "serve-stale" Duration "DURATION" "up to 30days; `0s` turns it off" r#""1day""#
        "How long past its end what an upstream said may still be answered while none answers (RFC 8767).";
    REBINDING_GUARD = "" "rebinding-guard" Bool "BOOL" "" "false"
        "Whether answers of upstreams that give a private or loopback address to a name are withheld: pages in a browser reach a private network with those.";
    REBINDING_ALLOW = "" "rebinding-allow" List "NAME" "domain names" "[]"
        "The domains whose names may have private addresses all the same; those with a `DOMAIN=` entry under `upstream` always may.";
    FORWARD_OPCODES = "" "forward-opcodes" Bool "BOOL" "" "false"
        "Whether messages that are no questions (NOTIFY, UPDATE and others) are passed on to upstreams; else they get NOTIMP.";
    ADMIN_LISTEN = "" "admin-listen" Text "ADDR:PORT|off" "loopback address with port, or `off`" r#""127.0.0.1:5380""#
        "Where metrics, health and the JSON interface are served over HTTP, besides the socket in the runtime directory.";
    RUNTIME_DIR = "" "runtime-dir" Text "DIR" "directory" r#""""#
        "Directory for the server's socket, which the commands use. Empty: `state-dir` if that is set, else $RUNTIME_DIRECTORY (set by systemd), else /run/svcdns for root, else $XDG_RUNTIME_DIR/svcdns, else svcdns-UID in the temp directory.";
    STATE_DIR = "" "state-dir" Text "DIR" "directory" r#""""#
        "Directory for what the server keeps over a restart; if set, also for the socket. Empty: $STATE_DIRECTORY (set by systemd), else /var/lib/svcdns for root, else $XDG_STATE_HOME/svcdns, else ~/.local/state/svcdns.";
    LOG = "" "log" Text "FILTER" "`error`, `warn`, `info`, `debug`, `trace`, or by module" r#""info""#
        "What is logged, to standard error. A level alone is that of svcdns; the libraries it is made of then tell no more than warnings.";
    LOG_QUERIES = "" "log-queries" Number "N" "questions, from 1; `0` turns it off" "0"
        "Of every so many questions one is logged, at level `info`: who asked, what, over which transport, and how it was answered.";
    TLS_LISTEN = "tls" "listen" List "ADDR[:PORT]" "addresses; port 853 unless named" "[]"
        "Where to answer over TLS (DoT). Needs `cert-file` and `key-file`, and `allow` where other machines can reach it.";
    TLS_QUIC_LISTEN = "tls" "quic-listen" List "ADDR[:PORT]" "addresses; port 853 unless named" "[]"
        "Where to answer over QUIC (DoQ), likewise.";
    TLS_CERT_FILE = "tls" "cert-file" Text "FILE" "file, PEM" r#""""#
        "The certificate to show, followed by those that lead to an authority. Read again when it changes.";
    TLS_KEY_FILE = "tls" "key-file" Text "FILE" "file, PEM" r#""""#
        "The key of the certificate.";
}
