//! The content of the registry: the same services for every server, in which all names and all answers of a kind have one size.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// First labels begin with one of these; all have eight bytes.
const WORDS: [&str; 16] = [
    "payments", "accounts", "checkout", "shipping", "delivery", "invoices", "catalogs", "messages",
    "sessions", "profiles", "settings", "tracking", "discount", "customer", "products", "journeys",
];

/// Numbers in names lie below this; seven digits.
const NUMBERS: usize = 10_000_000;

/// Octets of a name's first label: a word, a hyphen, a number. With `.svc` a name has 20 bytes.
pub(crate) const LABEL: usize = 16;

/// Octets of an instance's label, such as `10-100-100-100`.
const INSTANCE_LABEL: usize = 14;

/// Octets of an address lie from here to 255, so that all are written in three digits.
const LEAST: u32 = 100;
const VALUES: u32 = 256 - LEAST;

/// What GoFrame's HTTP server registers as its metadata.
pub(crate) const VALUE: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// How long answers may be kept, in seconds: svcdns's own.
pub(crate) const TTL: u32 = 5;
/// And negative ones.
pub(crate) const NEGATIVE_TTL: u32 = 1;

/// How many services, and of how many instances each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// At most 1,000,000.
    pub(crate) services: usize,
    pub(crate) instances: usize,
    /// Whether the zones of the others hold SRV records and their targets, too.
    pub(crate) srv: bool,
}

impl Content {
    /// Nothing.
    pub(crate) fn empty(self) -> Self {
        Self { services: 0, ..self }
    }

    /// Number in the name of a service; names lie all over the numbers, with unknown ones between them.
    fn number(self, service: usize) -> usize {
        service * (NUMBERS / self.services.max(1))
    }

    /// Writes the first label of a service's name.
    pub(crate) fn write_label(self, service: usize, out: &mut Vec<u8>) {
        write_label(WORDS[service % WORDS.len()], self.number(service), out);
    }

    /// And that of a name between those of this service and the next: its number does not end in 0.
    pub(crate) fn write_unknown(self, service: usize, beside: usize, out: &mut Vec<u8>) {
        write_label(WORDS[service % WORDS.len()], self.number(service) + 1 + beside % 9, out);
    }

    /// The first label of a service's name.
    pub(crate) fn label(self, service: usize) -> String {
        let mut label = Vec::with_capacity(LABEL);
        self.write_label(service, &mut label);
        String::from_utf8(label).unwrap()
    }

    pub(crate) fn address(self, service: usize, instance: usize) -> Ipv4Addr {
        let index = u32::try_from(service * self.instances + instance).unwrap();
        let [b, c, d] = [index / VALUES / VALUES, index / VALUES % VALUES, index % VALUES]
            .map(|digit| digit + LEAST);
        Ipv4Addr::from_bits((10 << 24) + (b << 16) + (c << 8) + d)
    }

    /// Which instance of a service has this address.
    pub(crate) fn instance(self, service: usize, address: [u8; 4]) -> Option<usize> {
        let [10, rest @ ..] = address else { return None };
        let index = rest.iter().try_fold(0, |index, byte| {
            Some(index * VALUES + u32::from(*byte).checked_sub(LEAST)?)
        })?;
        (index as usize)
            .checked_sub(service * self.instances)
            .filter(|instance| *instance < self.instances)
    }

    /// The port of all instances of a service.
    pub(crate) fn port(service: usize) -> u16 {
        8000 + u16::try_from(service % 1000).unwrap()
    }

    /// Every instance: its service, its address, its port.
    pub(crate) fn all(self) -> impl Iterator<Item = (usize, Ipv4Addr, u16)> {
        let instances = move |service| {
            (0..self.instances).map(move |instance| (service, self.address(service, instance)))
        };
        (0..self.services)
            .flat_map(instances)
            .map(|(service, address)| (service, address, Self::port(service)))
    }

    /// Registry keys and values as GoFrame writes them.
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

    /// Octets of svcdns's answer with all A records: the query, then records whose owner is a pointer.
    pub(crate) fn a_size(self) -> usize {
        QUESTION + self.instances * 16
    }

    /// With all SRV records, no name in them compressed (RFC 2782), and the addresses of their targets, which they point at.
    pub(crate) fn srv_size(self) -> usize {
        let target = 1 + INSTANCE_LABEL + 1 + LABEL + 5;
        QUESTION + self.instances * (12 + 6 + target + 2 + 14)
    }
}

/// Octets of a query: header, name, type and class.
pub(crate) const QUESTION: usize = 12 + 1 + LABEL + 5 + 4;

/// Octets of svcdns's answer without records: the query and the zone's SOA.
pub(crate) const NEGATIVE_SIZE: usize = QUESTION + 50;

/// The label of an instance: its address, with hyphens.
pub(crate) fn instance_label(address: Ipv4Addr) -> String {
    let mut label = address.to_string().replace('.', "-");
    debug_assert_eq!(label.len(), INSTANCE_LABEL);
    label.shrink_to_fit();
    label
}

/// The zone's own records, one a line, as in a zone file: the SOA is svcdns's.
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
