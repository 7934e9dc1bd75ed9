//! Arbitrary packets, sent to servers with different settings and registry states.

use std::sync::{Arc, LazyLock};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use svcdns::answer::{Answerer, Answers, Publisher, Settings};
use svcdns::catalog;
use svcdns::name::Zones;
use svcdns::registry::gsvc;
use svcdns::service::{Addresses, Change, ListKind, Put, RegistryId, Update};
use svcdns::wire::Transport;

use super::answers::{Kinds, answer};
use super::choices::Choices;
use super::query::TestQuery;

/// Keys and values of every kind of service.
const KEYS: &str = r#"
/service/default/default/hello.svc/latest/10.0.0.1:8000 {"protocol":"http","env":"a.b"}
/service/default/default/hello.svc/latest/10.0.0.2:8000,[fd00::5]:8000 {"protocol":"http"}
/service/default/default/hello.svc/v1.2.0/10.0.0.3:9000 {}
/service/default/default/hello/v9/10.0.0.9:1 {}
/service/default/prod/hello.svc/latest/10.0.1.1:80 {}
/service/blue/prod/hello.svc/latest/10.0.2.1:80 {}
/service/default/prod/prodonly/latest/10.0.1.9:80 {}
/service/default/default/a.b.c/latest/10.0.3.1:80 {}
/service/default/default/w/latest/10.0.4.1:80 {"weight":3}
/service/default/default/w/latest/10.0.4.2:80 {"weight":1}
/service/default/default/w/latest/10.0.4.3:80 {"weight":0}
/service/default/default/web/latest/web.example:80 {}
/service/default/default/both/latest/web.example:80,localhost:81,10.0.0.7:82 {}
/service/default/default/10-0-0-1.hello/latest/10.0.5.1:80 {}
/service/default/default/hello.prod/latest/10.0.5.2:80 {}
/service/default/default/none/latest/10.0.0.1:0 {}
/service/default/default/ver/v1/10.0.6.1:80 {}
/service/default/default/ver/v2/10.0.6.2:80 {}
"#;

/// Answerers that all runs share.
struct Answerers([Arc<Answerer>; 4]);

static ANSWERERS: LazyLock<Answerers> = LazyLock::new(|| {
    let forwarding = Settings { forwarding: true, answers: Answers::Fit, ..settings() };
    let one = Settings { answers: Answers::Count(1.try_into().unwrap()), ..settings() };
    let disconnected = [Change::Connected(false)];
    Answerers([
        answerer(settings(), true, []),
        answerer(forwarding, true, []),
        answerer(one, true, disconnected),
        answerer(settings(), false, []),
    ])
});

/// Fuzzes packets; the input is a byte of choices, a random byte and a packet.
///
/// The first byte chooses server and transport.
pub fn packets(input: &[u8]) {
    let mut choices = Choices::new(input);
    let which = choices.byte();
    let draw = u64::from(choices.byte()) << (which >> 3);
    let transport = if which & 4 == 0 { Transport::Udp } else { Transport::Tcp };
    let query = TestQuery { packet: choices.rest().to_vec(), transport, draw };
    answer(&ANSWERERS.0[usize::from(which & 3)], &query, &mut Kinds::unmeasured());
}

fn settings() -> Settings {
    let zones = Zones::new(&["svc".to_owned(), "a.b.svc".to_owned()]).unwrap();
    Settings { listen: vec![[127, 0, 0, 1].into()], ..Settings::new(zones) }
}

/// Returns an answerer for [`KEYS`].
///
/// `read` completes the list of the registry before `then`.
fn answerer(
    settings: Settings,
    read: bool,
    then: impl IntoIterator<Item = Change>,
) -> Arc<Answerer> {
    let now = Instant::now();
    let (mut publisher, answerer) =
        Publisher::new(catalog::Settings::new(settings.zones.clone(), 1), settings, now);
    let mut changes = vec![Change::list_begin(ListKind::Routine)];
    changes.extend(
        KEYS.lines().filter_map(|line| line.split_once(' ')).map(|(key, value)| put(key, value)),
    );
    changes.extend((0..120).map(|at| {
        put(
            &format!("/service/default/default/many/latest/10.1.0.{at}:80"),
            &format!("{{\"weight\":{}}}", at % 7),
        )
    }));
    changes.extend(
        (0..120).map(|at| {
            put(&format!("/service/default/default/many.many/latest/10.2.0.{at}:80"), "{}")
        }),
    );
    if read {
        changes.push(Change::ListEnd { revision: 1 });
    }
    changes.extend(then);
    publisher.apply([Update::Registry(RegistryId::FIRST, changes)], now);
    let found = BTreeMap::from([(
        Box::from("web.example"),
        Addresses::Known([[192, 0, 2, 1].into()].into()),
    )]);
    publisher.apply([Update::Hosts(found.into_iter().collect())], now);
    publisher.apply([], now + Duration::from_secs(1));
    answerer
}

fn put(key: &str, value: &str) -> Change {
    let content = gsvc::parse(key.as_bytes(), value.as_bytes());
    Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
}
