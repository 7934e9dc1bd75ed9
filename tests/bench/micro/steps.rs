//! The steps of answering a query and of publishing a change.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::content::{self, Shape, Store, VALUE};
use super::count;
use super::step::{self, Queries, Step};
use super::support::dns;

/// Queries of each kind, for random names.
const QUERIES: usize = 4096;

/// Number of an additional service with weights.
const WEIGHTED: usize = 90_000_000;
/// Number of an additional service whose addresses do not fit into 512 bytes.
const LARGE: usize = 90_000_001;
const LARGE_INSTANCES: usize = 100;

/// Returns all steps, for registered services of this shape.
pub(crate) fn of(shape: Shape) -> Vec<Step> {
    let mut store = Store::of(shape);
    add_special(&mut store);
    let each = u16::try_from(shape.instances).unwrap();
    let some = |query: &dyn Fn(usize) -> Vec<u8>| {
        Queries::of((0..QUERIES).map(|_| query(fastrand::usize(..shape.services))))
    };
    let plain =
        |qtype| some(&|service| dns::query(fastrand::u16(..), &Shape::name(service), qtype));
    let edns = |qtype| {
        some(&|service| dns::query_with_opt(fastrand::u16(..), &Shape::name(service), qtype, 1232))
    };
    let one = |name: String, qtype| Queries::of([dns::query(7, &name, qtype)]);
    let absent =
        some(&|service| dns::query(fastrand::u16(..), &Shape::name(service + 50_000_000), dns::A));
    let fit = step::answer_count(&store, &dns::query(7, &Shape::name(LARGE), dns::A));
    let response =
        |name: &str, queries, code, records| Step::response(name, &store, queries, code, records);
    let mut steps = vec![
        Step::parse("parsing a query", plain(dns::A)),
        Step::parse("parsing a query with EDNS", edns(dns::A)),
        response("A", plain(dns::A), 0, each),
        response("A, same name each time", one(Shape::name(0), dns::A), 0, each),
        response("A with EDNS", edns(dns::A), 0, each),
        response("A of 3 instances with weights", one(Shape::name(WEIGHTED), dns::A), 0, 3),
        response(
            &format!("A, {fit} of {LARGE_INSTANCES} instances fit"),
            one(Shape::name(LARGE), dns::A),
            0,
            fit,
        ),
        response("SRV", plain(dns::SRV), 0, each),
        response("NODATA (AAAA)", plain(dns::AAAA), 0, 0),
        response("NXDOMAIN", absent, 3, 0),
        response("A, explicit namespace and deployment", some(&explicit_query), 0, each),
    ];
    steps.push(publication(store, shape));
    steps
}

fn explicit_query(service: usize) -> Vec<u8> {
    let name = Shape::name(service);
    dns::query(
        fastrand::u16(..),
        &format!("{}.default.default.svc", name.strip_suffix(".svc").unwrap()),
        dns::A,
    )
}

fn add_special(store: &mut Store) {
    let weight =
        |instance| format!(r#"{{"insecure":true,"protocol":"http","weight":{}}}"#, 2 + instance);
    let mut changes: Vec<_> = (0..3)
        .map(|instance| store.put(&special_key(WEIGHTED, instance), &weight(instance)))
        .collect();
    changes.extend(
        (0..LARGE_INSTANCES).map(|instance| store.put(&special_key(LARGE, instance), VALUE)),
    );
    store.apply(changes);
}

fn special_key(service: usize, instance: usize) -> String {
    let number = u32::try_from(instance).unwrap();
    content::key(service, Ipv4Addr::from_bits((10 << 24) + (250 << 16) + number))
}

/// Returns a step that adds an instance to a random service, or removes it.
pub(crate) fn publication(mut store: Store, shape: Shape) -> Step {
    let mut added: Option<String> = None;
    Step::new("publication of one change", move || {
        let change = if let Some(key) = added.take() {
            store.delete(&key)
        } else {
            let key = added.insert(content::key(
                fastrand::usize(..shape.services),
                shape.address(shape.services, 0),
            ));
            store.put(key, VALUE)
        };
        store.apply([change]);
    })
}

/// Measures and prints all steps.
pub(crate) fn print(shape: Shape, rounds: usize, turn: Duration, counted: usize) {
    let mut steps = of(shape);
    let times = step::time(&mut steps, rounds, turn);
    let counts = count::of(&format!("steps:{}:{}", shape.services, shape.instances), counted);
    println!(
        "\n{} services of {} instances, names of 20 bytes     ns  (low to high)  \
         instructions   bytes",
        shape.services, shape.instances
    );
    for ((step, times), count) in steps.iter().zip(times).zip(counts) {
        let [low, median, high] = [0.0, 0.5, 1.0].map(|share| times.percentile(share));
        let bytes = if step.bytes == 0 { String::new() } else { step.bytes.to_string() };
        println!(
            "{:<46} {median:>10.0}  ({low:>5.0}-{high:>5.0})  {count:>12.0} {bytes:>7}",
            step.name
        );
    }
    println!(
        "(a response includes parsing the query; {QUERIES} random names unless noted otherwise)"
    );
}
