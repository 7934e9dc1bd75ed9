//! Targets as they are written: addresses alone, until the other forms are read.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::{Protocol, Target};

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<SocketAddr>().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, 53)));
        let address = address.ok_or_else(|| format!("{text:?} is not an address such as 192.0.2.1 or [2001:db8::1]:5300"))?;
        Ok(Self { address, protocol: Protocol::Plain })
    }
}
