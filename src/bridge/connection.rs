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
use super::sockets::reset_on_close;

/// Connects a client to an instance of the service at `destination`, and forwards until the end.
pub(super) async fn serve(
    stream: TcpStream,
    client: SocketAddrV4,
    destination: SocketAddrV4,
    shared: Arc<Shared>,
) {
    let (settings, counters) = (&shared.settings, &shared.counters);
    let Some(service) = shared.service(*destination.ip()) else {
        counters.unknown.increment();
        return reset_on_close(&stream);
    };
    let of_service = &*service.counters;
    let Some(_admission) = CountedConnection::new(
        (&counters.open, settings.connections),
        (&of_service.open, settings.connections_per_service),
    ) else {
        if counters.over_limit.increment().is_power_of_two() {
            tracing::warn!(
                service = &*service.name,
                open = counters.open(),
                "connections of the bridge are reset, because a limit is reached \
                 (bridge.connections, bridge.connections-per-service)"
            );
        }
        return reset_on_close(&stream);
    };
    let start = Instant::now();
    let connected = connect(service.routes.instances(destination.port()), shared.clock).await;
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
            tracing::debug!(service = &*service.name, %destination, %error, "connection reset");
            return reset_on_close(&stream);
        }
    };
    of_service.record_connection(start.elapsed());
    of_service.retries.fetch_add(attempts.saturating_sub(1) as u64, Ordering::Relaxed);
    if settings.proxy_protocol
        && instance.write_all(&proxy_header(client, destination)).await.is_err()
    {
        return reset_on_close(&stream);
    }
    let end = Forwarding::new(stream, instance, of_service).run(settings.idle_timeout).await;
    if end == ForwardEnd::Idle {
        tracing::debug!(service = &*service.name, %client, "connection reset because it was idle");
    }
}
