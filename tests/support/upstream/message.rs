//! DNS messages as bytes (RFC 1035 section 4, RFC 6891 section 6.1).
//!
//! The code writes the bytes itself, because some messages have to be malformed.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Record types.
pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const MX: u16 = 15;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const RRSIG: u16 = 46;
    pub(crate) const HTTPS: u16 = 65;
}

/// A received query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) bytes: Vec<u8>,
    pub(crate) id: u16,
    /// Bytes 2 and 3 of the header.
    pub(crate) flags: u16,
    /// Name in its original letter case, without the trailing dot.
    pub(crate) name: String,
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
    /// Length of the header and the question section.
    end: usize,
    pub(crate) opt: Option<Opt>,
}

/// The OPT record of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opt {
    pub(crate) size: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
    pub(crate) options: Vec<(u16, Vec<u8>)>,
}

impl Query {
    /// Parses a query; returns `None` if it does not have exactly one question.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (mut at, mut labels) = (12, Vec::new());
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).into_owned());
            at += length;
        }
        let (qtype, qclass, end) = (u16_at(at)?, u16_at(at + 2)?, at + 4);
        let (id, flags) = (u16_at(0)?, u16_at(2)?);
        if flags & 0x8000 != 0 || u16_at(4)? != 1 {
            return None;
        }
        let opt = if u16_at(10)? > 0 { Opt::parse(bytes.get(end..)?) } else { None };
        Some(Self {
            bytes: bytes.to_vec(),
            id,
            flags,
            name: labels.join("."),
            qtype,
            qclass,
            end,
            opt,
        })
    }

    pub(crate) fn recursion_desired(&self) -> bool {
        self.flags & 0x0100 != 0
    }

    pub(crate) fn authentic_data(&self) -> bool {
        self.flags & 0x0020 != 0
    }

    pub(crate) fn checking_disabled(&self) -> bool {
        self.flags & 0x0010 != 0
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.opt.as_ref().is_some_and(|opt| opt.dnssec_ok)
    }

    /// Returns the query without its OPT record.
    pub(crate) fn without_opt(&self) -> Self {
        Self { opt: None, ..self.clone() }
    }

    /// Returns the question section.
    pub(crate) fn section(&self) -> &[u8] {
        &self.bytes[12..self.end]
    }

    /// Describes the query for a TXT record.
    pub(crate) fn described(&self) -> String {
        let bit = |set| u8::from(set);
        let edns = self.opt.as_ref().map_or_else(
            || "edns=none".to_owned(),
            |opt| {
                let codes: Vec<_> = opt.options.iter().map(|(code, _)| code.to_string()).collect();
                format!(
                    "edns={} size={} do={} options={}",
                    opt.version,
                    opt.size,
                    bit(opt.dnssec_ok),
                    codes.join(",")
                )
            },
        );
        format!(
            "rd={} ad={} cd={} {edns}",
            bit(self.recursion_desired()),
            bit(self.authentic_data()),
            bit(self.checking_disabled())
        )
    }
}

impl Opt {
    /// Parses the OPT record at the start of these bytes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [
            0,
            0,
            41,
            size_high,
            size_low,
            _,
            version,
            flags,
            _,
            length_high,
            length_low,
            rest @ ..,
        ] = bytes
        else {
            return None;
        };
        let mut rest = rest.get(..usize::from(u16::from_be_bytes([*length_high, *length_low])))?;
        let mut options = Vec::new();
        while let [a, b, c, d, more @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*c, *d]));
            options.push((u16::from_be_bytes([*a, *b]), more.get(..length)?.to_vec()));
            rest = &more[length..];
        }
        Some(Self {
            size: u16::from_be_bytes([*size_high, *size_low]),
            version: *version,
            dnssec_ok: flags & 0x80 != 0,
            options,
        })
    }
}

/// A record of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Owner name without the trailing dot.
    pub(crate) name: String,
    pub(crate) rtype: u16,
    pub(crate) ttl: u32,
    pub(crate) data: Vec<u8>,
}

impl Record {
    pub(crate) fn new(name: &str, rtype: u16, ttl: u32, data: impl Into<Vec<u8>>) -> Self {
        Self { name: name.trim_end_matches('.').to_owned(), rtype, ttl, data: data.into() }
    }

    pub(crate) fn a(name: &str, ttl: u32, address: &str) -> Self {
        Self::new(name, rtype::A, ttl, address.parse::<Ipv4Addr>().unwrap().octets())
    }

    pub(crate) fn aaaa(name: &str, ttl: u32, address: &str) -> Self {
        Self::new(name, rtype::AAAA, ttl, address.parse::<Ipv6Addr>().unwrap().octets())
    }

    /// Makes a TXT record; its strings have at most 255 bytes.
    pub(crate) fn txt(name: &str, ttl: u32, text: &str) -> Self {
        let strings = text
            .as_bytes()
            .chunks(255)
            .flat_map(|part| [&[u8::try_from(part.len()).unwrap()], part].concat());
        Self::new(name, rtype::TXT, ttl, strings.collect::<Vec<u8>>())
    }

    pub(crate) fn cname(name: &str, ttl: u32, target: &str) -> Self {
        Self::new(name, rtype::CNAME, ttl, wire_name(target))
    }

    pub(crate) fn ptr(name: &str, ttl: u32, target: &str) -> Self {
        Self::new(name, rtype::PTR, ttl, wire_name(target))
    }

    pub(crate) fn ns(name: &str, ttl: u32, target: &str) -> Self {
        Self::new(name, rtype::NS, ttl, wire_name(target))
    }

    /// Makes an SOA record; `minimum` limits negative caching (RFC 2308 section 5).
    pub(crate) fn soa(name: &str, ttl: u32, minimum: u32) -> Self {
        let mut data = [wire_name("ns.test"), wire_name("hostmaster.test")].concat();
        data.extend([2026, 3600, 600, 86_400, minimum].into_iter().flat_map(u32::to_be_bytes));
        Self::new(name, rtype::SOA, ttl, data)
    }

    /// Returns the target of a CNAME.
    fn target(&self) -> Option<String> {
        let (mut name, mut rest) = (Vec::new(), &*self.data);
        while let [length, more @ ..] = rest
            && *length > 0
        {
            let (label, left) = more.split_at_checked(usize::from(*length))?;
            name.push(String::from_utf8_lossy(label).into_owned());
            rest = left;
        }
        (self.rtype == rtype::CNAME).then(|| name.join("."))
    }

    fn write(&self, query: &Query, out: &mut Vec<u8>) {
        if self.name.eq_ignore_ascii_case(&query.name) {
            // A pointer to the name in the question section, at byte 12.
            out.extend([0xC0, 12]);
        } else {
            out.extend(wire_name(&self.name));
        }
        out.extend(self.rtype.to_be_bytes());
        out.extend(1u16.to_be_bytes());
        out.extend(self.ttl.to_be_bytes());
        out.extend(u16::try_from(self.data.len()).unwrap().to_be_bytes());
        out.extend(&self.data);
    }
}

/// The content of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Response code; the upper eight bits go into OPT (RFC 6891 section 6.1.3).
    pub(crate) code: u16,
    pub(crate) authoritative: bool,
    pub(crate) authentic_data: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authority: Vec<Record>,
    pub(crate) additional: Vec<Record>,
    /// EDNS options: code and data.
    pub(crate) options: Vec<(u16, Vec<u8>)>,
}

impl Message {
    pub(crate) fn of(answers: impl IntoIterator<Item = Record>) -> Self {
        Self { answers: answers.into_iter().collect(), ..Self::default() }
    }

    pub(crate) fn code(code: u16) -> Self {
        Self { code, ..Self::default() }
    }

    /// Adds an Extended DNS Error (RFC 8914).
    pub(crate) fn with_error(mut self, info: u16, text: &str) -> Self {
        self.options.push((15, [&info.to_be_bytes(), text.as_bytes()].concat()));
        self
    }

    /// Answers a query from a table, following CNAMEs.
    ///
    /// A negative answer has the SOA record of the nearest zone in the table, or else of the root.
    pub(crate) fn from_table(table: &[Record], query: &Query) -> Self {
        let (mut answers, mut name) = (Vec::new(), query.name.clone());
        let mut exists;
        loop {
            let here: Vec<_> =
                table.iter().filter(|record| record.name.eq_ignore_ascii_case(&name)).collect();
            exists = !here.is_empty();
            answers.extend(
                here.iter()
                    .filter(|record| record.rtype == query.qtype || query.qtype == 255)
                    .copied()
                    .cloned(),
            );
            let alias = here
                .iter()
                .find(|record| record.rtype == rtype::CNAME && query.qtype != rtype::CNAME);
            match alias.and_then(|alias| Some((alias, alias.target()?))) {
                Some((alias, target)) if answers.len() < 32 => {
                    answers.push((*alias).clone());
                    name = target;
                }
                _ => break,
            }
        }
        let found =
            answers.last().is_some_and(|record| record.rtype == query.qtype || query.qtype == 255);
        let suffix = |zone: &str| {
            zone.is_empty()
                || name.eq_ignore_ascii_case(zone)
                || name.to_lowercase().ends_with(&format!(".{zone}"))
        };
        let soas = table.iter().filter(|record| record.rtype == rtype::SOA && suffix(&record.name));
        let soa = soas
            .max_by_key(|record| record.name.len())
            .cloned()
            .unwrap_or_else(|| Record::soa("", 60, 60));
        let authority = if found { Vec::new() } else { vec![soa] };
        Self { code: if found || exists { 0 } else { 3 }, answers, authority, ..Self::default() }
    }

    /// Encodes the response to a query, with an OPT record if the query has one.
    pub(crate) fn to_bytes(&self, query: &Query) -> Vec<u8> {
        let mut flags = 0x8080 | (query.flags & 0x7910) | (self.code & 0x0F);
        flags |= u16::from(self.authoritative) << 10 | u16::from(self.authentic_data) << 5;
        let count = |records: &[Record]| u16::try_from(records.len()).unwrap();
        let opt = u16::from(query.opt.is_some());
        let header = [
            query.id,
            flags,
            1,
            count(&self.answers),
            count(&self.authority),
            count(&self.additional) + opt,
        ];
        let mut out: Vec<u8> = header.into_iter().flat_map(u16::to_be_bytes).collect();
        out.extend(query.section());
        for record in self.answers.iter().chain(&self.authority).chain(&self.additional) {
            record.write(query, &mut out);
        }
        if let Some(theirs) = &query.opt {
            out.extend([0, 0, 41]);
            out.extend(4096u16.to_be_bytes());
            out.extend([
                u8::try_from(self.code >> 4).unwrap(),
                0,
                u8::from(theirs.dnssec_ok) << 7,
                0,
            ]);
            let options = self.options.iter().flat_map(|(code, bytes)| {
                [&code.to_be_bytes()[..], &u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes]
                    .concat()
            });
            let options: Vec<u8> = options.collect();
            out.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
            out.extend(options);
        }
        out
    }
}

/// Encodes a name without compression.
fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
