//! Domain names, served zones, and the naming grammar.
//!
//! Imports no other module. Names are compared label by label and without regard to the case of
//! ASCII letters (RFC 4343); a dot inside a label is not a separator.
//!
//! Coverage of RFCs: names and their limits, RFC 1035 sections 2.3.4, 3.1 and 5.1; letter case, RFC
//! 4343; existence of all names above a name, RFC 8020; `_service._tcp`, RFC 2782; reverse names,
//! RFC 1035 section 3.5 and RFC 3596 section 2.5. Compressed names (RFC 1035 section 4.1.4) are
//! refused: [`crate::wire`] expands them. DNS-SD (RFC 6763) is not implemented.

mod addresses;
mod grammar;
mod labels;
mod reverse;
mod zones;

pub use addresses::{
    MAX_INSTANCE_LABEL_BYTES, instance_address, instance_label, ipv4_label, put_instance_label,
};
pub use grammar::{
    Base, BaseError, Interpretation, ParsedName, Selector, ServiceScope, base_of,
    base_of_lower_case, interpretations, parse_labels,
};
pub use labels::{Labels, Name, NameError};
pub use reverse::{
    ReverseNetwork, ReverseScope, local_reverse_zone, local_reverse_zones, may_be_reverse,
    reverse_address, reverse_name,
};
pub use zones::{Zone, Zones, ZonesError};
