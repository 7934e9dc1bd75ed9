//! The steps of a question's way to its answer, and of a change's.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::content::{self, Shape, Store, VALUE};
use super::count;
use super::step::{self, Questions, Step};
use super::support::dns;

/// Questions of each kind, at names drawn at random.
const QUESTIONS: usize = 4096;

/// A service beside the others, with weights.
const WEIGHTED: usize = 90_000_000;
/// And one whose addresses do not fit 512 octets.
const LARGE: usize = 90_000_001;
const LARGE_INSTANCES: usize = 100;

/// All steps, with so much known.
pub(crate) fn of(shape: Shape) -> Vec<Step> {
    let mut store = Store::of(shape);
    add_special(&mut store);
    let each = u16::try_from(shape.instances).unwrap();
    let some = |question: &dyn Fn(usize) -> Vec<u8>| {
        Questions::of((0..QUESTIONS).map(|_| question(fastrand::usize(..shape.services))))
    };
    let plain =
        |qtype| some(&|service| dns::question(fastrand::u16(..), &Shape::name(service), qtype));
    let edns = |qtype| {
        some(&|service| {
            dns::question_with_opt(fastrand::u16(..), &Shape::name(service), qtype, 1232)
        })
    };
    let one = |name: String, qtype| Questions::of([dns::question(7, &name, qtype)]);
    let absent = some(&|service| {
        dns::question(fastrand::u16(..), &Shape::name(service + 50_000_000), dns::A)
    });
    let fit = step::records(&store, &dns::question(7, &Shape::name(LARGE), dns::A));
    let answer =
        |name: &str, questions, code, records| Step::answer(name, &store, questions, code, records);
    let mut steps = vec![
        Step::parse("parse of a question", plain(dns::A)),
        Step::parse("parse of a question with EDNS", edns(dns::A)),
        answer("A", plain(dns::A), 0, each),
        answer("A, one name all the time", one(Shape::name(0), dns::A), 0, each),
        answer("A with EDNS", edns(dns::A), 0, each),
        answer("A of 3 instances with weights", one(Shape::name(WEIGHTED), dns::A), 0, 3),
        answer(
            &format!("A, {fit} of {LARGE_INSTANCES} instances fit"),
            one(Shape::name(LARGE), dns::A),
            0,
            fit,
        ),
        answer("SRV", plain(dns::SRV), 0, each),
        answer("NODATA (AAAA)", plain(dns::AAAA), 0, 0),
        answer("NXDOMAIN", absent, 3, 0),
        answer("A, namespace and deployment spelled out", some(&spelled_out), 0, each),
    ];
    steps.push(publication(store, shape));
    steps
}

fn spelled_out(service: usize) -> Vec<u8> {
    let name = Shape::name(service);
    dns::question(
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

/// An instance more of some service, or the same one gone again.
pub(crate) fn publication(mut store: Store, shape: Shape) -> Step {
    let mut there: Option<String> = None;
    Step::new("a publication of one change", move || {
        let change = if let Some(key) = there.take() {
            store.delete(&key)
        } else {
            let key = there.insert(content::key(
                fastrand::usize(..shape.services),
                shape.address(shape.services, 0),
            ));
            store.put(key, VALUE)
        };
        store.apply([change]);
    })
}

/// Measures and prints all of them.
pub(crate) fn print(shape: Shape, rounds: usize, turn: Duration, counted: usize) {
    let mut steps = of(shape);
    let times = step::time(&mut steps, rounds, turn);
    let counts = count::of(&format!("steps:{}:{}", shape.services, shape.instances), counted);
    println!(
        "\n{} services of {} instances, names of 20 octets     ns  (low to high)  instructions  octets",
        shape.services, shape.instances
    );
    for ((step, times), count) in steps.iter().zip(times).zip(counts) {
        let [low, median, high] = [0.0, 0.5, 1.0].map(|share| times.percentile(share));
        let octets = if step.octets == 0 { String::new() } else { step.octets.to_string() };
        println!(
            "{:<46} {median:>10.0}  ({low:>5.0}-{high:>5.0})  {count:>12.0} {octets:>7}",
            step.name
        );
    }
    println!(
        "(an answer includes the parse of its question; names at random, {QUESTIONS} of them, unless said otherwise)"
    );
}
