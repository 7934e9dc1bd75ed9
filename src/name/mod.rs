//! Names: labels, zones, and the naming grammar both ways.
//!
//! A leaf: imports no other room. Names are octets: compared label by label, ASCII letters without case (RFC 4343); a dot
//! inside a label is no separator.
