//! A full list of every head at one revision, in pages.

use etcd_client::{GetOptions, GetResponse, KvClient};
use tokio::task::yield_now;
use tokio_util::task::AbortOnDropHandle;

use super::Timings;
use super::change;
use super::connection::{Connection, Prefix, limited};
use super::failure::{Failure, Kind};
use super::supervisor::End;
use crate::registry::{Feed, FollowerGone, gsvc};

/// What a page should hold, in octets of keys and values, where many keys are small.
const PAGE_OCTETS: usize = 4 * 1024 * 1024;

/// The largest page, in page sizes. etcd (3.4) walks all keys that remain for every page, to count them: 100,000 keys in
/// pages of 5,000 cost it twice the time of pages of 20,000.
const GROWTH: u32 = 4;

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
        let mut reader = Reader {
            kv: connection.kv.clone(),
            prefix: prefix.clone(),
            revision: i64::try_from(revision).unwrap_or(0),
            from: prefix.start().as_bytes().to_vec(),
            limit: timings.page_size.max(1),
            timings: timings.clone(),
        };
        let mut page = reader.page().await?;
        loop {
            let last = if page.more() { page.kvs().last().map(|kv| kv.key().to_vec()) } else { None };
            let Some(last) = last else {
                send(&page, &mut keys, timings.batch_size, feed).await?;
                break;
            };
            reader.go_on(last, &page);
            let next = AbortOnDropHandle::new(tokio::spawn(async move {
                let page = reader.page().await;
                (reader, page)
            }));
            send(&page, &mut keys, timings.batch_size, feed).await?;
            let (returned, result) = next.await.map_err(|error| Failure::new(Kind::Connection, format!("a page was not read: {error}")))?;
            (reader, page) = (returned, result?);
        }
    }
    Ok(())
}

async fn send(page: &GetResponse, keys: &mut gsvc::Reader, batch_size: usize, feed: &Feed) -> Result<(), FollowerGone> {
    for batch in page.kvs().chunks(batch_size.max(1)) {
        yield_now().await;
        feed.send(batch.iter().map(|kv| change::put(kv, keys)).collect()).await?;
    }
    Ok(())
}

/// Where a list of one prefix is.
struct Reader {
    kv: KvClient,
    prefix: Prefix,
    revision: i64,
    /// The first key of the next page.
    from: Vec<u8>,
    /// Keys of a page.
    limit: u32,
    timings: Timings,
}

impl Reader {
    /// Turns to the page behind `last`, and fits its size to what this one held.
    fn go_on(&mut self, last: Vec<u8>, page: &GetResponse) {
        let octets = page.kvs().iter().map(|kv| kv.key().len() + kv.value().len()).sum();
        self.limit = fitting(page.kvs().len(), octets, self.timings.page_size);
        self.from = last;
        self.from.push(0);
    }

    async fn page(&mut self) -> Result<GetResponse, Failure> {
        let doing = format!("list {}", self.prefix.start());
        loop {
            let options = GetOptions::new().with_range(self.prefix.end()).with_revision(self.revision).with_limit(i64::from(self.limit));
            match limited(&doing, self.timings.request_timeout, self.kv.get(self.from.clone(), Some(options))).await {
                Err(failure) if failure.kind == Kind::TooLarge && self.limit > 1 => self.limit = self.limit.div_ceil(2),
                result => return result,
            }
        }
    }
}

/// How many keys fit a page where the last one had `keys` of `octets` in all.
fn fitting(keys: usize, octets: usize, page_size: u32) -> u32 {
    let fit = PAGE_OCTETS.saturating_mul(keys) / octets.max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, page_size.max(1).saturating_mul(GROWTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_small_keys_and_shrink_with_large_ones() {
        assert_eq!(fitting(5000, 500_000, 5000), 20_000);
        assert_eq!(fitting(5000, 5_000_000, 5000), 4194);
        assert_eq!(fitting(40, 40 << 20, 5000), 4);
        assert_eq!(fitting(1, 10 << 20, 5000), 1);
        assert_eq!(fitting(0, 0, 0), 1);
    }
}
