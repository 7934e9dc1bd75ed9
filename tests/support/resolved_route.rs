//! The route of systemd-resolved to svcdns, under a service manager.

use std::net::SocketAddr;

use super::service_manager::ServiceManager;
use super::upstream::{Record, Upstream};
use super::{SOON, eventually};

pub(crate) const RESOLVED: &str = "systemd-resolved.service";

/// The unit that `install` writes beside the server's.
pub(crate) const ROUTE: &str = "svcdns-resolver.service";

/// A registration in a file registry.
pub(crate) const REGISTRATION: (&str, &str) =
    ("default/default/hello.svc/latest/10.9.0.80:80", "{}");

/// The name and the address of [`REGISTRATION`].
const SERVICE: (&str, &str) = ("hello.svc", "10.9.0.80");

/// A name outside the zones and its address; systemd-resolved does not validate `test`.
const OUTSIDE: (&str, &str) = ("www.example.test", "192.0.2.80");

/// Starts a name server for names other than svcdns's.
pub(crate) fn serve_outside_name(at: SocketAddr) -> Upstream {
    let upstream = Upstream::start_at(at);
    upstream.put([Record::a(OUTSIDE.0, 0, OUTSIDE.1)]);
    upstream
}

/// Waits until the outside name resolves.
pub(crate) fn expect_outside_name(manager: &dyn ServiceManager, when: &str) {
    expect(manager, OUTSIDE, when);
}

/// Waits until a name of svcdns and the outside name resolve.
pub(crate) fn expect_names(manager: &dyn ServiceManager, when: &str) {
    expect(manager, SERVICE, when);
    expect(manager, OUTSIDE, when);
}

/// Waits until the C library and systemd-resolved itself find a name.
fn expect(manager: &dyn ServiceManager, (name, address): (&str, &str), when: &str) {
    eventually(&format!("{name} through the C library {when}"), SOON, || {
        (manager.addresses(name) == [address]).then_some(())
    });
    eventually(&format!("{name} through systemd-resolved {when}"), SOON, || {
        let output = manager.run(&["resolvectl", "--cache=no", "query", name]);
        String::from_utf8_lossy(&output.stdout).contains(address).then_some(())
    });
}

/// Restarts, stops and kills systemd-resolved and svcdns; the names resolve after each of them.
pub(crate) fn expect_route_through_restarts(manager: &dyn ServiceManager) {
    let has_link = || manager.succeeds(&["ip", "link", "show", "svcdns0"]);
    // Without one, the route is a delegate.
    let had_link = has_link();
    for unit in [RESOLVED, "svcdns.service"] {
        manager.restart(unit);
        expect_names(manager, &format!("after a restart of {unit}"));
        manager.kill(unit);
        expect_names(manager, &format!("after a kill of {unit}"));
    }
    assert_eq!(has_link(), had_link);
    manager.ends_with(0, &["systemctl", "stop", RESOLVED]);
    assert!(!has_link(), "the link outlives {RESOLVED}");
    manager.ends_with(0, &["systemctl", "start", RESOLVED]);
    expect_names(manager, &format!("after a stop and start of {RESOLVED}"));
    // Without svcdns only its own names are lost.
    manager.ends_with(0, &["systemctl", "stop", "svcdns.service"]);
    expect_outside_name(manager, "without svcdns");
    manager.ends_with(0, &["systemctl", "start", "svcdns.service"]);
    expect_names(manager, "after a stop and start of svcdns");
}
