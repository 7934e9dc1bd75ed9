//! Patterns of names, by which settings choose services.

/// A pattern for names without the zone; `*` matches any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Box<str>);

impl NamePattern {
    /// Creates a pattern; letter case does not matter.
    pub fn new(text: &str) -> Self {
        Self(text.to_ascii_lowercase().into())
    }

    /// Returns whether a name in lower case matches. O(length of name × parts of the pattern).
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names_and_stars_match_any_text() {
        for (pattern, name, expected) in [
            ("hello", "hello", true),
            ("Hello", "hello", true),
            ("hello", "hello2", false),
            ("*", "anything.at.all", true),
            ("*", "hello", true),
            ("*", "", true),
            ("hello*", "hello", true),
            ("hello*", "hello-2", true),
            ("hello*", "say-hello", false),
            ("*hello", "say-hello", true),
            ("web-*", "web-1", true),
            ("web-*", "a.web-1", false),
            ("*.prod", "hello.prod", true),
            ("*.prod", "hello.prod.eu", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(NamePattern::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }
}
