//! Large SRV answers over TCP, as dig and Node (c-ares) read them.
//!
//! c-ares 1.34 writes each response out again, and fails above 64 KiB. Names in SRV data must not
//! be compressed (RFC 2782), so what fits into one message need not fit into another.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::TcpStream;
use std::process::Command;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData};
use support::files::Files;
use support::svcdns::Svcdns;
use support::{dns, eventually, seconds};

/// Sizes of services, from one that fits whole to ones whose SRV records alone do not.
const SIZES: [usize; 8] = [700, 950, 1_000, 1_400, 1_575, 1_600, 2_500, 6_000];

/// Asks over TCP.
fn ask_over_tcp(server: &Svcdns, name: &str, qtype: u16) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    dns::send_tcp(&mut stream, &dns::query_with_opt(1, name, qtype, 1232));
    dns::receive_tcp(&mut stream).unwrap()
}

/// Returns the size of a message with all names written out.
fn bytes_without_compression(message: &Message) -> usize {
    let name = |name: &Name| name.iter().map(|label| label.len() + 1).sum::<usize>() + 1;
    let question: usize = message.queries.iter().map(|query| name(query.name()) + 4).sum();
    let records = message.answers.iter().chain(&message.additionals);
    let records: usize = records
        .map(|record| {
            let data = match &record.data {
                RData::A(_) => 4,
                RData::AAAA(_) => 16,
                RData::SRV(srv) => 6 + name(&srv.target),
                other => panic!("{other}"),
            };
            name(&record.name) + 10 + data
        })
        .sum();
    12 + question + records + 11
}

#[test]
fn large_srv_answers_are_readable_by_node() {
    let names: Vec<_> = SIZES.iter().map(|size| format!("n{size}.svc")).collect();
    let long = "a-service-with-quite-a-long-name.and-more.svc".to_owned();
    let files = Files::new(&[]);
    for (name, size) in names.iter().zip(SIZES).chain([(&long, 3_000)]) {
        for at in 0..size {
            let (high, low) = (at / 250, at % 250);
            let weight = if size == 2_500 { at % 7 } else { 1 };
            files.put(
                &format!("default/default/{name}/latest/10.200.{high}.{low}:8080"),
                &format!(r#"{{"weight":{weight}}}"#),
            );
        }
    }
    let server = Svcdns::serve(&["--registry", &files.url(), "--upstream", "off"]);
    eventually("all instances to be read", seconds(120), || {
        let last = Message::from_vec(&ask_over_tcp(&server, "n6000.svc", dns::A)).ok()?;
        let all = Message::from_vec(&ask_over_tcp(&server, &long, dns::A)).ok()?;
        (last.answers.len() > 4_000 && all.answers.len() == 3_000).then_some(())
    });
    let mut expected = Vec::new();
    for (name, size) in names.iter().zip(SIZES).chain([(&long, 3_000)]) {
        let bytes = ask_over_tcp(&server, name, dns::SRV);
        let message = Message::from_vec(&bytes).unwrap();
        let spelled = bytes_without_compression(&message);
        // 60 KiB and an OPT record: with some headroom below 64 KiB.
        assert!(spelled <= 60 * 1024 + 11, "{name}: {spelled} bytes");
        assert!(!message.metadata.truncation, "{name}");
        let answers = message.answers.len();
        assert!(answers == size || spelled > 61_000, "{name}: {answers} in {spelled} bytes");
        let complete = answers == size && message.additionals.len() == size;
        assert_eq!(complete, size == 700, "{name}: {answers}");
        assert!(size > 1_000 || answers == size, "{name}: {answers}");
        expected.push((name, answers));
        // `explain` says what is left out.
        let explained = server.run(&["explain", name, "SRV"]);
        let text = String::from_utf8(explained.stdout).unwrap();
        let numbers = text.lines().find_map(|line| line.trim().strip_prefix("over TCP: "));
        let numbers: Vec<usize> = numbers
            .into_iter()
            .flat_map(|line| line.split(' ').filter_map(|word| word.parse().ok()))
            .collect();
        if complete {
            assert!(numbers.is_empty(), "{text}");
            continue;
        }
        let [length, records, addresses] = numbers[..] else { panic!("{text}") };
        assert!(
            about(length, bytes.len())
                && about(size - records, answers)
                && about(addresses, answers - message.additionals.len()),
            "{name}: {numbers:?}, {answers} of {size}, {} addresses",
            message.additionals.len()
        );
    }
    let output = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/srv.js"))
        .arg(server.address.to_string())
        .args(names.iter().chain([&long]))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.lines().count(), expected.len(), "{printed}{errors}");
    for (line, (name, answers)) in printed.lines().zip(expected) {
        let words: Vec<_> = line.split(' ').collect();
        let count: usize = words[1].parse().unwrap();
        assert!(words[0] == name && words[1] == words[2] && about(count, answers), "{line}");
    }
    server.stop();
}

/// Returns whether two numbers are equal but for the length of the names that were drawn.
fn about(one: usize, other: usize) -> bool {
    one.abs_diff(other) <= 5 + one.max(other) / 50
}
