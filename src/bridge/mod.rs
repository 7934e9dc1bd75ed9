//! The port bridge: clients that know only a name reach instances on any port.
//!
//! An address record carries no port, so a client that asks for `http://hello.svc/` connects to
//! port 80, while the instance listens on a random one. The bridge gives each bridged name a
//! loopback address of its own. Clients on this machine get that address, and the bridge carries
//! the bytes of each connection to an instance.
//!
//! ```text
//!  publisher ──BridgeChange──▶ requests ──▶ assignments ──Update::Bridged──▶ publisher
//!                              (following)  │ pool, saving, waiting
//!                                           ▼
//!  client ─▶ 127.83.4.7:80 ─▶ listener ─▶ shared: service ─▶ routes: instances of the port
//!             (redirected,     workers                          │ choice
//!              or bound)          ▼                             ▼
//!                              forward ◀──────── connect: the next one after a failure
//! ```
//!
//! - **Addresses** (`pool`) come from a network within 127.0.0.0/8. A name keeps its address, also
//!   across restarts (`pool_file`), and no other name gets it while clients may remember it. The
//!   file is written in the background (`saving`): connections never wait for the disk.
//! - **Listening.** A listener on 127.83.4.7:8000 would keep every program from binding
//!   0.0.0.0:8000 later. So one rule of the kernel (`redirect`) redirects the whole pool to one
//!   listener, which asks for the original destination: all ports work. Its port is one that no
//!   other user can bind (`reserved_port`), and rules that another program removes are restored
//!   (`redirect_watch`). Without the permission for that, and only if configured, `bound` binds a
//!   few ports at each address; what fails is tried again (`waiting`).
//! - **A port** (`routes`) stands for a protocol if it is in `bridge.ports`, else for the endpoints
//!   with that port. A connection that leads nowhere is reset at once, and never hangs.
//! - **The choice** (`choice`): the fewest open connections for the weight. An instance that fails
//!   is set aside for up to 10 s (`instance`), but never the last one.
//! - **Bytes** (`forward`) pass unchanged, with half-close, reset and back pressure. An idle
//!   connection holds no buffer, and large transfers are not copied (`pipe`).
//!
//! The bridge knows no DNS: names are texts to it, and the daemon decides what they denote.

mod assignments;
mod bound;
mod choice;
mod connect;
mod connection;
mod counters;
mod following;
mod forward;
mod in_use;
mod instance;
mod nft;
mod pipe;
mod pool;
mod pool_file;
mod proxy_header;
mod redirect;
mod redirect_watch;
mod requests;
mod reserved_port;
mod routes;
mod running;
mod saving;
mod settings;
mod shared;
mod sockets;
mod stream;
mod waiting;
mod workers;

pub use counters::{Counters, ServiceCounts};
pub use nft::NftError;
pub use redirect::{RedirectError, TABLE_PREFIX};
pub use requests::BridgeRequests;
pub use running::{Bridge, BridgeError};
pub use settings::{InvalidPool, PLAIN_TCP, Policy, PolicyRefusal, Settings, check_pool};
pub use shared::{BridgedInstance, BridgedPort, BridgedView};
