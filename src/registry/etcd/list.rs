//! A full list of every head at one revision, in pages.

use etcd_client::{GetOptions, GetResponse, KvClient};
use tokio_util::task::AbortOnDropHandle;

use super::Timings;
use super::change;
use super::connection::{Connection, Prefix, limited};
use super::failure::{Failure, Kind};
use super::supervisor::End;
use crate::registry::Feed;

/// Sends every key of all prefixes as of `revision`, one batch a page. The caller has begun the list and will end it.
///
/// While one page is read into changes the next is under way, so two of them are held at most.
pub(super) async fn send_all(
    connection: &Connection,
    prefixes: &[Prefix],
    revision: u64,
    timings: &Timings,
    feed: &Feed,
) -> Result<(), End> {
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
                feed.send(page.kvs().iter().map(change::put).collect()).await?;
                break;
            };
            reader.from = last;
            reader.from.push(0);
            let next = AbortOnDropHandle::new(tokio::spawn(async move {
                let page = reader.page().await;
                (reader, page)
            }));
            feed.send(page.kvs().iter().map(change::put).collect()).await?;
            let (returned, result) = next.await.map_err(|error| Failure::new(Kind::Connection, format!("a page was not read: {error}")))?;
            (reader, page) = (returned, result?);
        }
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
    /// Keys of a page. Only shrinks: large values tend to have large neighbours.
    limit: u32,
    timings: Timings,
}

impl Reader {
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
