//! `svcdns resolve`: sends a query and prints the records.
//!
//! Other commands also send their queries with [`query`].

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

use super::arguments::ResolveArgs;
use super::client::AdminClient;
use super::{FAILED_ANSWER, NOT_FOUND, ServerLocation, names, output, reachable};
use crate::admin::ServerStatus;
use crate::name::Name;
use crate::wire::{OPTION_EXTENDED_ERROR, extended_error_text, rcode_name, rtype, type_name};

/// Maximum wait for a response, per attempt.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum attempts over UDP.
const UDP_ATTEMPTS: u32 = 3;

/// UDP payload size that queries advertise, in bytes.
const UDP_PAYLOAD_BYTES: u16 = 1232;

pub(super) async fn run(
    location: &ServerLocation,
    command: ResolveArgs,
) -> anyhow::Result<ExitCode> {
    let (server, zones, client) = if let Some(server) = command.server {
        (server, names::zones(&[command.zone])?, None)
    } else {
        let client = AdminClient::find(location).await?;
        let status: ServerStatus = client.get("/v1/status").await?;
        (own_address(&status)?, names::zones(&status.zones)?, Some(client))
    };
    let name = names::complete(&command.name, &zones)?;
    let rtypes = match command.kind.as_deref() {
        None if !names::is_reverse(&name) => vec![rtype::A, rtype::AAAA],
        kind => vec![names::rtype(kind, &name)?],
    };
    let mut records = String::new();
    let mut worst: Option<(u8, ResponseCode)> = None;
    for rtype in &rtypes {
        let response = query(server, &name, RecordType::from(*rtype)).await?;
        for record in &response.answers {
            let line =
                if command.short { format_data(&record.data) } else { format_record(record) };
            let _ = writeln!(records, "{line}");
        }
        if let Some(error) = extended_error(&response) {
            output::complain(&format!("{name} {}: {error}", type_name(*rtype)));
        }
        match response.metadata.response_code {
            ResponseCode::NoError if !response.answers.is_empty() => {}
            code @ (ResponseCode::NoError | ResponseCode::NXDomain) => {
                worst = worst.or(Some((NOT_FOUND, code)));
            }
            code => worst = Some((FAILED_ANSWER, code)),
        }
    }
    output::print(&records)?;
    let Some((code, rcode)) = worst else { return Ok(ExitCode::SUCCESS) };
    if code == NOT_FOUND && !records.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let types = rtypes.iter().map(|rtype| type_name(*rtype)).collect::<Vec<_>>().join(" or ");
    let suggestion = match client {
        Some(client) if rcode == ResponseCode::NXDomain => client.suggest(&name).await,
        _ => None,
    };
    output::complain(&match (rcode, suggestion) {
        (ResponseCode::NXDomain, Some(close)) => {
            format!("NXDOMAIN: {name} does not exist; did you mean {close}?")
        }
        (ResponseCode::NXDomain, None) => format!("NXDOMAIN: {name} does not exist"),
        (ResponseCode::NoError, _) => format!("NODATA: {name} has no record of type {types}"),
        (other, _) => format!("{}: no answer for {name}", rcode_name(other.into())),
    });
    if let Some(hint) =
        names::hint(&command.name, &name.to_string()).filter(|_| rcode == ResponseCode::NXDomain)
    {
        output::complain(&hint);
    }
    Ok(code.into())
}

/// Returns an address of the running server that this machine can query.
pub(super) fn own_address(status: &ServerStatus) -> anyhow::Result<SocketAddr> {
    let loopback = status.listen.iter().find(|address| address.ip().is_loopback());
    let address = loopback
        .or_else(|| status.listen.first())
        .context("the running svcdns listens on no address")?;
    Ok(reachable(*address))
}

/// Sends a query over UDP, and again over TCP if the response is truncated.
pub(super) async fn query(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> anyhow::Result<Message> {
    let mut message = Message::query();
    message.metadata.id = fastrand::u16(..);
    message.metadata.recursion_desired = true;
    let name = hickory_proto::rr::Name::from_labels(name.labels())
        .with_context(|| format!("{name} is not a name"))?;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_BYTES);
    message.set_edns(edns);
    let bytes = message.to_vec()?;
    let response = over_udp(server, &bytes, message.metadata.id).await?;
    if response.metadata.truncation { over_tcp(server, &bytes).await } else { Ok(response) }
}

async fn over_udp(server: SocketAddr, query: &[u8], id: u16) -> anyhow::Result<Message> {
    let any = if server.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..UDP_ATTEMPTS {
        let attempt = timeout(RESPONSE_TIMEOUT, async {
            socket.send(query).await?;
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Skip late and forged responses.
                if let Ok(response) = Message::from_vec(&buffer[..length])
                    && response.metadata.id == id
                {
                    return Ok::<_, std::io::Error>(response);
                }
            }
        });
        match attempt.await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) => {
                return Err(error).with_context(|| format!("no DNS server answers at {server}"));
            }
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
        let mut response = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut response).await?;
        anyhow::Ok(response)
    };
    let response =
        timeout(RESPONSE_TIMEOUT, exchange).await.map_err(|_| anyhow!("no response in time"))?;
    let response = response.with_context(|| format!("cannot query {server} over TCP"))?;
    Ok(Message::from_vec(&response)?)
}

/// Formats a record: owner, TTL, type and data.
fn format_record(record: &Record) -> String {
    format!(
        "{}  {}  {}  {}",
        record.name,
        record.ttl,
        type_name(record.record_type().into()),
        format_data(&record.data)
    )
}

fn format_data(data: &RData) -> String {
    match data {
        RData::SRV(srv) => {
            format!("{}:{} priority {} weight {}", srv.target, srv.port, srv.priority, srv.weight)
        }
        RData::TXT(txt) => {
            let strings = txt.txt_data.iter().map(|text| format!("\"{}\"", text.escape_ascii()));
            strings.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// Returns the extended DNS error of a response, if any (RFC 8914).
pub(super) fn extended_error(response: &Message) -> Option<String> {
    let option = response.edns.as_ref()?.option(EdnsCode::Unknown(OPTION_EXTENDED_ERROR))?;
    let bytes = <Vec<u8>>::try_from(option).ok()?;
    let (code, text) = bytes.split_at_checked(2)?;
    let code = u16::from_be_bytes([*code.first()?, *code.get(1)?]);
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    Some(extended_error_text(code, &text))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::NULL;

    use super::*;

    #[test]
    fn record_types_without_a_mnemonic_are_printed_by_number() {
        let name = hickory_proto::rr::Name::from_ascii("a.example.").unwrap();
        let of = |data: RData| format_record(&Record::from_rdata(name.clone(), 60, data));
        assert_eq!(of(RData::A(Ipv4Addr::LOCALHOST.into())), "a.example.  60  A  127.0.0.1");
        let unnamed =
            RData::Unknown { code: RecordType::Unknown(65280), rdata: NULL::with(vec![1]) };
        assert!(of(unnamed).starts_with("a.example.  60  TYPE65280  "));
    }
}
