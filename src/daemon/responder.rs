//! Responder: answers queries from the served zones or by forwarding.

use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::answer::{AnswerOutcome, Answerer, Lookahead, QueryTally, Recipient, ResponseSource};
use crate::server::{Client, Disposition, DnsTransport, Request, Respond, StreamKind};
use crate::upstream::{AliasChain, Lane, LaneOutcome, LaneSlot, Resolution};
use crate::wire::{Parsed, Query, Transport};

/// Answers from the served zones, then from the cache, then by forwarding.
#[derive(Debug)]
pub struct Responder {
    answerer: Arc<Answerer>,
    /// Access to the cache and the upstreams; empty while forwarding is off.
    lane: LaneSlot,
    tallies: ResponderTallies,
}

/// The tallies in which a responder counts.
#[derive(Debug)]
enum ResponderTallies {
    /// Of a UDP worker, whose thread is the only one that counts in it.
    Worker(QueryTally),
    /// Of all connections, by transport.
    Streams { tcp: QueryTally, tls: QueryTally, quic: QueryTally },
}

impl ResponderTallies {
    fn of(&self, transport: DnsTransport) -> &QueryTally {
        match (self, transport) {
            (Self::Streams { tls, .. }, DnsTransport::Stream(StreamKind::Tls)) => tls,
            (Self::Streams { quic, .. }, DnsTransport::Stream(StreamKind::Quic)) => quic,
            (Self::Worker(tally) | Self::Streams { tcp: tally, .. }, _) => tally,
        }
    }
}

impl Responder {
    /// Creates a responder; `lane` forwards names outside the served zones.
    ///
    /// It serves connections; [`Respond::fork`] returns one that serves a UDP socket.
    pub fn new(answerer: Arc<Answerer>, lane: LaneSlot) -> Self {
        let [tcp, tls, quic] = ["tcp", "tls", "quic"].map(|name| answerer.tallies().shared(name));
        Self { answerer, lane, tallies: ResponderTallies::Streams { tcp, tls, quic } }
    }

    /// Follows aliases from name to name, each in a served zone or forwarded.
    async fn follow(
        &self,
        lane: &Lane,
        mut chain: Box<AliasChain>,
        recipient: Recipient,
    ) -> Vec<u8> {
        loop {
            let mut out = Vec::with_capacity(512);
            match self.answer_target(&chain, recipient, &mut out) {
                AnswerOutcome::Forward => {}
                AnswerOutcome::Alias => match self.extend(&mut chain) {
                    Ok(()) => continue,
                    Err(failure) => return failure,
                },
                AnswerOutcome::Answered(_) | AnswerOutcome::Silent => {
                    return lane.finish(&chain, &out);
                }
            }
            match lane.follow(&mut chain, &mut out).await {
                LaneOutcome::Written | LaneOutcome::Cached => return out,
                LaneOutcome::Deferred => {}
                LaneOutcome::Outside => {
                    if let Parsed::Query(query) = Query::parse(chain.query()) {
                        self.answerer.respond_outside(&query, recipient, &mut out);
                    }
                    return lane.finish(&chain, &out);
                }
            }
        }
    }

    /// Returns the response to a query that needs the cache or the upstreams.
    ///
    /// It is empty if the query must not be forwarded. `None` means to send no response.
    async fn resolve(
        &self,
        lane: &Lane,
        request: &[u8],
        client: &Client,
        recipient: Recipient,
    ) -> Option<Vec<u8>> {
        let transport = recipient.transport;
        let resolution = match self.served_alias(request, transport) {
            Some(chain) => Resolution::Alias(chain),
            None => lane.resolve(request, transport, client.source.ip()).await?,
        };
        Some(match resolution {
            Resolution::Response(response) => response,
            // Boxed because aliases are rare: other queries should not reserve room for this
            // future.
            Resolution::Alias(chain) => Box::pin(self.follow(lane, chain, recipient)).await,
            Resolution::Outside => Vec::new(),
        })
    }

    /// Starts a chain if the name of the query is an alias in a served zone.
    fn served_alias(&self, request: &[u8], transport: Transport) -> Option<Box<AliasChain>> {
        if !self.answerer.has_aliases() {
            return None;
        }
        let Parsed::Query(query) = Query::parse(request) else { return None };
        let mut response = Vec::new();
        self.answerer
            .write_alias(&query, &mut response)
            .then(|| AliasChain::of_served_alias(request, transport, response))?
    }

    /// Writes the response to a query for an alias in a served zone, if its target is cached.
    ///
    /// Returns where the records of the target come from; `None` if the target needs an upstream,
    /// or is itself an alias that leads elsewhere.
    fn follow_at_once(
        &self,
        request: &[u8],
        transport: Transport,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Option<ResponseSource> {
        let lane = self.lane.load();
        let lane = lane.as_ref()?;
        let chain = self.served_alias(request, transport)?;
        let Parsed::Query(query) = Query::parse(chain.query()) else { return None };
        let mut last = Vec::with_capacity(512);
        let source = match lane.respond(&query, transport, now, &mut last) {
            LaneOutcome::Cached => ResponseSource::Cache,
            LaneOutcome::Written => ResponseSource::Local,
            LaneOutcome::Deferred | LaneOutcome::Outside => return None,
        };
        out.clear();
        out.extend_from_slice(&lane.finish(&chain, &last));
        Some(source)
    }

    /// Extends a chain whose last name is an alias in a served zone.
    ///
    /// # Errors
    /// Returns the response to the client if the chain is a loop or too long.
    fn extend(&self, chain: &mut AliasChain) -> Result<(), Vec<u8>> {
        let mut response = Vec::new();
        if let Parsed::Query(query) = Query::parse(chain.query()) {
            self.answerer.write_alias(&query, &mut response);
        }
        chain.extend_with_served_alias(response)
    }

    /// Counts a response of the server, if it was written, and returns whether it was.
    fn count_without_content(&self, written: bool, source: ResponseSource, out: &[u8]) -> bool {
        if written {
            self.tallies.of(DnsTransport::Udp).count_response(source, out);
        }
        written
    }

    /// Answers the last query of an alias chain if its name is in a served zone.
    fn answer_target(
        &self,
        chain: &AliasChain,
        recipient: Recipient,
        out: &mut Vec<u8>,
    ) -> AnswerOutcome {
        let ahead = self.answerer.look_ahead(iter::once(chain.query()));
        let parsed = Query::parse(chain.query());
        self.answerer.respond(&parsed, (&ahead, 0), recipient, fastrand::u64(..), out)
    }
}

/// Returns what the response depends on.
///
/// A client is on this machine if both addresses are loopback; others may only look like it.
fn recipient(client: &Client) -> Recipient {
    let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
    Recipient {
        transport: Transport::from(client.transport),
        is_local: is_loopback(client.source) && is_loopback(client.destination),
    }
}

impl Respond for Responder {
    fn fork(&self) -> Self {
        let answerer = Arc::clone(&self.answerer);
        let tallies = ResponderTallies::Worker(answerer.tallies().worker("udp"));
        Self { answerer, lane: self.lane.fork(), tallies }
    }

    type Lookahead = Lookahead;

    fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Lookahead {
        self.answerer.look_ahead(requests)
    }

    fn respond(&self, request: Request<'_>, ahead: &Lookahead, out: &mut Vec<u8>) -> Disposition {
        let Request { message, index, client, now, random } = request;
        let recipient = recipient(client);
        let transport = recipient.transport;
        let parsed = Query::parse(message);
        let (zone, tally) = (ahead.zone_slot(&parsed, index), self.tallies.of(client.transport));
        tally.count_question(zone, parsed.qtype());
        if let Parsed::Bad { query, .. } = &parsed
            && self.lane.load().as_ref().is_some_and(|lane| lane.passes(query))
        {
            return Disposition::Deferred;
        }
        let source = match self.answerer.respond(&parsed, (ahead, index), recipient, random, out) {
            AnswerOutcome::Silent => return Disposition::Silent,
            AnswerOutcome::Answered(source) => source,
            AnswerOutcome::Alias => match self.follow_at_once(message, transport, now, out) {
                Some(source) => source,
                None => return Disposition::Deferred,
            },
            AnswerOutcome::Forward => {
                let Parsed::Query(query) = &parsed else { return Disposition::Silent };
                let outcome = match &*self.lane.load() {
                    Some(lane) => lane.respond(query, transport, now, out),
                    // Forwarding was turned off after the services were published.
                    None => LaneOutcome::Outside,
                };
                match outcome {
                    LaneOutcome::Deferred => return Disposition::Deferred,
                    LaneOutcome::Outside => self.answerer.respond_outside(query, recipient, out),
                    outcome => {
                        self.answerer.correct_forwarded(query, out);
                        let is_cached = outcome == LaneOutcome::Cached;
                        if is_cached { ResponseSource::Cache } else { ResponseSource::Local }
                    }
                }
            }
        };
        tally.count_response(source, out);
        Disposition::Ready
    }

    async fn respond_later(&self, request: Vec<u8>, client: Client) -> Option<Vec<u8>> {
        let recipient = recipient(&client);
        let mut response = match self.lane.load_full() {
            Some(lane) => self.resolve(&lane, &request, &client, recipient).await?,
            // Forwarding was turned off while the query waited.
            None => Vec::new(),
        };
        let mut source = ResponseSource::Upstream;
        if let Parsed::Query(query) = Query::parse(&request) {
            if response.is_empty() {
                source = self.answerer.respond_outside(&query, recipient, &mut response);
            } else {
                self.answerer.correct_forwarded(&query, &mut response);
            }
        }
        self.tallies.of(client.transport).count_response(source, &response);
        Some(response)
    }

    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        let written = self.answerer.refuse(request, out);
        self.count_without_content(written, ResponseSource::Refused, out)
    }

    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        let written = self.answerer.fail(request, out);
        self.count_without_content(written, ResponseSource::Local, out)
    }
}
