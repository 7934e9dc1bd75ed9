//! `svcdns demo`.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Place;
use super::arguments::Demo;
use super::output::{complain, print, quoted};
use crate::config::{Config, Flags};
use crate::daemon::{Log, Server, Signals, StartError};
use crate::registry::Registrant;
use crate::service::{Endpoint, Metadata, ServiceId};

/// Port of the demo's DNS server; any free one where another program has it.
const PORT: u16 = 5300;

/// How long it may take until the example is known.
const READY: Duration = Duration::from_secs(10);

pub(super) async fn run(_place: &Place, _command: Demo) -> anyhow::Result<ExitCode> {
    let log = Log::begin("warn")?;
    let signals = Signals::new()?;
    let folder = Folder::make()?;
    let stop = CancellationToken::new();
    let ending = tokio::spawn(signals.stop_on(stop.clone(), false));
    let ended = demonstrate(&folder.0, &log, stop).await;
    ending.abort();
    ended?;
    Ok(ExitCode::SUCCESS)
}

async fn demonstrate(folder: &Path, log: &Log, stop: CancellationToken) -> anyhow::Result<()> {
    let (state_dir, registry) = (folder.join("state"), folder.join("gsvc"));
    fs::create_dir(&registry)?;
    // What the surroundings say (environment, /etc) is for the real server.
    let flags = Flags::default()
        .with("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).to_string())
        .with("registry", format!("file://{}", registry.display()))
        .with("state-dir", state_dir.to_string_lossy())
        .with("admin-listen", "127.0.0.1:0");
    let mut config = Config::load(Some(Path::new("/dev/null")), [], &flags)?;
    let server = match Server::start(&config, log, stop.clone()).await {
        Err(StartError::Listen(_)) => {
            config.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
            Server::start(&config, log, stop.clone()).await?
        }
        started => started?,
    };

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let http = listener.local_addr()?;
    let page = Router::new().fallback(get(hello));
    let until = stop.clone();
    let service = tokio::spawn(async move { axum::serve(listener, page).with_graceful_shutdown(until.cancelled_owned()).await });
    let registrant = Registrant {
        head: "service".to_owned(),
        id: ServiceId { deployment: "default".into(), namespace: "default".into(), name: "hello.svc".into(), version: "latest".into() },
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

    let known = async {
        while server.answerer.snapshot().service("hello").is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        known = tokio::time::timeout(READY, known) => known.context("the example service did not show up in its registry")?,
        () = stop.cancelled() => {}
    }
    if !stop.is_cancelled() {
        print(&instructions(&server, http)?)?;
    }
    let ended = server.finish().await;
    stop.cancel();
    if let Err(error) = registered.await? {
        complain(&error.to_string());
    }
    // A client that keeps its connection must not keep us.
    service.abort();
    ended?;
    print("\nstopped; nothing is left behind\n")?;
    Ok(())
}

async fn hello(headers: HeaderMap) -> String {
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("nobody");
    format!("Hello from hello.svc! You asked for {host}.\n")
}

fn instructions(server: &Server, http: SocketAddr) -> anyhow::Result<String> {
    let address = server.addresses.first().context("the server listens nowhere")?;
    let (ip, port) = (address.ip(), address.port());
    let program = quoted(&std::env::current_exe()?.to_string_lossy());
    let this = format!("{program} --state-dir {}", quoted(&server.runtime_dir.to_string_lossy()));
    let dig = format!("dig @{ip} -p {port}");
    let mut text = format!(
        "svcdns {} answers on {address} (UDP and TCP).\n\
         A small HTTP service runs on {http} and has registered itself as hello.svc.\n\n\
         Try in a second terminal:\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for line in [
        format!("{dig} hello.svc A"),
        format!("{dig} hello.svc SRV"),
        format!("curl http://$({dig} +short hello.svc | head -1):{}/", http.port()),
        format!("curl --resolve hello.svc:{0}:$({this} resolve --short hello.svc A) http://hello.svc:{0}/", http.port()),
        format!("{this} resolve hello.svc"),
        format!("{this} explain hello.svc SRV"),
        format!("{this} ls"),
        format!("{this} status"),
    ] {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(admin) = server.admin {
        let _ = writeln!(text, "  curl http://{admin}/metrics");
    }
    text.push_str("\nCtrl-C ends it all and leaves nothing behind.\n");
    Ok(text)
}

/// A folder of our own in the temp directory that goes away with its owner.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        for _ in 0..16 {
            let path = std::env::temp_dir().join(format!("svcdns-demo-{:08x}", fastrand::u32(..)));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make the folder {}", path.display())),
            }
        }
        bail!("cannot make a folder in {}", std::env::temp_dir().display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            complain(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}
