//! Names: labels, zones, and the naming grammar both ways.
//!
//! A leaf: imports no other room. Names are octets: compared label by label, ASCII letters without case (RFC 4343); a dot
//! inside a label is no separator.
//!
//! Which parts of which RFC: names and their limits, RFC 1035 sections 2.3.4, 3.1 and 5.1 (compression, 4.1.4, is refused:
//! it belongs to messages, not to names); letter case, RFC 4343; existence of every label above a name, RFC 8020;
//! `_service._tcp`, RFC 2782; reverse names, RFC 1035 section 3.5 and RFC 3596 section 2.5. Not yet: RFC 6763 (DNS-SD).

mod addresses;
mod grammar;
mod labels;
mod zones;

pub use addresses::{
    MAX_INSTANCE_LABEL_BYTES, instance_address, instance_label, ipv4_label, put_instance_label,
    reverse_address, reverse_name,
};
pub use grammar::{
    Base, BaseError, Interpretation, ParsedName, Selector, ServiceScope, base_of, interpretations,
    parse_labels,
};
pub use labels::{Labels, Name, NameError};
pub use zones::{Zone, Zones, ZonesError};
