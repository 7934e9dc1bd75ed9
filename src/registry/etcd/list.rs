//! A full list of every head at one revision, in pages.

use etcd_client::{GetOptions, GetResponse};
use tokio::task::yield_now;
use tokio_util::task::AbortOnDropHandle;

use super::Timings;
use super::change;
use super::connection::{Connection, Prefix};
use super::failure::{Failure, Kind};
use super::stride::Stride;
use super::supervisor::End;
use crate::registry::{Feed, FollowerGone, gsvc};

/// What a page should hold, in octets of keys and values, where many keys are small.
const PAGE_OCTETS: usize = 4 * 1024 * 1024;

/// The same where there are very many keys.
const LARGEST_PAGE: usize = 16 * 1024 * 1024;

/// The largest page, in page sizes: fewer requests.
const GROWTH: usize = 4;

/// For the same reason a million keys, of which these would still be small pages, come in about so many.
const PAGES: usize = 16;

/// Sends every key of all prefixes as of `revision`, in batches of at most a page size. The caller has begun the list and
/// will end it.
///
/// While one page is read into changes the next is under way, so two of them are held at most. Before each batch whatever
/// else runs on this thread gets its turn: the request for that page, other registries, pings.
pub(super) async fn send_all(
    connection: &Connection,
    prefixes: &[Prefix],
    revision: u64,
    timings: &Timings,
    feed: &Feed,
) -> Result<(), End> {
    let mut keys = gsvc::Reader::default();
    for prefix in prefixes {
        let mut reader = Reader::new(connection, prefix, revision, timings);
        let mut page = reader.page().await?;
        reader.total = usize::try_from(page.count()).unwrap_or(0);
        while reader.go_on(&page) {
            let next = AbortOnDropHandle::new(tokio::spawn(async move {
                let page = reader.page().await;
                (reader, page)
            }));
            send(page, &mut keys, timings.batch_size, feed).await?;
            let (returned, result) = next.await.map_err(|error| Failure::new(Kind::Connection, format!("a page was not read: {error}")))?;
            (reader, page) = (returned, result?);
        }
        send(page, &mut keys, timings.batch_size, feed).await?;
    }
    Ok(())
}

/// Takes a page apart as it goes, so that what it held makes room for what becomes of it.
async fn send(mut page: GetResponse, keys: &mut gsvc::Reader, batch_size: usize, feed: &Feed) -> Result<(), FollowerGone> {
    let mut pairs = page.take_kvs().into_iter();
    while pairs.len() > 0 {
        yield_now().await;
        feed.send(pairs.by_ref().take(batch_size.max(1)).map(|kv| change::put(kv, keys)).collect()).await?;
    }
    Ok(())
}

/// Where a list of one prefix is.
struct Reader {
    connection: Connection,
    prefix: Prefix,
    revision: i64,
    /// The first key of the next page.
    from: Vec<u8>,
    /// The key behind its range.
    to: Vec<u8>,
    /// Keys of a page.
    limit: u32,
    /// Keys in all.
    total: usize,
    stride: Stride,
    page_size: u32,
}

impl Reader {
    fn new(connection: &Connection, prefix: &Prefix, revision: u64, timings: &Timings) -> Self {
        Self {
            connection: connection.clone(),
            prefix: prefix.clone(),
            revision: i64::try_from(revision).unwrap_or(0),
            from: prefix.start().as_bytes().to_vec(),
            to: prefix.end().into_bytes(),
            limit: timings.page_size.max(1),
            total: 0,
            stride: Stride::default(),
            page_size: timings.page_size,
        }
    }

    /// Turns to what follows this page, and fits the next one to what this one held. False where nothing follows.
    fn go_on(&mut self, page: &GetResponse) -> bool {
        let (keys, end) = (page.kvs(), self.prefix.end().into_bytes());
        self.from = match keys.last() {
            Some(last) if page.more() => [last.key(), &[0]].concat(),
            _ if self.to < end => std::mem::take(&mut self.to),
            _ => return false,
        };
        let asked = self.limit;
        if let [first, ..] = keys {
            let octets = keys.iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            self.limit = fitting(keys.len(), octets, self.total, self.page_size);
            let last = keys.last().unwrap_or(first);
            self.stride.learn(keys.len(), asked, self.limit, first.key(), last.key());
        } else {
            self.stride.learn_nothing();
        }
        self.to = self.stride.reach(&self.from).filter(|reach| *reach < end).unwrap_or(end);
        true
    }

    async fn page(&mut self) -> Result<GetResponse, Failure> {
        let doing = format!("list {}", self.prefix.start());
        loop {
            let options = GetOptions::new().with_range(self.to.clone()).with_revision(self.revision).with_limit(i64::from(self.limit));
            let get = || {
                let (mut kv, from, options) = (self.connection.kv(), self.from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            match self.connection.call(&doing, get).await {
                Err(failure) if failure.kind == Kind::TooLarge && self.limit > 1 => self.limit = self.limit.div_ceil(2),
                result => return result,
            }
        }
    }
}

/// How many keys the next page should hold where the last one had `keys` of `octets` in all, and there are `total` keys.
fn fitting(keys: usize, octets: usize, total: usize, page_size: u32) -> u32 {
    let each = octets.div_ceil(keys.max(1)).max(1);
    let share = total / PAGES;
    let most_octets = share.saturating_mul(each).clamp(PAGE_OCTETS, LARGEST_PAGE);
    let most_keys = (page_size.max(1) as usize).saturating_mul(GROWTH).max(share);
    u32::try_from((most_octets / each).clamp(1, most_keys)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_small_keys_and_shrink_with_large_ones() {
        assert_eq!(fitting(5000, 500_000, 100_000, 5000), 20_000);
        assert_eq!(fitting(5000, 5_000_000, 10_000, 5000), 4194);
        // A sixteenth of all.
        assert_eq!(fitting(5000, 5_000_000, 100_000, 5000), 6250);
        assert_eq!(fitting(40, 40 << 20, 100_000, 5000), 16);
        assert_eq!(fitting(1, 10 << 20, 10, 5000), 1);
        assert_eq!(fitting(0, 0, 0, 0), 4);
    }

    #[test]
    fn a_million_keys_come_in_few_pages() {
        assert_eq!(fitting(5000, 500_000, 1_000_000, 5000), 62_500);
        assert_eq!(fitting(5000, 5_000_000, 1_000_000, 5000), 16_777);
    }
}
