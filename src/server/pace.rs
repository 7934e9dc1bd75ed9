//! How much to ask of a UDP socket at once, and how long to insist.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::batch::SIZE;

/// How long a full send buffer may hold up the loop before answers are dropped.
pub(super) const SEND_PAUSE: Duration = Duration::from_millis(5);

/// How many datagrams to ask for: one, where they come one by one, since that call costs less.
#[derive(Debug, Default)]
pub(super) struct Most {
    /// Batches of one in a row, as far as is known.
    singles: u8,
}

impl Most {
    /// Batches of one before one is asked for; as often, all are asked for again to see.
    const FEW: u8 = 8;

    pub(super) fn next(&self) -> usize {
        if self.singles > Self::FEW { 1 } else { SIZE }
    }

    pub(super) fn learn(&mut self, received: usize) {
        self.singles = match (received, self.singles) {
            (2.., _) => 0,
            (_, singles) if singles >= 2 * Self::FEW => Self::FEW,
            (_, singles) => singles + 1,
        };
    }
}

/// Whether it is worth trying again to send: a client that cannot be reached holds up nobody for long.
#[derive(Debug, Default)]
pub(super) struct Patience {
    paused: bool,
    repeated: bool,
}

/// What to do after an answer was not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Again,
    Pause,
    GiveUp,
}

impl Patience {
    pub(super) fn after(&mut self, error: &io::Error) -> Next {
        match error.kind() {
            ErrorKind::Interrupted => Next::Again,
            ErrorKind::WouldBlock if !std::mem::replace(&mut self.paused, true) => Next::Pause,
            // An error left behind by an earlier answer (ICMP) is reported once, in place of sending this one.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
                if !std::mem::replace(&mut self.repeated, true) =>
            {
                Next::Again
            }
            _ => Next::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_asked_for_where_one_comes_at_a_time() {
        let mut most = Most::default();
        let mut asked = Vec::new();
        for _ in 0..1000 {
            asked.push(most.next());
            most.learn(1);
        }
        let singles = asked.iter().filter(|most| **most == 1).count();
        assert!((800..1000).contains(&singles), "{singles}");
        while most.next() == 1 {
            most.learn(1);
        }
        most.learn(2);
        assert_eq!(most.next(), SIZE);
    }

    #[test]
    fn a_full_buffer_is_waited_for_once_and_an_old_error_passed_over_once() {
        let mut patience = Patience::default();
        let full = io::Error::from(ErrorKind::WouldBlock);
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(
            [&full, &full, &refused, &refused].map(|error| patience.after(error)),
            [Next::Pause, Next::GiveUp, Next::Again, Next::GiveUp]
        );
    }
}
