//! Claims a slot with one command if the server supports it, and with the script if the command is
//! not enough.

use redis::aio::ConnectionLike;
use redis::{RedisError, RedisResult, Value};

use super::answer::{self, Begun};
use super::ask::{TRIES, may_repeat, put};
use super::failure::{Op, failed, said, unexpected};
use super::link::{Link, Unanswered};
use super::live::{Dialect, Live};
use super::replicas::{Acknowledged, Wait, Waited};
use super::request::Request;
use super::scripts::{Call, decimal, hex, millis};
use super::{RedisStore, claim, scripts};
use crate::store::{ClaimOutcome, ClaimRequest, OnLapse, StoreError};

/// The maximum number of attempts to claim a slot whose large record disappears before the store
/// can fetch it. Each time, one record was removed and a new record was stored.
const ROUNDS: u32 = 3;

/// The server's reply to a claim.
enum Reply {
    /// A result that needs no interpretation.
    Known(Result<ClaimOutcome, StoreError>),
    OfScript(Value),
    /// The slot has a large record.
    Large,
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    pub(super) async fn claim(&self, begin: &ClaimRequest) -> Result<(ClaimOutcome, Acknowledged), StoreError> {
        let key = self.key_bytes(&begin.slot);
        for round in 0..ROUNDS {
            let asked = Asked {
                begin,
                key: &key,
                by_script: round > 0 || claim::time_to_live(begin) == 0,
            };
            let (reply, acknowledged) = match &self.replicas {
                Some(replicas) => asked.put(replicas.link(), Some(replicas.wait)).await,
                None => asked.put(&self.link, None).await,
            }
            .map_err(|unanswered| failed(Op::Begin, unanswered.into()))?;
            let begun = match reply {
                Reply::Known(outcome) => Begun::Outcome(outcome?),
                Reply::OfScript(value) => answer::begun(&value, begin.fingerprint)?,
                Reply::Large => Begun::Large,
            };
            match begun {
                Begun::Outcome(outcome) => return Ok((outcome, acknowledged)),
                Begun::Large => {
                    // If the value is not a record after all, or is gone, the script in the next
                    // round returns the current state.
                    if let Some(held) = self.fetch(&key).await? {
                        return Ok((answer::done(&held, begin.fingerprint)?, acknowledged));
                    }
                }
            }
        }
        Err(unexpected(Op::Begin))
    }

    /// Fetches a large record over the connection for large records.
    async fn fetch(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(key).arg(scripts::FIELD);
        match put(&self.large, Op::Begin, &command).await {
            Ok(Value::BulkString(held)) => Ok(Some(held)),
            Ok(Value::Nil) => Ok(None),
            Ok(_) => Err(unexpected(Op::Begin)),
            Err(unanswered) => Err(failed(Op::Begin, unanswered.into())),
        }
    }
}

struct Asked<'a> {
    begin: &'a ClaimRequest,
    key: &'a [u8],
    by_script: bool,
}

impl Asked<'_> {
    async fn put<C>(&self, link: &Link<C>, wait: Option<Wait>) -> Result<(Reply, Acknowledged), Unanswered>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let mut live = link.get().await.map_err(Unanswered::NoConnection)?;
            match self.put_once(link, &mut live, wait).await {
                Err(error) if tries > 0 && may_repeat(link, Op::Begin, &error) => {}
                answer => return answer.map_err(Unanswered::Asked),
            }
        }
    }

    async fn put_once<C>(
        &self,
        link: &Link<C>,
        live: &mut Live<C>,
        wait: Option<Wait>,
    ) -> RedisResult<(Reply, Acknowledged)>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let dialect = live.facts.dialect();
        if dialect == Dialect::Script || self.by_script {
            return self.by_script(link, live, wait).await;
        }
        let request = &Request::Command(claim::command(self.key, self.begin));
        match link.put_on(live, &Waited { request, wait }).await {
            Ok((Value::Nil, acknowledged)) if dialect == Dialect::Command => {
                Ok((Reply::Known(Ok(ClaimOutcome::started(1))), acknowledged))
            }
            // A server that ignored the word `GET` would also return nil for a slot that is taken.
            Ok((Value::Nil, _)) => {
                let answer = self.by_script(link, live, wait).await?;
                let agrees = matches!(&answer.0, Reply::OfScript(value) if is_started(value));
                live.facts
                    .speaks(if agrees { Dialect::Command } else { Dialect::Script });
                Ok(answer)
            }
            Ok((Value::BulkString(held), acknowledged)) => match claim::judge(&held, self.begin) {
                Some(outcome) => Ok((Reply::Known(outcome), acknowledged)),
                None => self.by_script(link, live, wait).await,
            },
            Ok(_) => {
                live.facts.speaks(Dialect::Script);
                self.by_script(link, live, wait).await
            }
            Err(error) => match said(&error) {
                said if said.contains("WRONGTYPE") => Ok((Reply::Large, Acknowledged::Enough)),
                said if said.contains("syntax error") => {
                    live.facts.speaks(Dialect::Script);
                    self.by_script(link, live, wait).await
                }
                // The server treats the command as a write even if the slot is taken. The script
                // only reads a slot that is taken, so the server can still accept the script.
                said if is_refused_as_a_write(&said) => self.by_script(link, live, wait).await,
                _ => Err(error),
            },
        }
    }

    async fn by_script<C>(
        &self,
        link: &Link<C>,
        live: &mut Live<C>,
        wait: Option<Wait>,
    ) -> RedisResult<(Reply, Acknowledged)>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let begin = self.begin;
        let lapsed: &[u8] = match begin.on_lapse {
            _ if begin.is_to_settle => b"2",
            OnLapse::RunAgain => b"0",
            OnLapse::Refuse => b"1",
        };
        let request = &Request::Script(Call {
            script: &scripts::BEGIN,
            keys: &[self.key],
            args: &[
                &hex(&begin.token.0.to_be_bytes()),
                &hex(begin.fingerprint.as_bytes()),
                &decimal(claim::time_to_live(begin)),
                &decimal(millis(begin.ttl)),
                lapsed,
                &hex(begin.scope.as_bytes()),
            ],
        });
        let (value, acknowledged) = link.put_on(live, &Waited { request, wait }).await?;
        Ok((Reply::OfScript(value), acknowledged))
    }
}

fn is_started(value: &Value) -> bool {
    matches!(value, Value::Array(parts) if matches!(parts[..], [Value::Int(1), Value::Int(_)]))
}

/// Returns whether the error means that the server currently accepts no writes at all, but still
/// accepts reads.
fn is_refused_as_a_write(said: &str) -> bool {
    ["OOM ", "MISCONF ", "NOREPLICAS "]
        .iter()
        .any(|code| said.starts_with(code))
}

/// Returns whether the server has no memory left.
pub(super) fn is_out_of_memory(error: &RedisError) -> bool {
    said(error).contains("OOM ")
}
