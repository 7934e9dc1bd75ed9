//! Full lists of every head at one revision, in pages.

use etcd_client::{GetOptions, GetResponse};
use tokio::task::yield_now;
use tokio_util::task::AbortOnDropHandle;

use super::EtcdTuning;
use super::change;
use super::connection::{Connection, Prefix};
use super::stride::Stride;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::gsvc::KeyParser;
use crate::registry::session::SessionEnd;
use crate::registry::{Feed, FeedClosed};

/// Target size of a page in keys and values, in bytes.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Maximum target size of a page if there are very many keys, in bytes.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Maximum size of a page of small keys, in multiples of the configured page size.
const MAX_PAGE_GROWTH: usize = 4;

/// Target number of pages if there are very many keys, to limit the requests.
const TARGET_PAGES: usize = 16;

/// Sends every key of all prefixes as of `revision`.
///
/// Sends batches of the configured size; the caller begins and ends the list.
///
/// The next page is requested while the current one is parsed, so at most two are in memory. The
/// task yields before each batch: to that request, to other registries and to pings.
pub(super) async fn send_all(
    connection: &Connection,
    prefixes: &[Prefix],
    revision: u64,
    tuning: &EtcdTuning,
    feed: &Feed,
) -> Result<(), SessionEnd> {
    let mut parser = KeyParser::default();
    for prefix in prefixes {
        let mut pages = PageReader::new(connection, prefix, revision, tuning);
        let mut page = pages.read().await?;
        pages.total = usize::try_from(page.count()).unwrap_or(0);
        while pages.advance(&page) {
            let next = AbortOnDropHandle::new(tokio::spawn(async move {
                let page = pages.read().await;
                (pages, page)
            }));
            send(page, &mut parser, tuning.batch_size, feed).await?;
            let (returned, result) = next.await.map_err(|error| {
                Failure::new(FailureKind::Connection, format!("cannot read a page: {error}"))
            })?;
            (pages, page) = (returned, result?);
        }
        send(page, &mut parser, tuning.batch_size, feed).await?;
    }
    Ok(())
}

/// Parses and sends a page in batches, dropping each key and value once parsed.
async fn send(
    mut page: GetResponse,
    parser: &mut KeyParser,
    batch_size: usize,
    feed: &Feed,
) -> Result<(), FeedClosed> {
    let mut pairs = page.take_kvs().into_iter();
    while pairs.len() > 0 {
        yield_now().await;
        let batch = pairs.by_ref().take(batch_size.max(1));
        feed.send(batch.map(|kv| change::put(kv, parser)).collect()).await?;
    }
    Ok(())
}

/// Reads the pages of one prefix.
struct PageReader {
    connection: Connection,
    prefix: Prefix,
    revision: i64,
    /// First key of the next page.
    from: Vec<u8>,
    /// Exclusive end of the next page's range.
    to: Vec<u8>,
    /// Limit on the keys of the next page.
    limit: u32,
    /// Number of keys below the prefix.
    total: usize,
    stride: Stride,
    page_size: u32,
}

impl PageReader {
    fn new(connection: &Connection, prefix: &Prefix, revision: u64, tuning: &EtcdTuning) -> Self {
        Self {
            connection: connection.clone(),
            prefix: prefix.clone(),
            revision: i64::try_from(revision).unwrap_or(0),
            from: prefix.start().as_bytes().to_vec(),
            to: prefix.end().into_bytes(),
            limit: tuning.page_size.max(1),
            total: 0,
            stride: Stride::default(),
            page_size: tuning.page_size,
        }
    }

    /// Advances to the page after `page`; returns `false` if there is none.
    fn advance(&mut self, page: &GetResponse) -> bool {
        let (keys, end) = (page.kvs(), self.prefix.end().into_bytes());
        self.from = match keys.last() {
            Some(last) if page.more() => [last.key(), &[0]].concat(),
            _ if self.to < end => std::mem::take(&mut self.to),
            _ => return false,
        };
        let requested = self.limit;
        if let [first, ..] = keys {
            let bytes = keys.iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            self.limit = next_limit(keys.len(), bytes, self.total, self.page_size);
            let last = keys.last().unwrap_or(first);
            self.stride.record(keys.len(), requested, self.limit, first.key(), last.key());
        } else {
            self.stride.record_sparse();
        }
        self.to = self.stride.range_end(&self.from).filter(|to| *to < end).unwrap_or(end);
        true
    }

    /// Reads the current page; halves its limit as long as the response is too large.
    async fn read(&mut self) -> Result<GetResponse, Failure> {
        let action = format!("list {}", self.prefix.start());
        loop {
            let options = GetOptions::new()
                .with_range(self.to.clone())
                .with_revision(self.revision)
                .with_limit(i64::from(self.limit));
            let get = || {
                let mut kv = self.connection.kv();
                let (from, options) = (self.from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            match self.connection.call(&action, get).await {
                Err(failure) if failure.kind == FailureKind::TooLarge && self.limit > 1 => {
                    self.limit = self.limit.div_ceil(2);
                }
                result => return result,
            }
        }
    }
}

/// Returns the number of keys that the next page should hold.
///
/// The previous page had `keys` keys of `bytes` bytes in all; the prefix has `total` keys.
fn next_limit(keys: usize, bytes: usize, total: usize, page_size: u32) -> u32 {
    let bytes_per_key = bytes.div_ceil(keys.max(1)).max(1);
    let share = total / TARGET_PAGES;
    let max_bytes = share.saturating_mul(bytes_per_key).clamp(PAGE_BYTES, MAX_PAGE_BYTES);
    let max_keys = (page_size.max(1) as usize).saturating_mul(MAX_PAGE_GROWTH).max(share);
    u32::try_from((max_bytes / bytes_per_key).clamp(1, max_keys)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_small_keys_and_shrink_with_large_ones() {
        assert_eq!(next_limit(5000, 500_000, 100_000, 5000), 20_000);
        assert_eq!(next_limit(5000, 5_000_000, 10_000, 5000), 4194);
        // A sixteenth of all keys.
        assert_eq!(next_limit(5000, 5_000_000, 100_000, 5000), 6250);
        assert_eq!(next_limit(40, 40 << 20, 100_000, 5000), 16);
        assert_eq!(next_limit(1, 10 << 20, 10, 5000), 1);
        assert_eq!(next_limit(0, 0, 0, 0), 4);
    }

    #[test]
    fn a_million_keys_are_read_in_few_pages() {
        assert_eq!(next_limit(5000, 500_000, 1_000_000, 5000), 62_500);
        assert_eq!(next_limit(5000, 5_000_000, 1_000_000, 5000), 16_777);
    }
}
