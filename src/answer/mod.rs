//! Answers: ready-made records for the names that are asked for most, and the naming grammar for all others.
//!
//! [`Publisher`] owns what is known and publishes it; [`Answerer`] reads the latest publication without a lock. Neither does
//! I/O or keeps a clock. A question goes through one function, [`Answerer::respond`], however it came.

mod ahead;
mod answerer;
mod asking;
mod choice;
mod compile;
mod counters;
mod explain;
mod fast;
mod full;
mod message;
mod owner;
mod publish;
mod rare;
mod record;
mod rrset;
mod settings;
mod shard;
mod sharded;
mod table;
#[cfg(test)]
mod tests;
mod weights;

pub use ahead::Ahead;
pub use answerer::Answerer;
pub use asking::Outcome;
pub use counters::Counters;
pub use explain::{Considered, Explanation, Tried};
pub use publish::{Publication, Published, Publisher};
pub use settings::{Answers, Settings};
pub use table::Snapshot;
