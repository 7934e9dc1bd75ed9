//! The least that a server on hickory-server does: the same names in a hash map, answered over UDP.

use std::collections::HashMap;
use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::Command;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::A;
use hickory_server::proto::rr::{LowerName, Name, RData, Record};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::keys::{self, INSTANCES};
use super::support::process::Process;
use super::support::{SOON, eventually, seconds};

/// Longest life of a yardstick that nobody ended.
const LIFE: u64 = 300;

/// The server in a process of its own: this program again.
pub(crate) struct Yardstick {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Yardstick {
    pub(crate) fn start(services: usize) -> Self {
        let mut process = Process::start(Command::new(env::current_exe().unwrap()).args(["--yardstick", &services.to_string()]));
        let address = eventually("the yardstick to listen", SOON, || {
            assert!(process.ended().is_none(), "the yardstick ended:\n{}", process.log());
            process.log().lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok())
        });
        Self { process, address }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Serves the services until it is killed.
pub(crate) fn serve(services: usize) {
    let records = |service: usize| -> (LowerName, Vec<Record>) {
        let name = Name::from_ascii(format!("{}.", keys::name(service))).unwrap();
        let record = |instance| Record::from_rdata(name.clone(), 5, RData::A(A(keys::address(service, instance))));
        ((&name).into(), (0..INSTANCES).map(record).collect())
    };
    let names = Names((0..services).map(records).collect());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        println!("listening on {}", socket.local_addr().unwrap());
        let mut server = Server::new(names);
        server.register_socket(socket);
        let _ = tokio::time::timeout(seconds(LIFE), server.block_until_done()).await;
    });
}

struct Names(HashMap<LowerName, Vec<Record>>);

impl RequestHandler for Names {
    // As `async_trait` writes it, which the trait is made with.
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
            let records = request.request_info().ok().and_then(|asked| self.0.get(asked.query.name()));
            let mut metadata = Metadata::response_from_request(&request.metadata);
            metadata.authoritative = true;
            metadata.response_code = if records.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
            let message = MessageResponseBuilder::from_message_request(request).build(metadata, records.into_iter().flatten(), [], [], []);
            match response.send_response(message).await {
                Ok(info) => info,
                Err(_) => Header { metadata, counts: HeaderCounts::default() }.into(),
            }
        })
    }
}
