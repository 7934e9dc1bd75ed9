//! A name with very many instances: a response should cost as much as its bytes.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::content::{self, Shape, Store, VALUE};
use super::count;
use super::step::{self, Queries, Step};
use super::support::dns;

/// Numbers of the services, far from those of other services.
const EQUAL: usize = 90_000_000;
const WEIGHTED: usize = 90_000_001;

/// First bytes of the addresses.
const EQUAL_NET: u8 = 11;
const WEIGHTED_NET: u8 = 12;

/// Returns the address of an instance.
///
/// All addresses have equally many digits, so that the names of all instances have the same length
/// and the number of records that fit does not depend on the choice.
fn address(net: u8, instance: usize) -> Ipv4Addr {
    let digits = |number: usize| u8::try_from(100 + number).unwrap();
    Ipv4Addr::new(net, 100, digits(instance / 100), digits(instance % 100))
}

/// Returns steps for all responses of two names with many instances.
///
/// One of the names has weights. Other services surround them.
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
        let plain = dns::query(7, &Shape::name(service), qtype);
        let edns = dns::query_with_opt(7, &Shape::name(service), qtype, 1232);
        for (size, query) in [("512", plain), ("1232", edns)] {
            let records = step::answer_count(&store, &query);
            steps.push(Step::response(
                &format!("{kind}, {size} bytes"),
                &store,
                Queries::of([query]),
                0,
                records,
            ));
        }
    }
    let mut weight = 2;
    steps.push(Step::new("publication of one change", move || {
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
        "\nOne name, over UDP                      instances    bytes       ns  ns per byte  \
         instructions  instructions per byte"
    );
    for instances in [3, many] {
        let mut steps = of(shape, instances);
        let times = step::time(&mut steps, rounds, turn);
        let counts =
            count::of(&format!("name:{}:{}:{instances}", shape.services, shape.instances), counted);
        for ((step, time), count) in steps.iter().zip(times).zip(counts) {
            let time = time.median();
            print!("{:<38} {instances:>10}", step.name);
            if step.bytes == 0 {
                println!("          {time:>8.0}              {count:>13.0}");
            } else {
                let bytes = step.bytes as f64;
                println!(
                    " {bytes:>8} {time:>8.0} {:>12.2} {count:>13.0} {:>22.1}",
                    time / bytes,
                    count / bytes
                );
            }
        }
    }
    println!("(the same query each time; a response includes parsing the query)");
}
