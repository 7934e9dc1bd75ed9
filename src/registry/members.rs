//! The choice of a member, among the servers of one store.

use tokio::time::Instant;

/// The endpoints of the members, and the time at which each last failed.
#[derive(Debug)]
pub(super) struct Members {
    endpoints: Vec<(String, Option<Instant>)>,
}

impl Members {
    /// Shuffles the endpoints, so that many followers spread over the members.
    pub(super) fn new(endpoints: &[String]) -> Self {
        let mut endpoints: Vec<_> =
            endpoints.iter().map(|endpoint| (endpoint.clone(), None)).collect();
        fastrand::shuffle(&mut endpoints);
        Self { endpoints }
    }

    /// Returns an endpoint that has not failed, or the one that failed longest ago.
    pub(super) fn choose(&self) -> Option<String> {
        let next = self.endpoints.iter().min_by_key(|(_, failed)| *failed);
        next.map(|(endpoint, _)| endpoint.clone())
    }

    /// Records when an endpoint failed, or `None` once it works.
    pub(super) fn set_failed(&mut self, endpoint: &str, failed: Option<Instant>) {
        for (member, last_failed) in &mut self.endpoints {
            if member == endpoint {
                *last_failed = failed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_endpoint_that_failed_longest_ago_is_next() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut endpoints = Members::new(&names);
        let start = Instant::now();
        let mut tried = Vec::new();
        for second in 0..3 {
            let next = endpoints.choose().unwrap();
            endpoints.set_failed(&next, Some(start + Duration::from_secs(second)));
            tried.push(next);
        }
        let mut all = tried.clone();
        all.sort();
        assert_eq!(all, names);
        assert_eq!(endpoints.choose().as_ref(), Some(&tried[0]));
        endpoints.set_failed(&tried[2], None);
        assert_eq!(endpoints.choose().as_ref(), Some(&tried[2]));
        assert_eq!(Members::new(&[]).choose(), None);
    }
}
