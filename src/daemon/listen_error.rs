//! Why an address cannot be listened on, with the process that has its port.

use std::net::SocketAddr;

use tracing::warn;

use crate::server::{BindError, PortTaken};
use crate::system::{PortOwner, find_port_owner};

/// A [`BindError`] as a person is told it.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A process has the port.
    #[error("{}", taken.by(holder))]
    Taken {
        /// The port.
        taken: PortTaken,
        /// The process.
        holder: PortOwner,
    },
    /// Anything else.
    #[error(transparent)]
    Bind(BindError),
}

impl ListenError {
    /// Looks up who has the port, if it is taken.
    ///
    /// Finds nobody where the processes of other users are hidden from us.
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

/// Logs that the server cannot listen on a new address of the machine. The server tries again.
pub(super) fn report_not_listening(address: SocketAddr, error: BindError) {
    let error = ListenError::with_holder(error);
    warn!(%address, %error, "not answering on a new address at the moment; trying again");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Settings, bind};
    use std::net::UdpSocket;

    #[test]
    fn a_taken_port_is_reported_with_the_process_that_has_it() {
        // An address of its own: no connection of another test has the same number as its TCP port.
        let udp = UdpSocket::bind("127.77.9.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let error = ListenError::with_holder(bind(&Settings { listen: vec![address], ..Settings::default() }).unwrap_err());
        let ListenError::Taken { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(holder.process, std::process::id());
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {address} (UDP): the port is in use by {holder}; stop it, or choose another port with --listen")
        );
    }
}
