//! `svcdns release`: ends holds by hand.

use std::fmt::Write;
use std::process::ExitCode;

use super::arguments::ReleaseArgs;
use super::client::AdminClient;
use super::output::counted;
use super::{ServerLocation, output};
use crate::admin::ReleasedView;
use crate::percent;
use crate::service::UnixTime;

pub(super) async fn run(
    location: &ServerLocation,
    command: ReleaseArgs,
) -> anyhow::Result<ExitCode> {
    let client = AdminClient::find(location).await?;
    let name = command.registry.as_deref();
    let parameter = name.map(|name| format!("?registry={}", percent::encode(name)));
    let path = format!("/v1/release{}", parameter.unwrap_or_default());
    let released: Vec<ReleasedView> = client.post(&path).await?;
    output::print(&format_released(&released, name))?;
    Ok(ExitCode::SUCCESS)
}

/// Describes the holds that ended; `name` is the registry that the user named.
fn format_released(released: &[ReleasedView], name: Option<&str>) -> String {
    if released.is_empty() {
        let of_registry = name.map(|name| format!(" of {name}")).unwrap_or_default();
        return format!("no removal{of_registry} is on hold\n");
    }
    let mut text = String::new();
    for ReleasedView { registry_name, hold, .. } in released {
        let keys = counted(hold.keys as u64, "key", "keys");
        let since = UnixTime(hold.since);
        let _ = writeln!(
            text,
            "{registry_name}: removed {keys}, on hold since {since}: {}",
            hold.message
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::HoldView;

    #[test]
    fn each_released_hold_is_a_line() {
        let released = ReleasedView {
            registry: 0,
            registry_name: "etcd".to_owned(),
            hold: HoldView {
                cause: "expiry".to_owned(),
                message: "many keys expired at the same time".to_owned(),
                keys: 12,
                since: 50_585,
                until: 50_597,
            },
        };
        assert_eq!(
            format_released(&[released], None),
            "etcd: removed 12 keys, on hold since 14:03:05 UTC: \
             many keys expired at the same time\n"
        );
        assert_eq!(format_released(&[], None), "no removal is on hold\n");
        assert_eq!(format_released(&[], Some("etcd")), "no removal of etcd is on hold\n");
    }
}
