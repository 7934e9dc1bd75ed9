//! One name with very many instances: an answer should cost what its octets cost.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::content::{self, Shape, Store, VALUE};
use super::count;
use super::step::{self, Questions, Step};
use super::support::dns;

/// The names, far from those of other services.
const EQUAL: usize = 90_000_000;
const WEIGHTED: usize = 90_000_001;

/// The first octet of their addresses.
const EQUAL_NET: u8 = 11;
const WEIGHTED_NET: u8 = 12;

/// The address of an instance. All have as many digits, so that the names of all instances are of one length, and as many
/// records fit whichever they are.
fn address(net: u8, instance: usize) -> Ipv4Addr {
    let digits = |number: usize| u8::try_from(100 + number).unwrap();
    Ipv4Addr::new(net, 100, digits(instance / 100), digits(instance % 100))
}

/// All answers of two names with so many instances, one of them with weights, among other services.
pub(crate) fn of(shape: Shape, instances: usize) -> Vec<Step> {
    let mut store = Store::of(shape);
    let (mut equal, mut weighted) = (Vec::new(), Vec::new());
    for instance in 0..instances {
        equal.push(store.put(&content::key(EQUAL, address(EQUAL_NET, instance)), VALUE));
        let value =
            format!(r#"{{"insecure":true,"protocol":"http","weight":{}}}"#, 1 + instance % 7);
        weighted.push(store.put(&content::key(WEIGHTED, address(WEIGHTED_NET, instance)), &value));
    }
    store.apply(equal);
    store.apply(weighted);
    let mut steps = Vec::new();
    for (kind, service, qtype) in [
        ("A", EQUAL, dns::A),
        ("A with weights", WEIGHTED, dns::A),
        ("SRV", EQUAL, dns::SRV),
        ("SRV with weights", WEIGHTED, dns::SRV),
    ] {
        let plain = dns::question(7, &Shape::name(service), qtype);
        let edns = dns::question_with_opt(7, &Shape::name(service), qtype, 1232);
        for (size, question) in [("512", plain), ("1232", edns)] {
            let records = step::records(&store, &question);
            steps.push(Step::answer(
                &format!("{kind}, {size} octets"),
                &store,
                Questions::of([question]),
                0,
                records,
            ));
        }
    }
    let mut weight = 2;
    steps.push(Step::new("a publication of one change", move || {
        weight = 9 - weight;
        let value = format!(r#"{{"insecure":true,"protocol":"http","weight":{weight}}}"#);
        let change = store.put(&content::key(WEIGHTED, address(WEIGHTED_NET, 0)), &value);
        store.apply([change]);
    }));
    steps
}

/// Measures and prints a name with three instances and one with many.
pub(crate) fn print(shape: Shape, many: usize, rounds: usize, turn: Duration, counted: usize) {
    println!(
        "\nOne name, over UDP                      instances   octets       ns  ns an octet  instructions  instructions an octet"
    );
    for instances in [3, many] {
        let mut steps = of(shape, instances);
        let times = step::time(&mut steps, rounds, turn);
        let counts =
            count::of(&format!("name:{}:{}:{instances}", shape.services, shape.instances), counted);
        for ((step, time), count) in steps.iter().zip(times).zip(counts) {
            let time = time.median();
            print!("{:<38} {instances:>10}", step.name);
            if step.octets == 0 {
                println!("          {time:>8.0}              {count:>13.0}");
            } else {
                let octets = step.octets as f64;
                println!(
                    " {octets:>8} {time:>8.0} {:>12.2} {count:>13.0} {:>22.1}",
                    time / octets,
                    count / octets
                );
            }
        }
    }
    println!("(the same question all the time; an answer includes the parse of its question)");
}
