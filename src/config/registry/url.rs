//! Lists of URLs, and URLs for show.

/// Splits a list of URLs on white space and on each comma that a new scheme follows: an etcd URL holds commas itself.
pub(in crate::config) fn split_urls(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    for word in text.split_whitespace() {
        let mut start = 0;
        for (at, _) in word.match_indices(',') {
            let scheme = word[at + 1..].split(',').next().is_some_and(|next| next.contains("://"));
            if scheme {
                urls.push(&word[start..at]);
                start = at + 1;
            }
        }
        urls.push(&word[start..]);
    }
    urls.retain(|url| !url.is_empty());
    urls
}

/// A URL without the user in front of its host.
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
    fn lists_of_urls_keep_the_commas_of_etcd() {
        assert_eq!(split_urls("etcd://a:1,b:2"), ["etcd://a:1,b:2"]);
        assert_eq!(split_urls("etcd://a:1,b:2,file:///x,etcd://c"), ["etcd://a:1,b:2", "file:///x", "etcd://c"]);
        assert_eq!(split_urls(" etcd://a:1,b:2  file:///x\n"), ["etcd://a:1,b:2", "file:///x"]);
        assert!(split_urls(" ").is_empty());
    }
}
