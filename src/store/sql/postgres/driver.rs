//! The PostgreSQL driver for a lane.

use std::sync::Arc;

use sqlx::{Connection, PgPool};

use super::connect::{CONNECT_WITHIN, Connector, too_slow};
use super::error::{blame, is_locked, is_table_locked};
use super::job::{Answer, Change, Job};
use super::pin::Pin;
use super::run::{change_one, change_together, claim_one, claim_together, is_done, read, take_over};
use super::wire::Wire;
use crate::store::ClaimRequest;
use crate::store::sql::lane::{Blame, Driver};

pub(super) struct PostgresDriver {
    pub(super) connector: Connector,
    pub(super) pin: Arc<Pin>,
}

impl PostgresDriver {
    pub(super) fn new(pool: PgPool, pin: Arc<Pin>) -> Self {
        Self {
            connector: Connector::new(pool),
            pin,
        }
    }
}

impl Driver for PostgresDriver {
    type Connection = Wire;
    type Job = Job;
    type Answer = Answer;

    const NAME: &'static str = super::error::NAME;

    async fn connect(&self) -> Result<Wire, sqlx::Error> {
        let mut connection = self.connector.connect(CONNECT_WITHIN).await?;
        let finding = self.pin.find(&mut connection);
        let sql = tokio::time::timeout(CONNECT_WITHIN, finding).await;
        let sql = sql.map_err(|_| too_slow(CONNECT_WITHIN))??;
        Ok(Wire { connection, sql })
    }

    fn joins(job: &Job, batch: &[Job]) -> bool {
        job.joins(batch)
    }

    fn is_refused_when_full(job: &Job) -> bool {
        match job {
            Job::Claim(_) | Job::TakeOver(_) | Job::LookUp(_) | Job::Forget(_) => true,
            Job::Change(_) | Job::IsDone(..) => false,
        }
    }

    async fn run(&self, wire: &mut Wire, jobs: &[Job]) -> Result<Vec<Answer>, sqlx::Error> {
        match jobs {
            [job] => match run_one(wire, job).await {
                Ok(answer) => Ok(vec![answer]),
                Err(error) if is_locked(&error) && !is_outage(job, &error) => Ok(vec![Answer::Locked]),
                Err(error) => Err(error),
            },
            jobs => match run_together(wire, jobs).await {
                // A row that one of these jobs changes is locked. The callers send their jobs
                // again, and this time, the jobs skip locked rows.
                Err(error) if is_locked(&error) && matches!(jobs, [Job::Change(_), ..]) => {
                    Ok(jobs.iter().map(|_| Answer::Locked).collect())
                }
                answers => answers,
            },
        }
    }

    fn blame(&self, error: &sqlx::Error) -> Blame {
        blame(error, || self.pin.forget())
    }

    fn repeat(job: &mut Job) {
        job.repeat();
    }

    async fn close(wire: Wire) {
        let _ = wire.connection.close().await;
    }
}

/// Returns whether a job that met a lock must be reported as failed, because its caller would
/// otherwise take the slot for another request's:
///
/// - Somebody holds the whole table.
/// - The lock may belong to this same claim, which was sent before on a connection that broke. The
///   layer then gives the claim back, which would otherwise block the key until its lease expires.
fn is_outage(job: &Job, error: &sqlx::Error) -> bool {
    match job {
        Job::Claim(claim) => claim.is_repeated || is_table_locked(error),
        Job::TakeOver(_) => is_table_locked(error),
        // Their callers wait for the lock.
        Job::Change(_) | Job::IsDone(..) | Job::LookUp(_) | Job::Forget(_) => false,
    }
}

async fn run_one(wire: &mut Wire, job: &Job) -> Result<Answer, sqlx::Error> {
    match job {
        Job::Claim(claim) => claim_one(wire, &claim.request).await.map(Answer::Found),
        Job::TakeOver(claim) => {
            let taken = take_over(wire, &[claim]).await?;
            Ok(Answer::TakenOver(taken.into_iter().next().flatten()))
        }
        Job::Change(change) => change_one(wire, change).await,
        Job::IsDone(slot, token) => is_done(wire, slot, *token).await,
        Job::LookUp(_) | Job::Forget(_) => read(wire, job).await,
    }
}

/// Runs jobs of one kind together.
async fn run_together(wire: &mut Wire, jobs: &[Job]) -> Result<Vec<Answer>, sqlx::Error> {
    let claims: Vec<_> = jobs.iter().filter_map(claim_of).collect();
    let changes: Vec<&Change> = jobs.iter().filter_map(change_of).collect();
    match jobs.first() {
        Some(Job::Claim(_)) if claims.len() == jobs.len() => {
            let found = claim_together(wire, &claims).await?;
            Ok(found.into_iter().map(Answer::Found).collect())
        }
        Some(Job::TakeOver(_)) if claims.len() == jobs.len() => {
            let taken = take_over(wire, &claims).await?;
            Ok(taken.into_iter().map(Answer::TakenOver).collect())
        }
        Some(Job::Change(_)) if changes.len() == jobs.len() => change_together(wire, &changes).await,
        _ => Err(sqlx::Error::Protocol("these jobs cannot be sent together".into())),
    }
}

fn claim_of(job: &Job) -> Option<&ClaimRequest> {
    match job {
        Job::Claim(claim) => Some(&claim.request),
        Job::TakeOver(claim) => Some(claim),
        _ => None,
    }
}

fn change_of(job: &Job) -> Option<&Change> {
    match job {
        Job::Change(change) => Some(change),
        _ => None,
    }
}
