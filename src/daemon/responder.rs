//! Joins what is served here with what is asked elsewhere.

use std::sync::Arc;

use crate::answer::{AnswerOutcome, Answerer, Lookahead};
use crate::server::{Client, Disposition, Request, Respond};
use crate::upstream::{Lane, LaneOutcome, Resolution};
use crate::wire::{Parsed, Query, Transport};

/// Answers from the served zones, then from what the upstreams said before, then asks them.
#[derive(Debug)]
pub struct Responder {
    answerer: Arc<Answerer>,
    /// The way to the upstreams; none with forwarding off.
    lane: Option<Lane>,
}

impl Responder {
    /// A responder; `lane` leads to the upstreams of names outside the zones.
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
        match self.answerer.respond(&parsed, (ahead, index), transport, random, out) {
            AnswerOutcome::Silent => return Disposition::Silent,
            AnswerOutcome::Answered => return Disposition::Ready,
            AnswerOutcome::Forward => {}
        }
        if let (Parsed::Query(query), Some(lane)) = (&parsed, &self.lane) {
            match lane.respond(query, transport, now, out) {
                LaneOutcome::Written => self.answerer.correct_forwarded(query, out),
                LaneOutcome::Deferred => return Disposition::Deferred,
                LaneOutcome::Outside => self.answerer.respond_outside(query, transport, out),
            }
        }
        Disposition::Ready
    }

    async fn respond_later(&self, request: Vec<u8>, client: Client) -> Option<Vec<u8>> {
        let transport = client.transport.into();
        let source = client.source.ip();
        let resolution = self.lane.as_ref()?.resolve(&request, transport, source).await;
        let mut response = match resolution {
            Resolution::Silent => return None,
            Resolution::Outside => Vec::new(),
            Resolution::Response(response) => response,
        };
        if let Parsed::Query(query) = Query::parse(&request) {
            if response.is_empty() {
                self.answerer.respond_outside(&query, transport, &mut response);
            } else {
                self.answerer.correct_forwarded(&query, &mut response);
            }
        }
        Some(response)
    }

    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.answerer.refuse(request, out)
    }

    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        self.answerer.fail(request, out)
    }
}
