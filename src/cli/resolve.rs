//! `svcdns resolve`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::arguments::Resolve;
use super::client::Client;
use super::{FAILED_ANSWER, NOT_FOUND, Place, names, output};
use crate::admin::Status;
use crate::name::Name;
use crate::wire::{OPTION_EXTENDED_ERROR, extended_error_text, rcode_name, rtype, type_name};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Attempts over UDP.
const ATTEMPTS: u32 = 3;

/// The octets that we take over UDP.
const PAYLOAD: u16 = 1232;

pub(super) async fn run(place: &Place, command: Resolve) -> anyhow::Result<ExitCode> {
    let (server, zones) = if let Some(server) = command.server {
        (server, names::zones(&[command.zone])?)
    } else {
        let status: Status = Client::find(place).await?.get("/v1/status").await?;
        (own_address(&status)?, names::zones(&status.zones)?)
    };
    let name = names::meant(&command.name, &zones)?;
    let rtypes = match command.kind.as_deref() {
        None if !names::is_reverse(&name) => vec![rtype::A, rtype::AAAA],
        kind => vec![names::rtype(kind, &name)?],
    };
    let mut records = String::new();
    let mut worst: Option<(u8, ResponseCode)> = None;
    for rtype in &rtypes {
        let answer = ask(server, &name, RecordType::from(*rtype)).await?;
        for record in &answer.answers {
            let line = if command.short { data(&record.data) } else { line(record) };
            let _ = writeln!(records, "{line}");
        }
        if let Some(note) = extended_error(&answer) {
            output::complain(&format!("{name} {}: {note}", type_name(*rtype)));
        }
        match answer.metadata.response_code {
            ResponseCode::NoError if !answer.answers.is_empty() => {}
            code @ (ResponseCode::NoError | ResponseCode::NXDomain) => worst = worst.or(Some((NOT_FOUND, code))),
            code => worst = Some((FAILED_ANSWER, code)),
        }
    }
    output::print(&records)?;
    let Some((code, response)) = worst else { return Ok(ExitCode::SUCCESS) };
    if code == NOT_FOUND && !records.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let types = rtypes.iter().map(|rtype| type_name(*rtype)).collect::<Vec<_>>().join(" or ");
    output::complain(&match response {
        ResponseCode::NXDomain => format!("{name}: there is no such name (NXDOMAIN)"),
        ResponseCode::NoError => format!("{name}: the name exists and has no record of type {types}"),
        other => format!("{name}: the server answered {}", rcode_name(other.into())),
    });
    if let Some(hint) = names::hint(&command.name, &name.to_string()).filter(|_| response == ResponseCode::NXDomain) {
        output::complain(&hint);
    }
    Ok(code.into())
}

/// An address at which the running server answers us.
pub(super) fn own_address(status: &Status) -> anyhow::Result<SocketAddr> {
    let loopback = status.listen.iter().find(|address| address.ip().is_loopback());
    let mut address = *loopback.or_else(|| status.listen.first()).context("the running svcdns listens nowhere")?;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    Ok(address)
}

/// Asks over UDP, and over TCP when the answer says that there is more.
pub(super) async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> anyhow::Result<Message> {
    let mut query = Message::query();
    query.metadata.id = fastrand::u16(..);
    query.metadata.recursion_desired = true;
    let name = hickory_proto::rr::Name::from_labels(name.labels()).with_context(|| format!("{name} is not a name"))?;
    query.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    query.set_edns(edns);
    let octets = query.to_vec()?;
    let answer = over_udp(server, &octets, query.metadata.id).await?;
    if answer.metadata.truncation { over_tcp(server, &octets).await } else { Ok(answer) }
}

async fn over_udp(server: SocketAddr, query: &[u8], id: u16) -> anyhow::Result<Message> {
    let any = if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..ATTEMPTS {
        let attempt = timeout(ATTEMPT, async {
            socket.send(query).await?;
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Anything else is a late or forged answer.
                if let Ok(answer) = Message::from_vec(&buffer[..length])
                    && answer.metadata.id == id
                {
                    return Ok::<_, std::io::Error>(answer);
                }
            }
        });
        match attempt.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => return Err(error).with_context(|| format!("no DNS server answers at {server}")),
            Err(_) => {}
        }
    }
    bail!("no DNS server answers at {server}")
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> anyhow::Result<Message> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let mut message = u16::try_from(query.len())?.to_be_bytes().to_vec();
        message.extend_from_slice(query);
        stream.write_all(&message).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(ATTEMPT, exchange).await.map_err(|_| anyhow!("no answer in time"))?;
    let answer = answer.with_context(|| format!("cannot ask {server} over TCP"))?;
    Ok(Message::from_vec(&answer)?)
}

/// A record as people read it: name, TTL, type, data.
fn line(record: &Record) -> String {
    format!("{}  {}  {}  {}", record.name, record.ttl, type_name(record.record_type().into()), data(&record.data))
}

fn data(data: &RData) -> String {
    match data {
        RData::SRV(srv) => format!("{}:{} priority {} weight {}", srv.target, srv.port, srv.priority, srv.weight),
        RData::TXT(txt) => {
            let strings = txt.txt_data.iter().map(|text| format!("\"{}\"", text.escape_ascii()));
            strings.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// What the server says besides the answer (RFC 8914).
fn extended_error(answer: &Message) -> Option<String> {
    let option = answer.edns.as_ref()?.option(EdnsCode::Unknown(OPTION_EXTENDED_ERROR))?;
    let octets = <Vec<u8>>::try_from(option).ok()?;
    let (code, text) = octets.split_at_checked(2)?;
    let code = u16::from_be_bytes([*code.first()?, *code.get(1)?]);
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    Some(extended_error_text(code, &text))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::NULL;

    use super::*;

    #[test]
    fn a_record_is_printed_with_its_type_even_without_a_name() {
        let name = hickory_proto::rr::Name::from_ascii("a.example.").unwrap();
        let of = |data: RData| line(&Record::from_rdata(name.clone(), 60, data));
        assert_eq!(of(RData::A(Ipv4Addr::LOCALHOST.into())), "a.example.  60  A  127.0.0.1");
        let unnamed = RData::Unknown { code: RecordType::Unknown(65280), rdata: NULL::with(vec![1]) };
        assert!(of(unnamed).starts_with("a.example.  60  TYPE65280  "));
    }
}
