//! The authoritative side: answers for the served zones from registered services.
//!
//! [`Publisher`] owns the catalog and publishes generations of the lookup table. [`Answerer`]
//! answers from the latest generation without a lock. Both do no I/O and take the time from their
//! callers.
//!
//! [`Answerer::respond`] serves the queries of all transports. Its fast path answers the common
//! names from precompiled nodes; its full path covers the rest of the naming grammar on the service
//! model.

mod address_index;
mod affected;
mod aliases;
mod answerer;
mod bridged;
mod bridging;
mod choice;
mod compile;
mod counters;
mod explain;
mod fast;
mod full;
mod holders;
mod holds;
mod lookahead;
mod message;
mod node;
mod owner;
mod publish;
mod rare;
mod reconfigure;
mod respond;
mod reverse;
mod rrset;
mod settings;
mod shard;
mod sharded;
mod suggest;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod weights;

pub use aliases::{AliasError, AliasTarget, Aliases};
pub use answerer::Answerer;
pub use counters::Counters;
pub use explain::{ConsideredInstance, Explanation, TcpOmission, TriedInterpretation};
pub use lookahead::Lookahead;
pub use message::Recipient;
pub use publish::{Publication, Published, Publisher};
pub use respond::AnswerOutcome;
pub use settings::{Answers, Settings};
pub use table::Snapshot;
pub use tally::{QueryCounts, QueryTallies, QueryTally, QuestionCount, ResponseSource, ZoneSlot};
