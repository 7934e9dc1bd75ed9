//! One connection of a client, from its acceptance to its end.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::connect::{ConnectFailure, Established, connect};
use super::counters::CountedConnection;
use super::forward::{ForwardEnd, Forwarding};
use super::proxy_header::proxy_header;
use super::shared::Shared;
use super::sockets::{SocketOptions, is_of_this_machine, reset_on_close};

/// A client that was accepted; unless it is taken out, it gets a reset in the end.
pub(super) struct AcceptedClient(Option<TcpStream>);

impl AcceptedClient {
    /// Wraps an accepted connection.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Some(stream))
    }

    fn take(mut self) -> Option<TcpStream> {
        self.0.take()
    }
}

impl Drop for AcceptedClient {
    fn drop(&mut self) {
        // A plain close would look like an empty response.
        self.0.iter().for_each(reset_on_close);
    }
}

/// Connects a client to an instance of the service at `destination`, and forwards until the end.
pub(super) async fn serve(
    stream: AcceptedClient,
    client: SocketAddrV4,
    destination: SocketAddrV4,
    shared: Arc<Shared>,
) {
    let (settings, counters) = (&shared.settings, &shared.counters);
    if !is_of_this_machine(*client.ip()) {
        counters.foreign.increment();
        return;
    }
    let Some(service) = shared.service(*destination.ip()) else {
        counters.unknown.increment();
        return;
    };
    // The connection may last for long: it keeps the counters, but not the routes of today.
    let of_service = Arc::clone(&service.counters);
    let name = &*of_service.name;
    let instances = service.routes.instances(destination.port());
    if instances.is_empty() {
        counters.without_instance.increment();
        return;
    }
    of_service.label(counters);
    let Some(_admission) = CountedConnection::new(
        (&counters.open, settings.connections),
        (&of_service.open, settings.connections_per_service),
    ) else {
        if counters.over_limit.increment().is_power_of_two() {
            tracing::warn!(
                service = name,
                open = counters.open(),
                "connections of the bridge are reset, because a limit is reached \
                 (bridge.connections, bridge.connections-per-service)"
            );
        }
        return;
    };
    let start = Instant::now();
    let options = SocketOptions::new(settings.keepalive);
    let connected = connect(instances, shared.clock, options).await;
    let Established { stream: mut instance, count: _count, attempts } = match connected {
        Ok(established) => established,
        Err(error) => {
            match &error {
                ConnectFailure::Local(error) => {
                    if counters.local_failures.increment().is_power_of_two() {
                        tracing::warn!(%error, "the bridge cannot open a connection");
                    }
                }
                ConnectFailure::Unreachable { attempts, .. } => {
                    let attempts = *attempts as u64;
                    of_service.retries.fetch_add(attempts, Ordering::Relaxed);
                    of_service.failures.fetch_add(1, Ordering::Relaxed);
                }
            }
            tracing::debug!(service = name, %destination, %error, "connection reset");
            return;
        }
    };
    drop(service);
    of_service.record_connection(start.elapsed());
    of_service.retries.fetch_add(attempts.saturating_sub(1) as u64, Ordering::Relaxed);
    if settings.proxy_protocol
        && instance.write_all(&proxy_header(client, destination)).await.is_err()
    {
        return;
    }
    let Some(stream) = stream.take() else { return };
    let end = Forwarding::new(stream, instance, &of_service).run(settings.idle_timeout).await;
    if end == ForwardEnd::Idle {
        tracing::debug!(service = name, %client, "connection reset because it was idle");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::super::instance::InstanceState;
    use super::super::routes::Routes;
    use super::super::settings::Settings;
    use super::super::shared::BridgedService;
    use super::super::stream::pair;
    use super::*;
    use crate::service::ReachableRegistration;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 83, 1, 2);

    /// Returns the state of a bridge with one service at [`ADDRESS`], whose port 80 is `endpoint`.
    fn shared(endpoint: SocketAddr) -> Arc<Shared> {
        let shared = Shared::new(Settings::default());
        let registration = ReachableRegistration {
            protocol: Some("http".into()),
            weight: 1,
            first_port: Some(endpoint.port()),
            endpoints: vec![endpoint],
        };
        let pool = shared.settings.pool;
        let routes = Routes::new(&[registration], &[80], pool, |address| {
            Arc::new(InstanceState::new(address))
        });
        let counters = shared.with_counters(|table| table.of("hello"));
        shared.update([(ADDRESS, Some(BridgedService { routes, counters }))]);
        Arc::new(shared)
    }

    /// Serves a connection to a port of the service; returns the client's end.
    fn accept(
        shared: &Arc<Shared>,
        client: Ipv4Addr,
        port: u16,
    ) -> (std::net::TcpStream, tokio::task::JoinHandle<()>) {
        let (stream, end) = pair();
        let (client, to) = (SocketAddrV4::new(client, 1), SocketAddrV4::new(ADDRESS, port));
        let served = serve(AcceptedClient::new(stream), client, to, Arc::clone(shared));
        (end, tokio::spawn(served))
    }

    fn is_reset(mut client: &std::net::TcpStream) -> bool {
        client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    }

    #[tokio::test]
    async fn an_open_connection_does_not_keep_the_routes_of_its_beginning() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = shared(listener.local_addr().unwrap());
        let routes = Arc::downgrade(&shared.service(ADDRESS).unwrap());
        let (mut client, served) = accept(&shared, Ipv4Addr::LOCALHOST, 80);
        client.write_all(b"hello").unwrap();
        let counters = shared.with_counters(|table| table.of("hello"));
        while counters.read().request_bytes < 5 {
            tokio::task::yield_now().await;
        }
        shared.update([(ADDRESS, None)]);
        assert!(routes.upgrade().is_none());
        assert!(!served.is_finished() && counters.read().open == 1);
    }

    #[tokio::test]
    async fn a_port_that_leads_nowhere_is_no_failure_of_the_service() {
        let shared = shared("192.0.2.1:1".parse().unwrap());
        let (client, served) = accept(&shared, Ipv4Addr::LOCALHOST, 81);
        served.await.unwrap();
        assert!(is_reset(&client));
        assert_eq!(shared.counters.without_instance.get(), 1);
        assert_eq!(shared.with_counters(|table| table.sum().failures), 0);
    }

    #[tokio::test]
    async fn a_client_on_another_machine_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = shared(listener.local_addr().unwrap());
        let (client, served) = accept(&shared, Ipv4Addr::new(192, 0, 2, 1), 80);
        served.await.unwrap();
        assert!(is_reset(&client));
        assert_eq!(shared.counters.foreign.get(), 1);
    }

    #[tokio::test]
    async fn a_connection_dropped_before_it_reaches_an_instance_is_reset() {
        // Nothing answers there: the connection waits for its instance.
        let shared = shared("192.0.2.1:1".parse().unwrap());
        let (client, served) = accept(&shared, Ipv4Addr::LOCALHOST, 80);
        let counters = shared.with_counters(|table| table.of("hello"));
        while counters.read().open == 0 && !served.is_finished() {
            tokio::task::yield_now().await;
        }
        served.abort();
        let _ = served.await;
        assert!(is_reset(&client));
    }
}
