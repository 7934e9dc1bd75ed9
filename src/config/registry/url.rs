//! Splitting lists of URLs, and removing users from URLs.

/// Splits a list of URLs at white space, and at commas before a new scheme.
///
/// Other commas separate the members of an etcd cluster.
pub(in crate::config) fn split_urls(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    for word in text.split_whitespace() {
        let mut start = 0;
        for (at, _) in word.match_indices(',') {
            let next = word[at + 1..].split(',').next();
            if next.is_some_and(|next| next.contains("://")) {
                urls.push(&word[start..at]);
                start = at + 1;
            }
        }
        urls.push(&word[start..]);
    }
    urls.retain(|url| !url.is_empty());
    urls
}

/// Returns a URL without the user in front of its host.
pub(in crate::config) fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or(rest)),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_separate_urls_only_before_a_scheme() {
        assert_eq!(split_urls("etcd://a:1,b:2"), ["etcd://a:1,b:2"]);
        assert_eq!(
            split_urls("etcd://a:1,b:2,file:///x,etcd://c"),
            ["etcd://a:1,b:2", "file:///x", "etcd://c"]
        );
        assert_eq!(split_urls(" etcd://a:1,b:2  file:///x\n"), ["etcd://a:1,b:2", "file:///x"]);
        assert!(split_urls(" ").is_empty());
    }
}
