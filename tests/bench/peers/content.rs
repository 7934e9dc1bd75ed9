//! The services of the benchmark, which are the same for every server.
//!
//! All names have the same length, as do all responses of a kind.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// First words of names, of eight bytes each.
const WORDS: [&str; 16] = [
    "payments", "accounts", "checkout", "shipping", "delivery", "invoices", "catalogs", "messages",
    "sessions", "profiles", "settings", "tracking", "discount", "customer", "products", "journeys",
];

/// Limit on the numbers in names, which have seven digits.
const NUMBER_SPACE: usize = 10_000_000;

/// Bytes of a name's first label: a word, a hyphen, a number.
///
/// With `.svc` a name has 20 bytes.
pub(crate) const LABEL_BYTES: usize = 16;

/// Bytes of an instance's label, such as `10-100-100-100`.
const INSTANCE_LABEL_BYTES: usize = 14;

/// Smallest byte of an address after the first: all bytes have three digits.
const MIN_BYTE: u32 = 100;
/// Number of values of such a byte.
const BYTE_VALUES: u32 = 256 - MIN_BYTE;

/// The metadata that GoFrame's HTTP server registers.
pub(crate) const VALUE: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// TTL of all servers in seconds: svcdns's default.
pub(crate) const TTL: u32 = 5;
/// TTL of negative responses in seconds: svcdns's default.
pub(crate) const NEGATIVE_TTL: u32 = 1;

/// The number of services, and of instances of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// At most 1,000,000.
    pub(crate) services: usize,
    pub(crate) instances: usize,
    /// Whether the zones of the other servers also have SRV records and their targets.
    pub(crate) srv: bool,
}

impl Content {
    /// Returns the same without services.
    pub(crate) fn empty(self) -> Self {
        Self { services: 0, ..self }
    }

    /// Returns the number in a service's name.
    ///
    /// Names are spread over the number space, so that unknown names are between them.
    fn number(self, service: usize) -> usize {
        service * (NUMBER_SPACE / self.services.max(1))
    }

    /// Writes the first label of a service's name.
    pub(crate) fn write_label(self, service: usize, out: &mut Vec<u8>) {
        write_label(WORDS[service % WORDS.len()], self.number(service), out);
    }

    /// Writes the first label of an unknown name after this service.
    ///
    /// Its number does not end in 0, unlike those of services.
    pub(crate) fn write_unknown(self, service: usize, beside: usize, out: &mut Vec<u8>) {
        write_label(WORDS[service % WORDS.len()], self.number(service) + 1 + beside % 9, out);
    }

    /// Returns the first label of a service's name.
    pub(crate) fn label(self, service: usize) -> String {
        let mut label = Vec::with_capacity(LABEL_BYTES);
        self.write_label(service, &mut label);
        String::from_utf8(label).unwrap()
    }

    pub(crate) fn address(self, service: usize, instance: usize) -> Ipv4Addr {
        let index = u32::try_from(service * self.instances + instance).unwrap();
        let [b, c, d] = [
            index / BYTE_VALUES / BYTE_VALUES,
            index / BYTE_VALUES % BYTE_VALUES,
            index % BYTE_VALUES,
        ]
        .map(|digit| digit + MIN_BYTE);
        Ipv4Addr::from_bits((10 << 24) + (b << 16) + (c << 8) + d)
    }

    /// Returns the instance of a service that has this address.
    pub(crate) fn instance(self, service: usize, address: [u8; 4]) -> Option<usize> {
        let [10, rest @ ..] = address else { return None };
        let index = rest.iter().try_fold(0, |index, byte| {
            Some(index * BYTE_VALUES + u32::from(*byte).checked_sub(MIN_BYTE)?)
        })?;
        (index as usize)
            .checked_sub(service * self.instances)
            .filter(|instance| *instance < self.instances)
    }

    /// Returns the port of all instances of a service.
    pub(crate) fn port(service: usize) -> u16 {
        8000 + u16::try_from(service % 1000).unwrap()
    }

    /// Returns every instance: service, address, port.
    pub(crate) fn all(self) -> impl Iterator<Item = (usize, Ipv4Addr, u16)> {
        let instances = move |service| {
            (0..self.instances).map(move |instance| (service, self.address(service, instance)))
        };
        (0..self.services)
            .flat_map(instances)
            .map(|(service, address)| (service, address, Self::port(service)))
    }

    /// Returns registry keys and values as GoFrame writes them.
    pub(crate) fn keys(
        self,
        services: std::ops::Range<usize>,
    ) -> impl Iterator<Item = (String, String)> {
        let instances = move |service| {
            (0..self.instances).map(move |instance| (service, self.address(service, instance)))
        };
        services.flat_map(instances).map(move |(service, address)| {
            let (name, port) = (self.label(service), Self::port(service));
            (
                format!("/service/default/default/{name}.svc/latest/{address}:{port}"),
                VALUE.to_owned(),
            )
        })
    }

    /// Returns the bytes of svcdns's response with all A records.
    ///
    /// The owners of the records are compressed.
    pub(crate) fn a_bytes(self) -> usize {
        QUERY_BYTES + self.instances * 16
    }

    /// Returns the bytes of svcdns's response with all SRV records and glue.
    ///
    /// SRV targets are not compressed (RFC 2782); the owners of the glue point at them.
    pub(crate) fn srv_bytes(self) -> usize {
        let target = 1 + INSTANCE_LABEL_BYTES + 1 + LABEL_BYTES + 5;
        QUERY_BYTES + self.instances * (12 + 6 + target + 2 + 14)
    }
}

/// Bytes of a query: header, name, type and class.
pub(crate) const QUERY_BYTES: usize = 12 + 1 + LABEL_BYTES + 5 + 4;

/// Bytes of svcdns's negative response: the query and the zone's SOA.
pub(crate) const NEGATIVE_BYTES: usize = QUERY_BYTES + 50;

/// Returns the label of an instance: its address, with hyphens.
pub(crate) fn instance_label(address: Ipv4Addr) -> String {
    let mut label = address.to_string().replace('.', "-");
    debug_assert_eq!(label.len(), INSTANCE_LABEL_BYTES);
    label.shrink_to_fit();
    label
}

/// Writes the zone's own records in the form of a zone file; the SOA is svcdns's.
pub(crate) fn apex(zone: &mut String) {
    writeln!(zone, "svc. {TTL} IN SOA ns.svc. hostmaster.svc. 1 3600 600 86400 {NEGATIVE_TTL}")
        .unwrap();
    writeln!(zone, "svc. {TTL} IN NS ns.svc.").unwrap();
    writeln!(zone, "ns.svc. {TTL} IN A 127.0.0.1").unwrap();
}

fn write_label(word: &str, number: usize, out: &mut Vec<u8>) {
    let mut digits = *b"-0000000";
    let mut rest = number;
    for digit in digits[1..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend(word.as_bytes());
    out.extend(digits);
}
