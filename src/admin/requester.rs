//! Who sends a request, and may therefore change something.

/// The user of the process that sent a request; `None` if the request came over a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Requester(pub(super) Option<u32>);

/// Something that only root and the server's own user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Privilege {
    /// The command that does it.
    pub(super) command: &'static str,
    /// What it does, after "may".
    pub(super) deed: &'static str,
}

/// Error: the sender of a request may not do this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotPermitted {
    /// The request came over a port, where the sender is unknown.
    #[error(
        "only `svcdns {}` can {}, through the socket in the runtime directory", .0.command, .0.deed
    )]
    NotThroughSocket(Privilege),
    /// The sender is neither root nor the server's own user.
    #[error(
        "user {user} may not {}: only root and the user that svcdns runs as ({own}) may; try \
         `sudo svcdns {}`", privilege.deed, privilege.command
    )]
    Denied {
        /// What the sender wanted to do.
        privilege: Privilege,
        /// The user ID of the sender.
        user: u32,
        /// The user ID of the server.
        own: u32,
    },
}

impl Requester {
    /// Returns the user, who is root or the one that the server runs as.
    ///
    /// # Errors
    /// If the sender is another user, or unknown.
    pub(super) fn authorize(self, privilege: Privilege) -> Result<u32, NotPermitted> {
        let user = self.0.ok_or(NotPermitted::NotThroughSocket(privilege))?;
        let own = nix::unistd::geteuid().as_raw();
        if user != 0 && user != own {
            return Err(NotPermitted::Denied { privilege, user, own });
        }
        Ok(user)
    }
}
