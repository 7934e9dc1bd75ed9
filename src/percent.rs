//! Percent-encoding of texts for URLs (RFC 3986 section 2.1).

use std::fmt::Write;

/// Percent-encodes a text for a path segment or for a value of a query.
///
/// Letters, digits and `-._~:` are not encoded.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_characters_and_colons_are_not_encoded() {
        assert_eq!(encode("a-b.svc~_9"), "a-b.svc~_9");
        assert_eq!(encode("service:web-10.0.0.1:80"), "service:web-10.0.0.1:80");
        assert_eq!(encode("shop/api_x"), "shop%2Fapi_x");
        assert_eq!(encode("a b?c#d%é&+"), "a%20b%3Fc%23d%25%C3%A9%26%2B");
    }
}
