//! The keys that do not belong to a kind of registry.

use super::key::keys;

keys! { GENERAL:
    LISTEN = "" "listen" List "ADDR:PORT" "addresses with port" r#"["127.0.0.1:5300"]"#
        "Listen on these addresses, over UDP and TCP; all but loopback addresses require `allow`. \
         `0.0.0.0` and `[::]` stand for every address of the machine, including later ones.";
    ALLOW = "" "allow" List "CIDR" "networks, such as `10.0.0.0/8`" "[]"
        "Accept queries from these networks, in addition to loopback; other clients get REFUSED.";
    REGISTRY = "" "registry" List "URL" "`etcd://host:port[,host:port]`, `file:///dir`" "[]"
        "Follow these registries; one that needs keys of its own, such as a user, has a section \
         `[registry.NAME]` in the file instead. If empty, GoFrame's default: `gsvc` in the temp \
         directory, while root or the server's user owns it.";
    ZONE = "" "zone" List "NAME" "domain names" r#"["svc"]"#
        "Serve these zones, each with all services. SRV and PTR records point into the first.";
    DEPLOYMENT = "" "deployment" Text "NAME" "" r#""default""#
        "GoFrame deployment of names that do not contain one.";
    NAMESPACE = "" "namespace" Text "NAME" "" r#""default""#
        "GoFrame namespace of names that do not contain one.";
    HEADS = "" "heads" List "HEAD" "" r#"["service", "services"]"#
        "Read registry keys whose first segment is one of these. GoFrame writes `service` since \
         v2.3.3 and wrote `services` before.";
    VERSION_FALLBACK = "" "version-fallback" Bool "BOOL" "" "true"
        "Answer with all versions of a service if it has no instance of version `latest`.";
    ANSWERS = "" "answers" TextOrNumber "all|fit|N" "`all`, `fit` or 1 to 65535" r#""all""#
        "Records in an answer: as many as fit, with TC (`all`) or without TC (`fit`) if some are \
         missing, or at most this many. `1` spreads the load of clients that sort addresses.";
    TTL = "" "ttl" Duration "DURATION" "whole seconds, up to 1day" r#""5s""#
        "TTL of positive answers.";
    NEGATIVE_TTL = "" "negative-ttl" Duration "DURATION" "whole seconds, up to 1day" r#""1s""#
        "TTL of negative answers, for names and types that do not exist (RFC 2308).";
    DOCKER0 = "" "docker0" Text "drop|keep" "`drop` or `keep`" r#""drop""#
        "Ignore (`drop`) or serve (`keep`) an endpoint at 172.17.0.1, the default bridge of every \
         Docker host, if the service has the same port at another address.";
    REMOVAL_GRACE = "" "removal-grace" Duration "DURATION" "up to 1h; `0s` turns it off" r#""12s""#
        "Keep instances this long after a mass removal, so that programs can register again after \
         an outage of the registry.";
    MAX_INSTANCES_PER_SERVICE = "" "max-instances-per-service" Number "N" "instances, 1 to 21845"
        "10000"
        "Limit of instances per service; further ones are rejected.";
    MAX_KEYS = "" "max-keys" Number "N" "keys, 1 to 268435455" "2000000"
        "Limit of keys per registry; further ones are rejected.";
    TCP_CONNECTIONS = "" "tcp-connections" Number "N" "connections, 1 to 65535" "256"
        "Limit of open connections over TCP, TLS and QUIC together.";
    TCP_IDLE_TIMEOUT = "" "tcp-idle-timeout" Duration "DURATION" "1s to 1h" r#""10s""#
        "Close a connection after this much time without queries.";
    UPSTREAM = "" "upstream" List "UPSTREAM"
        "`ADDR[:PORT]`, `tcp://ADDR[:PORT]`, `tls://ADDR[:PORT][#NAME]`, \
         `https://ADDR[:PORT]/PATH[#NAME]`, `system`, `off`, or `DOMAIN=` and one of the first four"
        r#"["system"]"#
        "Forward names outside the served zones to these upstreams: `system` is the name servers \
         of the system's resolver, followed as they change; `off`, alone, refuses such names. \
         `DOMAIN=` adds an upstream for one domain; if all entries have one, `system` serves the \
         other names.";
    UPSTREAM_ORDER = "" "upstream-order" Text "ORDER" "`strict` or `fastest`" r#""""#
        "Query the upstreams of a list as listed (`strict`: a later one only once all earlier ones \
         failed, are dead, or were silent for 400 ms), or by round trip (`fastest`). If empty: \
         `fastest` for addresses under `upstream` and for a resolv.conf with `options rotate`, \
         `strict` for any other resolv.conf and for `DOMAIN=` entries.";
    UPSTREAM_CA_FILE = "" "upstream-ca-file" Text "FILE" "PEM file" r#""""#
        "CA certificates for upstreams over TLS and HTTPS. If empty, the system's trust store.";
    UPSTREAM_RANDOM_CASE = "" "upstream-random-case" Bool "BOOL" "" "false"
        "Randomize the letter case of names in queries to upstreams, and require responses to echo \
         it: this makes forgery harder, but some old servers do not echo it.";
    FORWARD_SINGLE_LABEL = "" "forward-single-label" Bool "BOOL" "" "false"
        "Forward A and AAAA queries for names of one label, such as `printer`, also to upstreams \
         with public addresses. Otherwise only upstreams with private addresses get them; without \
         one, the name does not exist. Queries of other types are always forwarded.";
    CACHE_SIZE = "" "cache-size" Size "SIZE" "up to 64GiB; `0` turns it off" r#""32MiB""#
        "Memory limit of the cache of upstream responses.";
    SERVE_STALE = "" "serve-stale" Duration "DURATION" "up to 30days; `0s` turns it off" r#""1day""#
        "Serve expired answers this long while no upstream responds (RFC 8767).";
    REBINDING_GUARD = "" "rebinding-guard" Bool "BOOL" "" "false"
        "Withhold upstream answers with private or loopback addresses, by which web pages can \
         reach into a private network (DNS rebinding).";
    REBINDING_ALLOW = "" "rebinding-allow" List "NAME" "domain names" "[]"
        "Exempt these domains from `rebinding-guard`. Domains with a `DOMAIN=` entry under \
         `upstream` are always exempt.";
    FORWARD_OPCODES = "" "forward-opcodes" Bool "BOOL" "" "false"
        "Forward messages with other opcodes than QUERY, such as NOTIFY and UPDATE; otherwise they \
         get NOTIMP.";
    ADMIN_LISTEN = "" "admin-listen" Text "ADDR:PORT|off" "loopback address with port, or `off`"
        r#""127.0.0.1:5380""#
        "Serve metrics, health and the JSON interface over HTTP on this address, in addition to \
         the socket in the runtime directory.";
    RUNTIME_DIR = "" "runtime-dir" Text "DIR" "directory" r#""""#
        "Directory of the socket by which commands find the server. If empty: `state-dir` if set, \
         else $RUNTIME_DIRECTORY (set by systemd), else /run/svcdns for root, else \
         $XDG_RUNTIME_DIR/svcdns, else svcdns-UID in the temp directory.";
    STATE_DIR = "" "state-dir" Text "DIR" "directory" r#""""#
        "Directory of the state that outlasts a restart; if set, also of the socket unless \
         `runtime-dir` is set. If empty: $STATE_DIRECTORY (set by systemd), else /var/lib/svcdns \
         for root, else $XDG_STATE_HOME/svcdns, else ~/.local/state/svcdns.";
    LOG = "" "log" Text "FILTER" "`error`, `warn`, `info`, `debug`, `trace`, or by module"
        r#""info""#
        "Filter of the log on standard error. A level without a module applies to svcdns only; \
         libraries then log nothing below `warn`.";
    LOG_QUERIES = "" "log-queries" Number "N" "queries, from 1; `0` turns it off" "0"
        "Log every Nth query of each thread at level `info`, with client, name, transport and \
         result.";
    TLS_LISTEN = "tls" "listen" List "ADDR[:PORT]" "addresses, with port 853 unless specified" "[]"
        "Listen on these addresses for DNS over TLS; requires `cert-file` and `key-file`, and \
         `allow` for other machines.";
    TLS_QUIC_LISTEN = "tls" "quic-listen" List "ADDR[:PORT]"
        "addresses, with port 853 unless specified" "[]"
        "Listen on these addresses for DNS over QUIC, with the same requirements.";
    TLS_CERT_FILE = "tls" "cert-file" Text "FILE" "PEM file" r#""""#
        "Certificate of the TLS and QUIC listeners, followed by its intermediate certificates. \
         svcdns reloads it when the file changes.";
    TLS_KEY_FILE = "tls" "key-file" Text "FILE" "PEM file" r#""""#
        "Private key of the certificate.";
}
