//! A minimal handler on hickory-server, which answers over UDP from a hash map.
//!
//! Names with explicit namespace and deployment are entries of the map, too.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::str::FromStr;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::{A, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::content::{Content, NEGATIVE_TTL, TTL, instance_label};

/// Serves the services until the process is killed.
pub(crate) fn serve(content: Content) {
    let names = Names::new(content);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        println!("listening on {}", socket.local_addr().unwrap());
        let mut server = Server::new(names);
        server.register_socket(socket);
        let _ = server.block_until_done().await;
    });
}

/// The records of one name.
#[derive(Default)]
struct Records {
    a: Vec<Record>,
    srv: Vec<Record>,
    /// The addresses of the SRV records' targets.
    glue: Vec<Record>,
}

struct Names {
    names: HashMap<LowerName, Records>,
    soa: Record,
}

impl Names {
    fn new(content: Content) -> Self {
        let mut names: HashMap<LowerName, Records> = HashMap::with_capacity(content.services);
        let mut service_name = None;
        for (service, address, port) in content.all() {
            let (_, name) =
                service_name.take_if(|(known, _)| *known == service).unwrap_or_else(|| {
                    (service, Name::from_str(&format!("{}.svc.", content.label(service))).unwrap())
                });
            let entry = names.entry((&name).into()).or_default();
            entry.a.push(Record::from_rdata(name.clone(), TTL, RData::A(A(address))));
            if content.srv {
                let target =
                    Name::from_str(&format!("{}.{name}", instance_label(address))).unwrap();
                entry.srv.push(Record::from_rdata(
                    name.clone(),
                    TTL,
                    RData::SRV(SRV::new(0, 1, port, target.clone())),
                ));
                entry.glue.push(Record::from_rdata(target, TTL, RData::A(A(address))));
                let explicit =
                    Name::from_str(&format!("{}.default.default.svc.", content.label(service)))
                        .unwrap();
                let record = Record::from_rdata(explicit.clone(), TTL, RData::A(A(address)));
                names.entry(explicit.into()).or_default().a.push(record);
            }
            service_name = Some((service, name));
        }
        let host = |name| Name::from_str(name).unwrap();
        let soa =
            SOA::new(host("ns.svc."), host("hostmaster.svc."), 1, 3600, 600, 86400, NEGATIVE_TTL);
        Self { names, soa: Record::from_rdata(host("svc."), NEGATIVE_TTL, RData::SOA(soa)) }
    }
}

impl RequestHandler for Names {
    // The signature that `async_trait` generates for the trait.
    fn handle_request<'a, 'b, 'c, R, T>(
        &'a self,
        request: &'b Request,
        mut response: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'c>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
        R: ResponseHandler + 'c,
        T: Time + 'c,
    {
        Box::pin(async move {
            let info = request.request_info().ok();
            let found = info.as_ref().and_then(|info| self.names.get(info.query.name()));
            let (answers, glue) = match (found, info.as_ref().map(|info| info.query.query_type())) {
                (Some(records), Some(RecordType::A)) => (&*records.a, &[][..]),
                (Some(records), Some(RecordType::SRV)) => (&*records.srv, &*records.glue),
                _ => (&[][..], &[][..]),
            };
            let soa = answers.is_empty().then_some(&self.soa);
            let mut metadata = Metadata::response_from_request(&request.metadata);
            metadata.authoritative = true;
            metadata.response_code =
                if found.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
            let message = MessageResponseBuilder::from_message_request(request).build(
                metadata,
                answers,
                [],
                soa,
                glue,
            );
            match response.send_response(message).await {
                Ok(info) => info,
                Err(_) => Header { metadata, counts: HeaderCounts::default() }.into(),
            }
        })
    }
}
