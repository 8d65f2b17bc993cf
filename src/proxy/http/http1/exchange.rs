//! One request: over which connection, again over another one where that is safe, and what the client is told where
//! there is no answer.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::super::choice::{Choice, MOST_TRIES};
use super::super::reply::{self, Trouble};
use super::super::vital;
use super::ask::Ask;
use super::pass::{Coming, Passing, Up};
use super::{Backend, Conn, Next, TICK, desk};

/// Why a request got no answer.
pub(super) enum Failed {
    /// Not a byte of it was sent.
    Unsent,
    /// The client's body is malformed, or broke off.
    ByClient,
    /// It was sent, and the connection ended. `stale`: it had waited in the pool, and nothing was heard.
    Broken { stale: bool, heard: bool },
    /// It was sent, and what came back is no answer.
    NoAnswer(&'static str),
}

impl Conn<'_> {
    /// Answers a request.
    pub(super) async fn exchange(&mut self, ask: &mut Ask) -> Next {
        // While it waited for a request the timer stood where patience ends.
        let due = ask.record.started() + TICK;
        if self.clock.deadline() > due {
            self.clock.as_mut().reset(due);
        }
        let limit = self.visitor.shared.http.request_timeout;
        let outcome = match limit {
            Duration::ZERO => self.run(ask).await,
            // Boxed, so that those without a limit do not carry the room for it.
            limit => {
                let work = Box::pin(timeout(limit, self.run(ask)));
                work.await.unwrap_or(Err(Trouble::Timeout))
            }
        };
        let next = match outcome {
            Ok((passing, backend)) => self.pass_back(ask, passing, backend).await,
            Err(trouble) => {
                desk::put(std::mem::take(&mut ask.to.bytes));
                self.tell(ask, trouble).await
            }
        };
        self.back.clear();
        next
    }

    /// Sends the request until it is answered.
    async fn run(&mut self, ask: &mut Ask) -> Result<(Passing, Backend), Trouble> {
        let route = std::mem::replace(&mut ask.route, Err(Trouble::NoBackend))?;
        let visitor = self.visitor;
        let choice = Choice { visitor, route: &route, caller: ask.caller };
        let mut avoid = Vec::new();
        let mut fresh = false;
        // Most requests are sent once, at the moment they came.
        let mut now = ask.record.started();
        for attempt in 0..MOST_TRIES {
            if attempt > 0 {
                now = Instant::now();
            }
            let (index, but) = choice.pick(&avoid, now)?;
            let endpoint = choice.endpoint(index);
            let waiting = if fresh { None } else { visitor.pool().take(endpoint.addr, !ask.repeatable, now) };
            let (backend, lease) = if let Some(backend) = waiting {
                (backend, endpoint.lease())
            } else {
                let (stream, lease) = Box::pin(choice.dial((index, but), true)).await?;
                (Backend::new(stream, Instant::now(), choice.terms()), lease)
            };
            ask.record.carried_by(lease);
            let failed = match self.answer(ask, backend).await {
                Ok((passing, backend)) => {
                    choice.judge(&ask.record, passing.status >= 500);
                    return Ok((passing, backend));
                }
                Err(failed) => failed,
            };
            // Whatever it was over, the next one is new: what waits in the pool may be as old.
            fresh = true;
            match failed {
                Failed::Unsent => {}
                Failed::ByClient => return Err(Trouble::Request),
                Failed::Broken { stale: true, .. } if ask.repeatable => {}
                Failed::Broken { heard: false, .. }
                    if ask.repeatable && choice.may_retry(&mut ask.record) =>
                {
                    choice.judge(&ask.record, true);
                    avoid.extend(choice.position(&ask.record));
                }
                Failed::Broken { .. } => {
                    choice.judge(&ask.record, true);
                    return Err(Trouble::Broken);
                }
                Failed::NoAnswer(why) => {
                    tracing::debug!(backend = %ask.record.backend(), why, "what a backend sent is no answer");
                    choice.judge(&ask.record, true);
                    return Err(Trouble::Broken);
                }
            }
        }
        Err(Trouble::Broken)
    }

    /// Sends the request over `backend`, and passes the answer's head on.
    async fn answer(&mut self, ask: &mut Ask, mut backend: Backend) -> Result<(Passing, Backend), Failed> {
        (ask.to.sent, ask.unsent) = (0, true);
        let mut coming = Coming::default();
        let mut broken = false;
        let passing = poll_fn(|cx| {
            loop {
                if !broken {
                    match self.poll_up(cx, ask, &mut backend) {
                        Poll::Ready(Up::ByClient) => return Poll::Ready(Err(Failed::ByClient)),
                        Poll::Ready(Up::Broken) if ask.unsent => return Poll::Ready(Err(Failed::Unsent)),
                        // It may have said why.
                        Poll::Ready(Up::Broken) => broken = true,
                        Poll::Ready(Up::Done) | Poll::Pending => {}
                    }
                }
                if let Poll::Ready(Err(_)) = self.back.poll(&mut self.client, cx) {
                    return Poll::Ready(Err(Failed::ByClient));
                }
                if let Poll::Ready(passing) = self.poll_answer(cx, ask, &mut backend, &mut coming) {
                    return Poll::Ready(passing);
                }
                if coming.heard {
                    backend.acknowledge();
                }
                ready!(self.poll_tick(cx));
                if vital::is_lost(&backend.stream) {
                    return Poll::Ready(Err(coming.broken_off(&backend)));
                }
            }
        })
        .await?;
        Ok((passing, backend))
    }

    /// Ready when it is time for a look at the connection.
    pub(super) fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(std::future::Future::poll(self.clock.as_mut(), cx));
        self.clock.as_mut().reset(Instant::now() + TICK);
        Poll::Ready(())
    }

    /// Tells the client what is wrong.
    async fn tell(&mut self, ask: &mut Ask, trouble: Trouble) -> Next {
        ask.record.answered(trouble.status());
        // The rest of a body that nobody takes is no request.
        let keeps = ask.keeps && ask.left.is_over() && !self.is_stopping() && trouble != Trouble::Request;
        let text = reply::text(trouble, ask.grpc, ask.fate(keeps).words(), !ask.head);
        self.count_out(text.len());
        self.back.add(text.as_bytes());
        match poll_fn(|cx| self.back.poll(&mut self.client, cx)).await {
            Ok(()) if keeps => {
                self.rests_since = Instant::now();
                Next::Again
            }
            Ok(()) => Next::Close { lingers: !ask.left.is_over() },
            Err(_) => Next::Close { lingers: false },
        }
    }
}
