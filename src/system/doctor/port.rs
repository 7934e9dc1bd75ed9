//! Who has port 53 where programs ask.

use std::net::{IpAddr, SocketAddr};

use nix::unistd::{Uid, User};

use super::{Finding, Patient};
use crate::system::port_owner::{Held, Holder, held};
use crate::wire::Transport;

const PORT: &str = "port 53";

pub(super) fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let mut addresses: Vec<IpAddr> = patient.name_servers().into_iter().filter(IpAddr::is_loopback).collect();
    let listen = patient.server.iter().flat_map(|server| server.listen).filter(|address| address.port() == 53);
    for address in listen.map(SocketAddr::ip) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return vec![Finding::ok(PORT, "No program of this machine is asked at port 53, and svcdns is not there.")];
    }
    addresses.into_iter().map(|address| at(patient, address)).collect()
}

fn at(patient: &Patient<'_>, address: IpAddr) -> Finding {
    let (udp, tcp) = (open(Transport::Udp, address), open(Transport::Tcp, address));
    let Some(first) = udp.first() else {
        // Programs come to a later name server only when the first does not answer.
        if patient.name_servers().first() != Some(&address) && patient.name_servers().contains(&address) {
            return Finding::warning(
                PORT,
                format!("Nobody listens at {address} port 53, where programs ask when the first name server fails."),
            );
        }
        let elsewhere = patient.server.filter(|server| !server.listen.contains(&SocketAddr::new(address, 53)));
        let Some(server) = elsewhere else {
            let says = format!("Nobody listens at {address} port 53, where programs ask.");
            return Finding::broken(PORT, says).typing(start(patient, address));
        };
        let listen = server.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let says = format!("Programs ask at {address} port 53, where nobody listens; svcdns answers on {listen}.");
        return Finding::broken(PORT, says).typing("sudo svcdns install");
    };
    let named = |held: &Held| match &held.holder {
        Some(holder) => holder.to_string(),
        None => format!("a process of the user {}", user(held.user)),
    };
    let who = named(first);
    let ours = patient.server.is_some_and(|server| first.holder.as_ref().is_some_and(|holder| holder.process == server.process));
    if ours {
        return Finding::ok(PORT, format!("{address} port 53 is held by the running svcdns, {who}."));
    }
    let claimed = patient.server.is_some_and(|server| server.listen.contains(&SocketAddr::new(address, 53)));
    if claimed && first.holder.is_some() {
        let says = format!("{address} port 53 is held by {who}, although the running svcdns says that it answers there.");
        return Finding::broken(PORT, says).typing("sudo svcdns status").typing("sudo svcdns doctor");
    }
    if first.holder.is_none() {
        return Finding::ok(PORT, format!("{address} port 53 is held by {who}; only root can see by which one."))
            .typing("sudo svcdns doctor");
    }
    let over_tcp = if tcp.is_empty() { ", over UDP alone: long answers need TCP" } else { "" };
    Finding::ok(PORT, format!("{address} port 53 is held by {who}{over_tcp}."))
}

/// The process that answers at an address, where it can be seen.
pub(super) fn holder(address: IpAddr) -> Option<Holder> {
    open(Transport::Udp, address).into_iter().find_map(|held| held.holder)
}

/// The sockets that take questions at an address: one bound to it comes before one that is bound to all.
fn open(transport: Transport, address: IpAddr) -> Vec<Held> {
    let mut found: Vec<Held> = held(transport, SocketAddr::new(address, 53)).into_iter().filter(|held| held.open).collect();
    found.sort_by_key(|held| held.address.ip().is_unspecified());
    found
}

/// What starts a server at an address.
fn start(patient: &Patient<'_>, address: IpAddr) -> String {
    let unit =
        ["/etc", "/run", "/usr/lib", "/lib"].iter().any(|folder| patient.root.has(format!("{folder}/systemd/system/svcdns.service")));
    if unit { "sudo systemctl restart svcdns".to_owned() } else { format!("sudo svcdns serve --listen {}", SocketAddr::new(address, 53)) }
}

fn user(number: u32) -> String {
    User::from_uid(Uid::from_raw(number)).ok().flatten().map_or_else(|| number.to_string(), |user| user.name)
}
