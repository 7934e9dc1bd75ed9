//! Detects that another program has removed svcdns's line from `/etc/resolv.conf`.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::AdminContext;
use crate::path_watch::{ChangeSignal, PathWatches};
use crate::resolv_conf::{RESOLV_CONF, RESOLV_CONF_BACKUPS};
use crate::system::{LineState, Root};

/// Time for which the line must be missing before that is reported.
///
/// `install` and `uninstall` change several files, and a file is often written in steps.
const CONFIRMATION: Duration = Duration::from_secs(1);

/// Longest time between two readings if no change is reported.
const POLL_INTERVAL: Duration = Duration::from_secs(30);

/// Reports and logs whether `/etc/resolv.conf` lists this server first, until `stop`.
pub(super) async fn follow_line(context: Arc<AdminContext>, stop: CancellationToken) {
    let changes = ChangeSignal::default();
    let paths = [RESOLV_CONF].into_iter().chain(RESOLV_CONF_BACKUPS).map(Into::into).collect();
    let mut watches = PathWatches::new(paths, changes.clone());
    let mut known = LineState::NotInstalled;
    let mut unconfirmed = false;
    loop {
        // A reload changes the addresses.
        let (was_in_effect, info) = (known != LineState::NotInstalled, context.info.load_full());
        // Reading can block, for example on a network file system.
        let task = tokio::task::spawn_blocking(move || {
            // The watches come first, so that a change during the reading is reported.
            watches.refresh();
            let state = LineState::read(&Root::default(), &info.listen, was_in_effect);
            (state, watches)
        });
        let Ok((state, back)) = task.await else { return };
        watches = back;
        let is_new_loss =
            matches!(state, LineState::Lost(_)) && !matches!(known, LineState::Lost(_));
        if is_new_loss && !unconfirmed {
            unconfirmed = true;
        } else {
            unconfirmed = false;
            if state != LineState::Unknown {
                report(&known, &state);
                match &state {
                    LineState::Lost(lost) => {
                        context.resolv_conf.set(Some((lost.servers.clone(), lost.to_string())));
                    }
                    LineState::InEffect => context.resolv_conf.set(None),
                    LineState::NotInstalled | LineState::Unknown => context.resolv_conf.clear(),
                }
                known = state;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CONFIRMATION), if unconfirmed => {}
            () = changes.changed(), if !unconfirmed => {}
            () = tokio::time::sleep(POLL_INTERVAL), if !unconfirmed => {}
        }
    }
}

/// Logs a change of the state.
fn report(before: &LineState, now: &LineState) {
    match (before, now) {
        (LineState::Lost(_), LineState::Lost(_)) => {}
        (_, LineState::Lost(lost)) => tracing::warn!(
            "another program has rewritten resolv.conf: {lost}. Programs now bypass svcdns, and do \
             not find the names of its zones. Run `sudo svcdns install` again to put the line \
             back, with --keep to have that done each time, or turn the rewriting off in the other \
             program"
        ),
        (LineState::Lost(_) | LineState::NotInstalled, LineState::InEffect) => {
            tracing::info!("programs query svcdns: {RESOLV_CONF} names it first");
        }
        _ => {}
    }
}
