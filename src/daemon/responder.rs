//! Answers queries from the served zones or by forwarding.

use std::sync::Arc;

use crate::answer::{AnswerOutcome, Answerer, Lookahead};
use crate::server::{Client, Disposition, Request, Respond};
use crate::upstream::Lane;
use crate::wire::{Parsed, Query, Transport};

/// Answers from the served zones, then from the cache, then by forwarding.
#[derive(Debug)]
pub struct Responder {
    answerer: Arc<Answerer>,
    /// Leads to the cache and the upstreams; `None` if forwarding is off.
    lane: Option<Lane>,
}

impl Responder {
    /// Makes a responder; `lane` forwards names outside the served zones.
    pub fn new(answerer: Arc<Answerer>, lane: Option<Lane>) -> Self {
        Self { answerer, lane }
    }
}

impl Respond for Responder {
    fn fork(&self) -> Self {
        Self { answerer: Arc::clone(&self.answerer), lane: self.lane.as_ref().map(Lane::fork) }
    }

    type Lookahead = Lookahead;

    fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Lookahead {
        self.answerer.look_ahead(requests)
    }

    fn respond(&self, request: Request<'_>, ahead: &Lookahead, out: &mut Vec<u8>) -> Disposition {
        let Request { message, index, client, now, random } = request;
        let transport = Transport::from(client.transport);
        let parsed = Query::parse(message);
        if let (Parsed::Bad { query, .. }, Some(lane)) = (&parsed, &self.lane)
            && lane.passes(query)
        {
            return Disposition::Deferred;
        }
        match (
            self.answerer.respond(&parsed, (ahead, index), transport, random, out),
            &parsed,
            &self.lane,
        ) {
            (AnswerOutcome::Silent, ..) => Disposition::Silent,
            (AnswerOutcome::Forward, Parsed::Query(query), Some(lane))
                if !lane.respond(query, transport, now, out) =>
            {
                Disposition::Deferred
            }
            (AnswerOutcome::Forward | AnswerOutcome::Answered, ..) => Disposition::Ready,
        }
    }

    async fn respond_later(&self, request: Vec<u8>, client: Client) -> Option<Vec<u8>> {
        self.lane.as_ref()?.resolve(request, client.transport.into()).await
    }

    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.answerer.refuse(request, out)
    }

    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.answerer.fail(request, out)
    }
}
