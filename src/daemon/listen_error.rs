//! Listen errors that name the process that uses the port.

use std::net::SocketAddr;

use tracing::warn;

use crate::server::{BindError, PortTaken};
use crate::system::{PortOwner, find_port_owner};

/// A [`BindError`] with the process that uses the port, for people.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A known process uses the port.
    #[error("{}", taken.by(holder))]
    Taken {
        /// The port.
        taken: PortTaken,
        /// The process.
        holder: PortOwner,
    },
    /// Another error, or an unknown process.
    #[error(transparent)]
    Bind(BindError),
}

impl ListenError {
    /// Looks up the process that uses the port if the port is taken.
    ///
    /// Finds no process if the system hides the processes of other users.
    pub fn with_holder(error: BindError) -> Self {
        match error {
            BindError::InUse(taken) => match find_port_owner(taken.transport, taken.address) {
                Some(holder) => Self::Taken { taken, holder },
                None => Self::Bind(BindError::InUse(taken)),
            },
            error => Self::Bind(error),
        }
    }
}

/// Logs that the server cannot listen on a new address of the machine.
///
/// The server keeps trying to listen.
pub(super) fn report_not_listening(address: SocketAddr, error: BindError) {
    let error = ListenError::with_holder(error);
    warn!(%address, %error, "cannot listen on a new address, trying again");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Settings, bind};
    use std::net::UdpSocket;

    #[test]
    fn a_port_in_use_is_reported_with_its_process() {
        // No other test uses this address, so the TCP port of the same number is free.
        let udp = UdpSocket::bind("127.77.9.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let error = ListenError::with_holder(
            bind(&Settings { listen: vec![address], ..Settings::default() }).unwrap_err(),
        );
        let ListenError::Taken { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(holder.process, std::process::id());
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {address} (UDP): the port is in use by {holder}; stop it, or \
                 choose another port with --listen"
            )
        );
    }
}
