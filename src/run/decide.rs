//! Decides what happens to a request after the store has answered.

use std::sync::Arc;

use super::admit::Admission;
use super::compare::{Comparing, Known};
use super::detach::Running;
use super::ended::Disconnected;
use super::exchange::Exchange;
use super::handler::{Run, refuse, run, run_unprotected};
use super::received::{Received, Unstreamable};
use super::stage::Stage;
use crate::answer::Problem;
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::Fingerprint;
use crate::store::{ClaimOutcome, ClaimRequest, Store, StoreError, StoreErrorKind};

impl<S, St: Store> Exchange<S, St> {
    /// Passes on a request that is not guarded, as if its body had not been buffered.
    pub(crate) fn pass<B>(self, body: Received<B>) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        self.guard.tally.report_unguarded();
        Stage::Through {
            future: self.call(body),
        }
    }

    /// Continues after the store has answered or failed.
    pub(crate) fn store_answered<B>(
        self: Box<Self>,
        begin: &ClaimRequest,
        answer: Result<Admission<St>, StoreError>,
        body: Received<B>,
    ) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let guard = Arc::clone(&self.guard);
        let cancel = guard.config.cancel_on_disconnect.map(|_| Disconnected::default());
        let running = |run: Run<S::ResponseBody, S::Error>, cancel| Stage::Running {
            running: Running::new(run, cancel, Arc::clone(&guard)),
        };
        let error = match answer {
            Ok(Admission::Started(claim)) if guard.is_overloaded() => {
                body.refuse(&self.parts.headers);
                return running(Box::pin(refuse(self, Some(claim), Problem::overloaded())), cancel);
            }
            Ok(Admission::Started(mut claim)) => {
                let body = match body.start() {
                    Ok((body, upload)) => {
                        claim.upload = upload;
                        body
                    }
                    Err(Unstreamable) => {
                        guard.report_unstreamable();
                        return running(Box::pin(refuse(self, Some(claim), Problem::misconfigured())), cancel);
                    }
                };
                return running(Box::pin(run(self, claim, begin, body, cancel.clone())), cancel);
            }
            Ok(Admission::HeldOutside) => return self.pass(body),
            Ok(Admission::Found(found)) => return self.found(&begin.fingerprint, found, body),
            Err(error) => error,
        };
        // A stored record that cannot be read still shows that the operation completed.
        if !guard.config.fail_open || error.kind() == StoreErrorKind::Corrupt {
            body.refuse(&self.parts.headers);
            return Stage::answered(self.refuse_for_store(&error));
        }
        let run: Run<_, _> = if guard.is_overloaded() {
            body.refuse(&self.parts.headers);
            Box::pin(refuse(self, None, Problem::overloaded()))
        } else {
            // The limit and the digest of a streamed body are checked even so.
            match body.start() {
                Ok((body, _)) => Box::pin(run_unprotected(self, body, error, cancel.clone())),
                Err(Unstreamable) => {
                    guard.report_unstreamable();
                    Box::pin(refuse(self, None, Problem::misconfigured()))
                }
            }
        };
        running(run, cancel)
    }

    /// Responds to a request whose operation has completed or is running for a different request.
    fn found<B>(self: Box<Self>, fingerprint: &Fingerprint, found: ClaimOutcome, body: Received<B>) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let ClaimOutcome::Done(record) = found else {
            body.refuse(&self.parts.headers);
            let answered = self.answer(found);
            return Stage::answered(answered.unwrap_or_else(|error| self.refuse_for_store(&error)));
        };
        let answered = match self.compare(&record, fingerprint, &body) {
            Ok(Known::Asks(first)) => {
                return match Comparing::new(self, body, record, first) {
                    Ok(comparing) => Stage::Comparing { comparing },
                    Err(exchange) => Stage::answered(exchange.refuse(Problem::key_reused())),
                };
            }
            Ok(Known::Same) => self.answer(ClaimOutcome::Done(record)),
            Ok(Known::Other) => self.answer(ClaimOutcome::Mismatch),
            Err(error) => Err(error),
        };
        body.refuse(&self.parts.headers);
        // Even if the record cannot be read, it shows that the operation completed.
        Stage::answered(answered.unwrap_or_else(|error| self.refuse_for_store(&error)))
    }
}
