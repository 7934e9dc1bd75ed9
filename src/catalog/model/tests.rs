//! Tests of services built from keys.

use super::*;
use crate::catalog::holds::HoldCause;
use crate::catalog::rules::OVERRIDE_LAYER;
use crate::catalog::tests::{id, key};

fn service(keys: &[&str], docker0: Docker0) -> Service {
    let rules = ServiceRules { docker0, ..ServiceRules::default() };
    Service::new("hello", keys.iter().map(|text| Arc::new(key(text))).collect(), rules)
}

fn instances(service: &Service) -> Vec<String> {
    service
        .instances()
        .map(|Instance { key, endpoint, excluded, .. }| {
            let Group { deployment, namespace, version } = &**key.group();
            let excluded = excluded.map(|excluded| format!(" {excluded:?}")).unwrap_or_default();
            format!("{deployment}/{namespace}/{version} {endpoint}{excluded}")
        })
        .collect()
}

#[test]
fn a_service_with_one_endpoint_takes_little_memory() {
    assert!(size_of::<Service>() <= 40);
    assert!(size_of::<RegistryKey>() <= 72);
    assert_eq!(size_of::<InstanceRef>(), 8);
}

#[test]
fn instances_are_sorted_by_deployment_namespace_version_and_endpoint() {
    let service = service(
        &[
            "/s/d/prod/hello/v1/10.0.0.9:80,10.0.0.1:80",
            "/s/d/dev/hello/v2/10.0.0.1:80",
            "/s/d/dev/hello/v1/10.0.0.7:80,10.0.0.7:9",
        ],
        Docker0::Drop,
    );
    let sorted = [
        "d/dev/v1 10.0.0.7:9",
        "d/dev/v1 10.0.0.7:80",
        "d/dev/v2 10.0.0.1:80",
        "d/prod/v1 10.0.0.1:80",
        "d/prod/v1 10.0.0.9:80",
    ];
    assert_eq!(instances(&service), sorted);
    assert_eq!(service.served().count(), 5);
    assert_eq!(service.instances().len(), 5);
    let keys: Vec<String> = service.keys().iter().map(|key| service.text(key)).collect();
    assert!(
        keys[0].starts_with("/s/d/dev/hello/v1") && keys[2].starts_with("/s/d/prod"),
        "{keys:?}"
    );
}

#[test]
fn a_base_with_a_zone_suffix_shadows_the_bare_base_in_its_scope() {
    let service = service(
        &[
            "/s/d/dev/hello.svc/v2/10.0.0.2:80",
            "/s/d/dev/hello/v1/10.0.0.1:80",
            "/s/d/dev/hello/v2/10.0.0.2:80",
            "/s/d/prod/hello/v1/10.0.0.3:80",
            "/s/e/dev/hello/v1/10.0.0.4:80",
        ],
        Docker0::Drop,
    );
    let expected = [
        "d/dev/v1 10.0.0.1:80 Shadowed",
        "d/dev/v2 10.0.0.2:80",
        "d/dev/v2 10.0.0.2:80 Shadowed",
        "d/prod/v1 10.0.0.3:80",
        "e/dev/v1 10.0.0.4:80",
    ];
    assert_eq!(instances(&service), expected);
    let visible: Vec<_> =
        service.visible_groups().map(|group| (group.scope(), &*group.version)).collect();
    assert_eq!(visible, [(("d", "dev"), "v2"), (("d", "prod"), "v1"), (("e", "dev"), "v1")]);
}

#[test]
fn a_spelling_without_a_usable_endpoint_shadows_no_other() {
    let keys = [
        "/s/d/dev/hello.svc/v1/",
        "/s/d/dev/hello.internal/v2/172.17.0.1:80",
        "/s/d/dev/hello.internal/v3/",
        "/s/d/dev/hello/v1/10.0.0.1:80",
        // No spelling has an endpoint here: the first one holds the name.
        "/s/d/prod/hello.svc/v4/",
        "/s/d/prod/hello/v5/",
    ];
    let some = service(&keys, Docker0::Drop);
    assert_eq!(instances(&some), ["d/dev/v1 10.0.0.1:80 Shadowed", "d/dev/v2 172.17.0.1:80"]);
    let visible = |service: &Service| -> Vec<String> {
        let groups = service.visible_groups();
        groups.map(|group| format!("{}/{}", group.namespace, group.version)).collect()
    };
    assert_eq!(visible(&some), ["dev/v2", "dev/v3", "prod/v4"]);
    let two = service(&[keys[0], keys[3]], Docker0::Drop);
    assert_eq!(instances(&two), ["d/dev/v1 10.0.0.1:80"]);
    assert_eq!(visible(&two), ["dev/v1"]);
}

#[test]
fn a_dead_spelling_of_the_winning_layer_shadows_no_other() {
    let keys = vec![
        key_of(0, 1, "/s/d/n/hello.svc/v1/"),
        key_of(1, 2, "/s/d/n/hello.svc/v2/"),
        key_of(1, 2, "/s/d/n/hello/v3/10.0.0.3:80"),
        key_of(2, 3, "/s/d/n/hello.svc/v4/10.0.0.4:80"),
    ];
    let service = Service::new("hello", keys, ServiceRules::default());
    assert_eq!(instances(&service), ["d/n/v3 10.0.0.3:80", "d/n/v4 10.0.0.4:80 Preceded"]);
    let visible: Vec<_> = service.visible_groups().map(|group| &*group.version).collect();
    assert_eq!(visible, ["v3"]);
    let preceding = service.instances().nth(1).unwrap().preceding_registry();
    assert_eq!(preceding, Some(id(1)));
}

#[test]
fn the_docker_bridge_is_excluded_if_its_port_is_registered_elsewhere() {
    let keys = [
        "/s/d/n/hello/v1/10.0.0.1:80,172.17.0.1:80",
        "/s/d/n/hello/v2/172.17.0.1:81",
        "/s/d/n/hello/v3/172.17.0.1:80",
        "/s/d/m/hello/v1/172.17.0.1:80",
    ];
    let expected = [
        "d/m/v1 172.17.0.1:80",
        "d/n/v1 10.0.0.1:80",
        "d/n/v1 172.17.0.1:80 Docker0",
        "d/n/v2 172.17.0.1:81",
        "d/n/v3 172.17.0.1:80 Docker0",
    ];
    assert_eq!(instances(&service(&keys, Docker0::Drop)), expected);
    assert_eq!(service(&keys, Docker0::Keep).served().count(), 5);
    // A shadowed spelling does not count as another address.
    let keys = ["/s/d/n/hello.svc/v1/172.17.0.1:80", "/s/d/n/hello/v1/10.0.0.1:80"];
    assert_eq!(
        instances(&service(&keys, Docker0::Drop)),
        ["d/n/v1 10.0.0.1:80 Shadowed", "d/n/v1 172.17.0.1:80"]
    );
}

#[test]
fn equal_endpoints_of_one_version_are_served_once() {
    let service = service(
        &[
            "/service/d/n/hello/v1/10.0.0.1:80",
            "/services/d/n/hello/v1/10.0.0.1:80",
            "/t/d/n/hello/v1/10.0.0.1:80,10.0.0.1:81",
            "/service/d/n/hello/v2/10.0.0.1:80",
        ],
        Docker0::Drop,
    );
    let expected = [
        "d/n/v1 10.0.0.1:80",
        "d/n/v1 10.0.0.1:80 Duplicate",
        "d/n/v1 10.0.0.1:80 Duplicate",
        "d/n/v1 10.0.0.1:81",
        "d/n/v2 10.0.0.1:80",
    ];
    assert_eq!(instances(&service), expected);
    assert_eq!(
        service.served().next().unwrap().text().split('/').nth(1),
        Some("service"),
        "the first key wins"
    );
}

#[test]
fn a_present_endpoint_is_served_rather_than_an_equal_held_one() {
    let mut held = key("/a/d/n/hello/v1/10.0.0.1:80");
    Arc::make_mut(&mut held.shared).hold = Some(HoldCause::Expiry);
    let service = Service::new(
        "hello",
        vec![Arc::new(held), Arc::new(key("/b/d/n/hello/v1/10.0.0.1:80"))],
        ServiceRules::default(),
    );
    let served: Vec<bool> = service.served().map(|instance| instance.key.held()).collect();
    assert_eq!(served, [false]);
}

/// Returns a key of another registry, in a layer.
fn key_of(registry: u8, layer: u8, text: &str) -> Arc<RegistryKey> {
    let mut key = key(text);
    let shared = Arc::make_mut(&mut key.shared);
    (shared.registry, shared.layer) = (id(registry), layer);
    Arc::new(key)
}

#[test]
fn the_lowest_layer_is_served_in_each_deployment_and_namespace() {
    let keys = vec![
        key_of(0, 1, "/s/d/n/hello/v1/10.0.0.1:80"),
        key_of(1, 2, "/s/d/n/hello.svc/v1/10.0.0.1:80,10.0.0.2:80"),
        key_of(1, 2, "/s/d/n/hello/v2/172.17.0.1:80"),
        key_of(1, 2, "/s/d/m/hello/v1/10.0.0.3:80"),
    ];
    let service = Service::new("hello", keys, ServiceRules::default());
    let expected = [
        "d/m/v1 10.0.0.3:80",
        "d/n/v1 10.0.0.1:80",
        "d/n/v1 10.0.0.1:80 Preceded",
        "d/n/v1 10.0.0.2:80 Preceded",
        "d/n/v2 172.17.0.1:80 Preceded",
    ];
    assert_eq!(instances(&service), expected);
    let visible: Vec<_> =
        service.visible_groups().map(|group| (group.scope(), &*group.version)).collect();
    assert_eq!(visible, [(("d", "m"), "v1"), (("d", "n"), "v1")]);
}

#[test]
fn a_registry_without_a_usable_endpoint_hides_no_other() {
    let keys = vec![
        key_of(0, 1, "/s/d/n/hello/v1/"),
        key_of(1, 2, "/s/d/n/hello.svc/v2/"),
        key_of(2, 3, "/s/d/n/hello/v3/10.0.0.3:80"),
        key_of(3, 4, "/s/d/n/hello/v4/10.0.0.4:80"),
        // No registry has an endpoint here: the first one holds the name.
        key_of(1, 2, "/s/d/m/hello/v2/"),
        key_of(0, 1, "/s/d/m/hello/v1/"),
        key_of(0, 1, "/s/d/o/hello/v1/10.0.0.5:80"),
    ];
    let service = Service::new("hello", keys.clone(), ServiceRules::default());
    let expected = ["d/n/v3 10.0.0.3:80", "d/n/v4 10.0.0.4:80 Preceded", "d/o/v1 10.0.0.5:80"];
    assert_eq!(instances(&service), expected);
    let visible: Vec<_> =
        service.visible_groups().map(|group| (group.scope(), &*group.version)).collect();
    assert_eq!(visible, [(("d", "m"), "v1"), (("d", "n"), "v3"), (("d", "o"), "v1")]);
    let preceding: Vec<_> =
        service.instances().map(|instance| instance.preceding_registry()).collect();
    assert_eq!(preceding, [None, Some(id(2)), None]);

    // An unread registry's endpoints are better than none.
    let rules = ServiceRules { unsynced: [id(2)].into_iter().collect(), docker0: Docker0::Drop };
    let two = |keys: &[Arc<RegistryKey>]| Service::new("hello", keys.to_vec(), rules);
    assert_eq!(instances(&two(&keys[1..3])), ["d/n/v3 10.0.0.3:80"]);
    let placeholder = key_of(3, 4, "/s/d/n/hello/v4/");
    assert_eq!(instances(&two(&[keys[2].clone(), placeholder])), ["d/n/v3 10.0.0.3:80"]);
}

#[test]
fn held_keys_and_overriding_ones_keep_their_place() {
    let mut held = key("/s/d/n/hello/v1/10.0.0.1:80");
    Arc::make_mut(&mut held.shared).hold = Some(HoldCause::Expiry);
    let overriding = key_of(2, OVERRIDE_LAYER, "/s/d/m/hello/v1/");
    let keys = vec![
        Arc::new(held),
        key_of(1, 2, "/s/d/n/hello/v2/10.0.0.2:80"),
        overriding,
        key_of(1, 2, "/s/d/m/hello/v2/10.0.0.3:80"),
    ];
    let service = Service::new("hello", keys, ServiceRules::default());
    let expected =
        ["d/m/v2 10.0.0.3:80 Preceded", "d/n/v1 10.0.0.1:80", "d/n/v2 10.0.0.2:80 Preceded"];
    assert_eq!(instances(&service), expected);
}

#[test]
fn an_unsynced_registry_hides_no_other() {
    let keys = vec![
        key_of(0, 1, "/s/d/n/hello/v1/10.0.0.1:80"),
        key_of(1, 2, "/s/d/n/hello/v1/10.0.0.2:80"),
        key_of(0, 1, "/s/d/m/hello/v1/10.0.0.3:80"),
    ];
    let of = |unsynced: &[u8]| {
        let unsynced = unsynced.iter().map(|registry| id(*registry)).collect();
        let rules = ServiceRules { unsynced, ..ServiceRules::default() };
        instances(&Service::new("hello", keys.clone(), rules))
    };
    assert_eq!(of(&[0]), ["d/m/v1 10.0.0.3:80", "d/n/v1 10.0.0.2:80"]);
    let first = ["d/m/v1 10.0.0.3:80", "d/n/v1 10.0.0.1:80", "d/n/v1 10.0.0.2:80 Preceded"];
    assert_eq!(of(&[]), first);
    assert_eq!(of(&[1]), first);
    assert_eq!(of(&[0, 1]), first);

    // Nor does its spelling, in the layer that both registries share.
    let keys = vec![
        key_of(0, 1, "/s/d/n/hello.svc/v1/10.0.0.1:80"),
        key_of(1, 1, "/s/d/n/hello/v1/10.0.0.2:80"),
    ];
    let of = |unsynced: &[u8]| {
        let unsynced = unsynced.iter().map(|registry| id(*registry)).collect();
        let rules = ServiceRules { unsynced, ..ServiceRules::default() };
        instances(&Service::new("hello", keys.clone(), rules))
    };
    assert_eq!(of(&[0]), ["d/n/v1 10.0.0.2:80"]);
    assert_eq!(of(&[]), ["d/n/v1 10.0.0.1:80", "d/n/v1 10.0.0.2:80 Shadowed"]);
}

#[test]
fn of_equal_endpoints_the_first_registrys_is_served() {
    let keys = vec![
        key_of(1, 1, "/a/d/n/hello/v1/10.0.0.1:80"),
        key_of(0, 1, "/b/d/n/hello/v1/10.0.0.1:80,10.0.0.2:80"),
    ];
    let service = Service::new("hello", keys, ServiceRules::default());
    let served: Vec<_> = service.served().map(|instance| instance.key.registry()).collect();
    assert_eq!(served, [id(0), id(0)]);
}

#[test]
fn an_alias_has_the_keys_of_its_target() {
    let hello = Arc::new(service(
        &["/s/d/n/hello/v1/10.0.0.1:80,10.0.0.2:80", "/s/d/m/hello/v1/10.0.0.3:80"],
        Docker0::Drop,
    ));
    let www = Service::alias("www", Arc::clone(&hello));
    assert_eq!((www.base(), instances(&www)), ("www", instances(&hello)));
    let texts = |service: &Service| -> Vec<String> {
        service.instances().map(|instance| instance.text()).collect()
    };
    assert_eq!(texts(&www), texts(&hello));
    assert!(www.alias_target().is_some_and(|target| Arc::ptr_eq(target, &hello)));
    assert!(hello.alias_target().is_none());
}

#[test]
fn a_service_without_keys_is_valid() {
    let service = service(&[], Docker0::Drop);
    assert_eq!(
        (service.keys().len(), service.instances().len(), service.visible_groups().count()),
        (0, 0, 0)
    );
}
