//! `svcdns demo`: serves an example service from a temporary directory.

use std::fmt::Write;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio::time::error::Elapsed;
use tokio_util::sync::CancellationToken;

use super::ServerLocation;
use super::arguments::DemoArgs;
use super::output::{complain, print, quoted};
use crate::bridge;
use crate::config::{Config, Flags};
use crate::daemon::{HangUp, Launch, Log, Server, ShutdownSignals, StartError};
use crate::name::Name;
use crate::registry::Registrant;
use crate::service::{Endpoint, Metadata, ServiceId};
use crate::system::find_open_sockets;

/// Preferred port of the demo's DNS server; if it is in use, a free port is chosen.
const DNS_PORT: u16 = 5300;

/// The port that programs connect to if a URL names none.
const HTTP_PORT: u16 = 80;

/// Limit on open connections through the demo's port bridge.
const MAX_CONNECTIONS: usize = 128;

/// Maximum wait until the server knows the example service.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two checks for the example service.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(super) async fn run(
    _location: &ServerLocation,
    _command: DemoArgs,
) -> anyhow::Result<ExitCode> {
    let log = Log::start("warn")?;
    let signals = ShutdownSignals::new()?;
    let folder = DemoFolder::create()?;
    let stop = CancellationToken::new();
    let ending = tokio::spawn(signals.stop_on(stop.clone(), HangUp::Stop));
    let ended = demonstrate(&folder.0, &log, stop).await;
    ending.abort();
    ended?;
    Ok(ExitCode::SUCCESS)
}

async fn demonstrate(folder: &Path, log: &Log, stop: CancellationToken) -> anyhow::Result<()> {
    let (state_dir, registry) = (folder.join("state"), folder.join("gsvc"));
    fs::create_dir(&registry)?;
    // The environment and /etc configure the real server, not the demo.
    let flags = Flags::default()
        .with("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT)).to_string())
        .with("registry", format!("file://{}", registry.display()))
        .with("state-dir", state_dir.to_string_lossy())
        .with("admin-listen", "127.0.0.1:0");
    let mut config = Config::load(Some(Path::new("/dev/null")), [], &flags)?;
    let bridge = bridge_settings();
    config.bridge = bridge.as_ref().ok().cloned();
    let server = match Server::start(&config, log, Launch::default(), stop.clone()).await {
        Err(StartError::Listen(_)) => {
            config.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
            Server::start(&config, log, Launch::default(), stop.clone()).await?
        }
        started => started?,
    };

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let http = listener.local_addr()?;
    let page = Router::new().fallback(get(hello));
    let until = stop.clone();
    let service = tokio::spawn(async move {
        axum::serve(listener, page).with_graceful_shutdown(until.cancelled_owned()).await
    });
    let registrant = Registrant {
        head: "service".to_owned(),
        id: ServiceId {
            deployment: "default".into(),
            namespace: "default".into(),
            name: "hello.svc".into(),
            version: "latest".into(),
        },
        endpoints: vec![Endpoint { host: http.ip().into(), port: http.port() }],
        metadata: Metadata::new([("protocol".into(), "http".into())].into()),
        ttl: Duration::from_secs(10),
    };
    let (registries, until) = (config.registries, stop.clone());
    let registered = tokio::spawn(async move {
        match registries.first() {
            Some(registry) => registry.source.register(&registrant, until, |_| {}).await,
            None => Ok(()),
        }
    });

    let name = Name::from_text("hello.svc")?;
    let known = wait_until(|| server.answerer.snapshot().service("hello").is_some());
    tokio::select! {
        known = known => known.context("the example service did not appear in its registry")?,
        () = stop.cancelled() => {}
    }
    if bridge.is_ok() {
        // If its port was bound in the meantime, the service stays direct.
        let bridged = wait_until(|| server.answerer.bridged_address(&name).is_some());
        tokio::select! {
            _ = bridged => {}
            () = stop.cancelled() => {}
        }
    }
    if !stop.is_cancelled() {
        let bridged = bridge.and_then(|_| {
            let address = server.answerer.bridged_address(&name);
            address.ok_or_else(|| ErrorKind::AddrInUse.into())
        });
        print(&instructions(&server, http, &bridged)?)?;
    }
    let ended = server.finish().await;
    stop.cancel();
    if let Err(error) = registered.await? {
        complain(&error.to_string());
    }
    // A client that keeps its connection open must not delay the exit.
    service.abort();
    ended?;
    print("\nStopped; nothing is left behind.\n")?;
    Ok(())
}

/// Polls until the condition holds, for at most [`READY_TIMEOUT`].
async fn wait_until(is_met: impl Fn() -> bool) -> Result<(), Elapsed> {
    let polls = async {
        while !is_met() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(READY_TIMEOUT, polls).await
}

/// Returns the settings of the demo's port bridge.
///
/// The bridge binds its port and needs no table of the kernel: nothing is left behind, even if the
/// demo is killed.
///
/// # Errors
/// If the port cannot be bound.
fn bridge_settings() -> io::Result<bridge::Settings> {
    let is_free = |pool: &Ipv4Net| {
        let in_pool = |ip| matches!(ip, IpAddr::V4(ip) if pool.contains(&ip));
        find_open_sockets(in_pool).is_empty()
    };
    // Another demo has its own network. That of a real server is 127.83.0.0/16.
    let pools = (0..=u8::MAX).map(|third| Ipv4Net::new_assert([127, 84, third, 0].into(), 24));
    let pool = pools.into_iter().find(is_free).ok_or(ErrorKind::AddrInUse)?;
    std::net::TcpListener::bind((pool.network(), HTTP_PORT))?;
    Ok(bridge::Settings {
        pool,
        ports: vec![HTTP_PORT],
        bind: true,
        connections: MAX_CONNECTIONS,
        connections_per_service: MAX_CONNECTIONS,
        ..Default::default()
    })
}

async fn hello(headers: HeaderMap) -> String {
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("no host");
    format!("Hello from hello.svc! You asked for {host}.\n")
}

/// Returns what the demo does, and commands to try.
///
/// `bridged` is the address of the port bridge, or the reason why there is none.
fn instructions(
    server: &Server,
    http: SocketAddr,
    bridged: &io::Result<Ipv4Addr>,
) -> anyhow::Result<String> {
    let address = server.addresses.first().context("the server listens on no address")?;
    let (ip, port) = (address.ip(), address.port());
    let program = quoted(&std::env::current_exe()?.to_string_lossy());
    let this = format!("{program} --state-dir {}", quoted(&server.runtime_dir.to_string_lossy()));
    let dig = format!("dig @{ip} -p {port}");
    let mut text = format!(
        "svcdns {} answers on {address} (UDP and TCP).\n\
         A small HTTP service on {http} is registered as hello.svc.\n",
        env!("CARGO_PKG_VERSION")
    );
    let _ = match bridged {
        Ok(address) => writeln!(
            text,
            "The port bridge is on: http://hello.svc/ leads there from {address}, port \
             {HTTP_PORT}.\n\
             Until the demo ends, no other program can start to listen on 0.0.0.0:{HTTP_PORT}."
        ),
        Err(error) => writeln!(
            text,
            "The port bridge is off, so clients need the port {}: {}.",
            http.port(),
            match error.kind() {
                ErrorKind::PermissionDenied =>
                    format!("only root may listen on port {HTTP_PORT} (try sudo)"),
                ErrorKind::AddrInUse => format!("another program uses port {HTTP_PORT}"),
                _ => format!("cannot listen on port {HTTP_PORT}: {error}"),
            }
        ),
    };
    text.push_str("\nTry in a second terminal:\n\n");
    let mut lines = vec![format!("{dig} hello.svc A"), format!("{dig} hello.svc SRV")];
    if bridged.is_ok() {
        lines.push(format!("curl http://$({dig} +short hello.svc)/"));
        lines.push(format!(
            "curl --resolve hello.svc:{HTTP_PORT}:$({this} resolve --short hello.svc A) \
             http://hello.svc/"
        ));
    }
    let direct = "direct._via.hello.svc";
    lines.extend([
        format!("curl http://$({dig} +short {direct} | head -1):{}/", http.port()),
        format!(
            "curl --resolve hello.svc:{0}:$({this} resolve --short {direct} A) \
             http://hello.svc:{0}/",
            http.port()
        ),
        format!("{this} resolve hello.svc"),
        format!("{this} explain hello.svc SRV"),
        format!("{this} ls"),
        format!("{this} status"),
    ]);
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(admin) = server.admin {
        let _ = writeln!(text, "  curl http://{admin}/metrics");
    }
    text.push_str("\nCtrl-C ends the demo and leaves nothing behind.\n");
    Ok(text)
}

/// A new directory in the temp directory; dropping the value removes it.
#[derive(Debug)]
struct DemoFolder(PathBuf);

impl DemoFolder {
    fn create() -> anyhow::Result<Self> {
        for _ in 0..16 {
            let path = std::env::temp_dir().join(format!("svcdns-demo-{:08x}", fastrand::u32(..)));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot create the directory {}", path.display())
                    });
                }
            }
        }
        bail!("cannot create a directory in {}", std::env::temp_dir().display())
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            complain(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}
