//! Checks of port 53: which process uses it at the addresses that programs query.

use std::net::{IpAddr, SocketAddr};

use nix::unistd::{Uid, User};

use super::{DoctorInput, Finding};
use crate::system::port_owner::{BoundSocket, PortOwner, find_bound_sockets};
use crate::wire::Transport;

const PORT: &str = "port 53";

pub(super) fn examine(input: &DoctorInput<'_>) -> Vec<Finding> {
    let mut addresses: Vec<IpAddr> =
        input.name_servers().into_iter().filter(IpAddr::is_loopback).collect();
    let listen =
        input.server.iter().flat_map(|server| server.listen).filter(|address| address.port() == 53);
    for address in listen.map(SocketAddr::ip) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        let says = "Programs query no address of this machine, and svcdns does not use port 53.";
        return vec![Finding::ok(PORT, says)];
    }
    addresses.into_iter().map(|address| check_address(input, address)).collect()
}

fn check_address(input: &DoctorInput<'_>, address: IpAddr) -> Finding {
    let (udp, tcp) = (open_sockets(Transport::Udp, address), open_sockets(Transport::Tcp, address));
    let Some(first) = udp.first() else { return report_free_port(input, address) };
    let owner = match &first.owner {
        Some(owner) => owner.to_string(),
        None => format!("a process of the user {}", user_name(first.user)),
    };
    let is_ours = input.server.is_some_and(|server| {
        first.owner.as_ref().is_some_and(|owner| owner.process == server.process)
    });
    if is_ours {
        let says = format!("{address} port 53 is in use by the running svcdns, {owner}.");
        return Finding::ok(PORT, says);
    }
    if input.listens_on(address) && first.owner.is_some() {
        let says = format!(
            "{address} port 53 is in use by {owner}, although the running svcdns reports that it \
             listens there."
        );
        return Finding::broken(PORT, says)
            .typing("sudo svcdns status")
            .typing("sudo svcdns doctor");
    }
    if first.owner.is_none() {
        let says =
            format!("{address} port 53 is in use by {owner}; only root can see which process.");
        return Finding::ok(PORT, says).typing("sudo svcdns doctor");
    }
    let udp_only = if tcp.is_empty() { ", for UDP only: long responses need TCP" } else { "" };
    Finding::ok(PORT, format!("{address} port 53 is in use by {owner}{udp_only}."))
}

/// Returns the finding for an address on which no process listens.
fn report_free_port(input: &DoctorInput<'_>, address: IpAddr) -> Finding {
    // Programs query a later name server only if the first one does not respond.
    if input.name_servers().first() != Some(&address) && input.name_servers().contains(&address) {
        let says = format!(
            "Nothing listens on {address} port 53, which programs query if the first name server \
             does not respond."
        );
        return Finding::warning(PORT, says);
    }
    let elsewhere = input.server.filter(|_| !input.listens_on(address));
    let Some(server) = elsewhere else {
        let says = format!("Nothing listens on {address} port 53, which programs query.");
        return Finding::broken(PORT, says).typing(start_command(input, address));
    };
    let listen = server.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let says = format!(
        "Programs query {address} port 53, where nothing listens; svcdns listens on {listen}."
    );
    Finding::broken(PORT, says).typing("sudo svcdns install")
}

/// Returns the process that listens at an address, if that can be read.
pub(super) fn find_owner(address: IpAddr) -> Option<PortOwner> {
    open_sockets(Transport::Udp, address).into_iter().find_map(|socket| socket.owner)
}

/// Returns the sockets that receive queries at an address.
///
/// A socket bound to the address comes before one bound to all addresses.
fn open_sockets(transport: Transport, address: IpAddr) -> Vec<BoundSocket> {
    let mut sockets: Vec<BoundSocket> = find_bound_sockets(transport, SocketAddr::new(address, 53))
        .into_iter()
        .filter(|socket| socket.open)
        .collect();
    sockets.sort_by_key(|socket| socket.address.ip().is_unspecified());
    sockets
}

/// Returns the command that starts a server at an address.
fn start_command(input: &DoctorInput<'_>, address: IpAddr) -> String {
    let has_unit = ["/etc", "/run", "/usr/lib", "/lib"]
        .iter()
        .any(|folder| input.root.has(format!("{folder}/systemd/system/svcdns.service")));
    if has_unit {
        "sudo systemctl restart svcdns".to_owned()
    } else {
        format!("sudo svcdns serve --listen {}", SocketAddr::new(address, 53))
    }
}

/// Returns the name of a user, or the ID if the user has no name.
fn user_name(id: u32) -> String {
    User::from_uid(Uid::from_raw(id))
        .ok()
        .flatten()
        .map_or_else(|| id.to_string(), |user| user.name)
}
