//! Error messages about registries.

use super::registries::{MAIN, urls};
use super::*;

#[test]
fn invalid_urls_are_rejected() {
    assert_errors(&[
        (
            "registry = ['etcd://a', 'redis://b']",
            "1:25: registry: unknown kind of registry \"redis\": expected a URL such as \
             etcd://host:port[,host:port], consul://host:port[,host:port], \
             zookeeper://host:port[,host:port]/root, nacos://host:port[,host:port], \
             polaris://host:port[,host:port] or file:///directory",
        ),
        (
            "registry = 'polaris://a,[::1]:8091'",
            "1:12: registry: 8091 is the port of Polaris's gRPC interface, which GoFrame uses; \
             svcdns uses the HTTP interface: polaris://[::1]:8090",
        ),
        (
            "registry = 'polaris+https://a:8091'",
            "1:12: registry: 8091 is the port of Polaris's gRPC interface, which GoFrame uses; \
             svcdns uses the HTTP interface: polaris+https://a:8090",
        ),
        (
            "registry = 'file://x'",
            "1:12: registry: the directory must be an absolute path: file:///directory",
        ),
        (
            "registry = '127.0.0.1:2379'",
            "1:12: registry: expected a URL such as etcd://host:port[,host:port], \
             consul://host:port[,host:port], zookeeper://host:port[,host:port]/root, \
             nacos://host:port[,host:port], polaris://host:port[,host:port] or \
             file:///directory",
        ),
        (
            "registry = 'Redis://a'",
            "1:12: registry: unknown kind of registry \"redis\": expected a URL such as \
             etcd://host:port[,host:port], consul://host:port[,host:port], \
             zookeeper://host:port[,host:port]/root, nacos://host:port[,host:port], \
             polaris://host:port[,host:port] or file:///directory",
        ),
        (
            "registry = 'etcd://a:1/service'",
            "1:12: registry: unexpected \"/service\" after the endpoints of an etcd URL \
             (heads, deployment and namespace are separate keys)",
        ),
        (
            "[registry.main]\nurl = ''",
            "2:7: registry.main.url: expected a URL such as etcd://host:port[,host:port], \
             consul://host:port[,host:port], zookeeper://host:port[,host:port]/root, \
             nacos://host:port[,host:port], polaris://host:port[,host:port] or \
             file:///directory",
        ),
        (
            "[registry.main]\nurl = ['etcd://a']",
            "2:7: registry.main.url: expected a string, found a value of type array",
        ),
        (
            "[registry.main]\nurl = 'redis://a'",
            "2:7: registry.main.url: unknown kind of registry \"redis\": expected a URL such \
             as etcd://host:port[,host:port], consul://host:port[,host:port], \
             zookeeper://host:port[,host:port]/root, nacos://host:port[,host:port], \
             polaris://host:port[,host:port] or file:///directory",
        ),
        (
            "[registry.main]\nurl = 'etcd://a,file:///x'",
            "2:7: registry.main.url: unexpected \"///x\" after the endpoints of an etcd URL \
             (heads, deployment and namespace are separate keys)",
        ),
        (
            "[registry.main]\nurl = 'etcd://root:hunter2@a'",
            "2:7: registry.main.url: a URL cannot hold a user or password, because it appears \
             in process lists and logs: set registry.main.username, and \
             registry.main.password-file or the environment variable SVCDNS_REGISTRY_MAIN_PASSWORD",
        ),
    ]);
}

#[test]
#[cfg(feature = "zookeeper")]
fn the_root_of_a_zookeeper_url_follows_its_servers() {
    let parsed =
        |url: &str| read(&format!("registry = ['{url}']"), &[]).registries.remove(0).source;
    for (url, expected) in [
        ("zookeeper://a", "zookeeper://a:2181/microservices"),
        ("ZooKeeper://a:1,b/", "zookeeper://a:1,b:2181/microservices"),
        ("zookeeper://a,[::1]/gogf/Services/", "zookeeper://a:2181,[::1]:2181/gogf/Services"),
    ] {
        assert_eq!(parsed(url).to_string(), expected);
    }
    assert_errors(&[
        (
            "registry = 'zookeeper://a/x,b:2181'",
            "1:12: registry: unexpected \"b:2181\" after the root of a ZooKeeper URL: the root \
             follows all servers, as in zookeeper://10.0.0.1:2181,10.0.0.2:2181/microservices",
        ),
        (
            "registry = 'zookeeper://a//x'",
            "1:12: registry: \"//x\" cannot be the path of a node in ZooKeeper: a name in it is \
             empty",
        ),
        (
            "registry = 'zookeeper://u:hunter2@a/x'",
            "1:12: registry: a URL cannot hold a user or password, because it appears in process \
             lists and logs: set zookeeper.username, and zookeeper.password-file or the \
             environment variable SVCDNS_ZOOKEEPER_PASSWORD",
        ),
        (
            "[registry.main]\nurl = 'zookeeper://a'\nusername = 'u'",
            "3:12: registry.main.username: a user needs a password and vice versa: set \
             registry.main.username, and registry.main.password-file or the environment variable \
             SVCDNS_REGISTRY_MAIN_PASSWORD",
        ),
        (
            "registry = ['zookeeper://a/x', 'zookeeper://A:2181/x/']",
            "1:32: registry: zookeeper://A:2181/x is listed twice",
        ),
    ]);
    let roots = "registry = ['zookeeper://a/x', 'zookeeper://a/y']";
    assert_eq!(read(roots, &[]).registries.len(), 2, "two roots are two registries");
}

#[test]
#[cfg(not(feature = "zookeeper"))]
fn a_zookeeper_url_without_the_feature_is_explained() {
    assert_errors(&[(
        "registry = 'zookeeper://a'",
        "1:12: registry: this svcdns was built without ZooKeeper: use one that was built with the \
         Cargo feature `zookeeper`, which is on by default",
    )]);
}

#[test]
fn a_section_requires_a_url() {
    assert_errors(&[
        (
            "[registry.main]\nusername = 'u'",
            "1:11: registry.main.url: a registry needs a URL: add url = \
             \"etcd://10.0.0.1:2379,10.0.0.2:2379\", for example",
        ),
        (
            "[registry.main]",
            "1:11: registry.main.url: a registry needs a URL: add url = \
             \"etcd://10.0.0.1:2379,10.0.0.2:2379\", for example",
        ),
        (
            "[registry.main]\nurll = 'etcd://a'",
            "2:1: unknown key `registry.main.urll`: did you mean `registry.main.url`?",
        ),
    ]);
}

#[test]
fn listing_a_registry_twice_is_an_error() {
    assert_errors(&[
        (
            "registry = ['etcd://a', 'etcd://a:2379']",
            "1:25: registry: etcd://a:2379 is listed twice",
        ),
        ("registry = ['file:///x', 'file:///x']", "1:26: registry: file:///x is listed twice"),
        (
            "[registry.one]\nurl = 'etcd://a,b:1,a'\n[registry.two]\nurl = 'etcd://b:1,a:2379'",
            "4:7: registry.two.url: this is the same registry as registry.one.url: remove one \
             of the two sections",
        ),
        (
            "[registry.one]\nurl = 'file:///srv/x'\n[registry.two]\nurl = 'file:///srv//x/'",
            "4:7: registry.two.url: this is the same registry as registry.one.url: remove one \
             of the two sections",
        ),
        (
            "registry = ['etcd://a,b', 'etcd://b,a']",
            "1:27: registry: etcd://b:2379,a:2379 is listed twice",
        ),
    ]);
    assert_errors_after(
        MAIN,
        &[(
            "[registry.second]\nurl = 'etcd://A:2379/'",
            "4:7: registry.second.url: this is the same registry as registry.main.url: remove \
             one of the two sections",
        )],
    );
}

#[test]
fn a_list_and_sections_cannot_be_combined() {
    assert_errors(&[
        (
            "registry = ['etcd://a']\n[registry.main]\nurl = 'etcd://b'",
            "2:2: registry: a section cannot be combined with the list in line 1: name all \
             registries in the list, or each in a section [registry.NAME]",
        ),
        (
            "registry = 'etcd://a'\n[registry]\nmain.url = 'etcd://b'",
            "2:2: registry: a section cannot be combined with the list in line 1: name all \
             registries in the list, or each in a section [registry.NAME]",
        ),
        (
            "registry = []\nregistry.main.url = 'etcd://b'",
            "2:1: registry: a section cannot be combined with the list in line 1: name all \
             registries in the list, or each in a section [registry.NAME]",
        ),
        (
            "registry.main.url = 'etcd://b'\nregistry = []",
            "2:1: registry: the list cannot be combined with a section in line 1: name all \
             registries in the list, or each in a section [registry.NAME]",
        ),
        ("registry = ['etcd://a']\nregistry = ['etcd://b']", "2:1: duplicate key"),
        ("[registry]\nmain.url = 'etcd://b'\n[registry]", "3:2: duplicate key"),
    ]);
}

#[test]
fn section_names_are_unique() {
    assert_errors_after(
        MAIN,
        &[
            (
                "[etcd]\n[registry.main]\nurl = 'etcd://b'",
                "4:11: registry.main: the section [registry.main] exists already: give each \
                 registry its own name",
            ),
            ("url = 'etcd://b'", "3:1: duplicate key"),
        ],
    );
}

#[test]
fn invalid_keys_in_sections_are_rejected() {
    assert_errors(&[
        (
            "[registry.dev]\nurl = 'file:///x'\nusername = 'u'",
            "3:1: registry.dev.username: this key is for registries of kind etcd, but the URL \
             is of kind file",
        ),
        (
            "[registry.dev]\nurl = 'file:///x'\npassword = 'hunter2'",
            "3:1: registry.dev.password: this key is for registries of kind etcd, but the URL \
             is of kind file",
        ),
    ]);
    assert_errors_after(
        MAIN,
        &[
            (
                "pasword-file = '/p'",
                "3:1: unknown key `registry.main.pasword-file`: did you mean \
                 `registry.main.password-file`?",
            ),
            ("ttl = '1s'", "3:1: unknown key `registry.main.ttl`: did you mean `ttl`?"),
            (
                "registry = ['etcd://b']",
                "3:1: unknown key `registry.main.registry`: did you mean `registry`?",
            ),
            ("heads = []", "3:1: registry.main.heads: at least one head is required"),
            (
                "removal-grace = '2h'",
                "3:17: registry.main.removal-grace: 2h is outside the range 0s to 1h",
            ),
            (
                "tls = 'yes'",
                "3:7: registry.main.tls: expected true or false, found a value of type string",
            ),
            (
                "[registry.main.login]\nusername = 'u'",
                "3:16: unknown section [registry.main.login]",
            ),
        ],
    );
}

#[test]
fn passwords_are_rejected_outside_of_their_files() {
    assert_errors(&[
        (
            "[etcd]\npassword = 'hunter2'",
            "2:1: etcd.password: this file cannot hold a password, because other users may \
             read it: put the password in a file named by etcd.password-file, or in the \
             environment variable SVCDNS_ETCD_PASSWORD",
        ),
        (
            "registry = ['etcd://root:hunter2@a:2379']",
            "1:13: registry: a URL cannot hold a user or password, because it appears in \
             process lists and logs: set etcd.username, and etcd.password-file or the environment \
             variable SVCDNS_ETCD_PASSWORD",
        ),
    ]);
    assert_errors_after(
        MAIN,
        &[(
            "password = 'hunter2'",
            "3:1: registry.main.password: this file cannot hold a password, because other \
             users may read it: put the password in a file named by \
             registry.main.password-file, or in the environment variable \
             SVCDNS_REGISTRY_MAIN_PASSWORD",
        )],
    );
}

#[test]
fn a_user_requires_a_password_and_a_certificate_requires_its_key() {
    assert_errors(&[
        (
            "[etcd]\nusername = 'root'",
            "2:12: etcd.username: a user needs a password and vice versa: set etcd.username, \
             and etcd.password-file or the environment variable SVCDNS_ETCD_PASSWORD",
        ),
        (
            "[etcd]\ncert-file = '/c.pem'",
            "2:13: etcd.cert-file: a certificate needs its private key and vice versa: set \
             etcd.key-file",
        ),
    ]);
    assert_errors_after(
        MAIN,
        &[
            (
                "username = 'u'",
                "3:12: registry.main.username: a user needs a password and vice versa: set \
                 registry.main.username, and registry.main.password-file or the environment \
                 variable SVCDNS_REGISTRY_MAIN_PASSWORD",
            ),
            (
                "password-file = '/p'",
                "3:17: registry.main.password-file: a user needs a password and vice versa: set \
                 registry.main.username, and registry.main.password-file or the environment \
                 variable SVCDNS_REGISTRY_MAIN_PASSWORD",
            ),
            (
                "key-file = '/k'",
                "3:12: registry.main.key-file: a certificate needs its private key and vice versa: \
                 set registry.main.cert-file",
            ),
        ],
    );
    assert_eq!(
        error_of_variable(PASSWORD_VARIABLE, "hunter2"),
        "SVCDNS_ETCD_PASSWORD: etcd.username: a user needs a password and vice versa: set \
         etcd.username, and etcd.password-file or the environment variable SVCDNS_ETCD_PASSWORD"
    );
    assert_eq!(
        error_with(MAIN, &[("SVCDNS_REGISTRY_MAIN_PASSWORD", "hunter2")]),
        "SVCDNS_REGISTRY_MAIN_PASSWORD: registry.main.username: a user needs a password and vice \
         versa: set registry.main.username, and registry.main.password-file or the environment \
         variable SVCDNS_REGISTRY_MAIN_PASSWORD"
    );
}

#[test]
fn invalid_section_headers_are_rejected() {
    assert_errors(&[
        (
            "[registy.main]\nurl = 'etcd://a'",
            "1:2: unknown section [registy.main]: did you mean [registry.main]?",
        ),
        (
            "[registries.main]\nurl = 'etcd://a'",
            "1:2: unknown section [registries.main]: did you mean [registry.main]?",
        ),
        ("[main]\nurl = 'etcd://a'", "1:2: unknown section [main]: did you mean [registry.main]?"),
        (
            "[etcd.main]\nurl = 'etcd://a'",
            "1:7: unknown section [etcd.main]: did you mean [registry.main]?",
        ),
        (
            "[registry]\nurl = 'etcd://a'",
            "2:1: registry.url: each registry needs a section with its own name, such as \
             [registry.main]",
        ),
        (
            "[registry]",
            "1:2: registry: each registry needs a section with its own name, such as \
             [registry.main]",
        ),
        (
            "[[registry]]\nurl = 'etcd://a'",
            "1:1: registry: a registry with keys of its own needs a section with a name, such \
             as [registry.main]",
        ),
        (
            "[[registry.main]]\nurl = 'etcd://a'",
            "1:12: registry.main: a name identifies one registry: write [registry.main], and a \
             section with another name for each further registry",
        ),
        (
            "[registry.Main]\nurl = 'etcd://a'",
            "1:11: registry.Main: \"Main\" cannot name a registry: use 1 to 16 characters of \
             a-z and 0-9",
        ),
        (
            "[registry.a-b]\nurl = 'etcd://a'",
            "1:11: registry.a-b: \"a-b\" cannot name a registry: use 1 to 16 characters of a-z \
             and 0-9",
        ),
        (
            "[registry.'é']\nurl = 'etcd://a'",
            "1:11: registry.é: \"é\" cannot name a registry: use 1 to 16 characters of a-z and \
             0-9",
        ),
        (
            "[registry.'']\nurl = 'etcd://a'",
            "1:11: registry.: \"\" cannot name a registry: use 1 to 16 characters of a-z and \
             0-9",
        ),
        (
            "[registry.a0123456789abcdef]\nurl = 'etcd://a'",
            "1:11: registry.a0123456789abcdef: \"a0123456789abcdef\" cannot name a registry: \
             use 1 to 16 characters of a-z and 0-9",
        ),
    ]);
}

#[test]
fn unknown_variables_of_registries_are_rejected() {
    let dev = "[registry.dev]\nurl = 'file:///x'\n";
    let text = format!("{MAIN}username = 'u'\npassword-file = '/p'\n{dev}");
    for (name, rest) in [
        (
            "SVCDNS_REGISTRY_MIAN_PASSWORD",
            " (there is no registry \"mian\"): did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?",
        ),
        (
            "SVCDNS_REGISTRY_MAIN_TOKEN",
            " (the registry main is of kind etcd and has no token): did you mean \
             SVCDNS_REGISTRY_MAIN_PASSWORD?",
        ),
        (
            "SVCDNS_REGISTRY_MAIN_PASSWRD",
            " (the registry main is of kind etcd and has no passwrd): did you mean \
             SVCDNS_REGISTRY_MAIN_PASSWORD?",
        ),
        ("SVCDNS_REGISTRY_main_PASSWORD", ": did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?"),
        (
            "SVCDNS_REGISTRY_MAIN_USERNAME",
            " (registry.main.username can only be set in the configuration file)",
        ),
        (
            "SVCDNS_REGISTRY_MAIN_PASSWORD_FILE",
            " (registry.main.password-file can only be set in the configuration file)",
        ),
        ("SVCDNS_REGISTRY_MAIN", ""),
        ("SVCDNS_REGISTRY_DEV_PASSWORD", " (the registry dev is of kind file and has no password)"),
        (
            "SVCDNS_REGISTRY_ETCD_PASSWORD",
            " (there is no registry \"etcd\"): did you mean SVCDNS_REGISTRY_MAIN_PASSWORD?",
        ),
        ("SVCDNS_REGISTRIES", ": did you mean SVCDNS_REGISTRY?"),
    ] {
        let error = error_with(&text, &[(name, "hunter2")]);
        assert_eq!(error, format!("unknown environment variable {name}{rest}"));
    }
}

#[test]
fn password_variables_of_replaced_registries_are_ignored() {
    let text = format!("{MAIN}username = 'u'\npassword-file = '/p'\n");
    let replaced = [("SVCDNS_REGISTRY", "file:///y"), ("SVCDNS_REGISTRY_MAIN_PASSWORD", "p")];
    assert_eq!(urls(&read(&text, &replaced)), ["file file:///y"]);
    let replaced = [("SVCDNS_REGISTRY", "etcd://a"), ("SVCDNS_REGISTRY_ETCD_PASSWORD", "p")];
    load("", &replaced, &Flags::default().with("registry", "file:///z")).unwrap();
}
