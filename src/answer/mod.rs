//! Answers: ready-made records for the names that are asked for most, and the naming grammar for all others.
//!
//! [`Publisher`] owns what is known and publishes it; [`Answerer`] reads the latest publication without a lock. Neither does
//! I/O or keeps a clock. A question goes through one function, [`Answerer::respond`], however it came.

mod answerer;
mod choice;
mod compile;
mod counters;
mod explain;
mod fast;
mod full;
mod lookahead;
mod message;
mod node;
mod owner;
mod publish;
mod rare;
mod respond;
mod rrset;
mod settings;
mod shard;
mod sharded;
mod table;
#[cfg(test)]
mod tests;
mod weights;

pub use answerer::Answerer;
pub use counters::Counters;
pub use explain::{Considered, Explanation, Tried};
pub use lookahead::Lookahead;
pub use publish::{Publication, Published, Publisher};
pub use respond::Disposition;
pub use settings::{Answers, Settings};
pub use table::Snapshot;
