//! Runs the store's statements on a lane's connection.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::job::{Answer, Change, Found, Job, What};
use super::wire::{Query, Wire, as_float};
use crate::store::sql::begin::Seen;
use crate::store::sql::value::signed;
use crate::store::{ClaimRequest, Held, OnLapse, Slot, Token};

pub(super) async fn claim_one(wire: &mut Wire, claim: &ClaimRequest) -> Result<Found, sqlx::Error> {
    let query = sqlx::query(wire.sql.claim.text())
        .bind(claim.slot.as_bytes().as_slice())
        .bind(claim.fingerprint.as_bytes().as_slice())
        .bind(signed(claim.token))
        .bind(as_float(claim.lease))
        .bind(as_float(claim.ttl))
        .bind(claim.scope.as_bytes().as_slice());
    // All rows are fetched, although the result has only one row, because a commit error arrives
    // after that row.
    let rows = query.fetch_all(&mut wire.connection).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(Found {
        started: row.try_get("started")?,
        seen: match row.try_get("fingerprint")? {
            Some(fingerprint) => Some(seen(row, fingerprint)?),
            None => None,
        },
    })
}

fn seen(row: &PgRow, fingerprint: Vec<u8>) -> Result<Seen, sqlx::Error> {
    Ok(Seen {
        fingerprint,
        token: row.try_get("token")?,
        attempt: row.try_get("attempt")?,
        lease_left: row.try_get("lease_left")?,
        done: row.try_get("done")?,
        record: row.try_get("record")?,
    })
}

pub(super) async fn claim_together(wire: &mut Wire, claims: &[&ClaimRequest]) -> Result<Vec<Found>, sqlx::Error> {
    let sorted = Sorted::new(claims, |claim| &claim.slot);
    let query = bind_claims(sqlx::query(wire.sql.claim_many.text()), &sorted);
    let rows = query.fetch_all(&mut wire.connection).await?;
    let mut found: Vec<_> = claims.iter().map(|_| Found::default()).collect();
    for row in &rows {
        let at = match row.try_get("n")? {
            Some(number) => sorted.at(number),
            None => {
                let (slot, token): (&[u8], i64) = (row.try_get("slot")?, row.try_get("token")?);
                sorted.find(slot, |claim| signed(claim.token) == token)
            }
        };
        // The statement cannot return any other rows.
        let Some(found) = at.and_then(|at| found.get_mut(at)) else {
            continue;
        };
        match row.try_get("fingerprint")? {
            Some(fingerprint) => found.seen = Some(seen(row, fingerprint)?),
            None => found.started = Some(1),
        }
    }
    Ok(found)
}

/// Returns the attempt number of each claim, or `None` for a claim that did not take over its slot.
pub(super) async fn take_over(wire: &mut Wire, claims: &[&ClaimRequest]) -> Result<Vec<Option<i32>>, sqlx::Error> {
    let sorted = Sorted::new(claims, |claim| &claim.slot);
    let refuses: Vec<_> = sorted.column(|claim| claim.on_lapse == OnLapse::Refuse);
    let query = bind_claims(sqlx::query(wire.sql.take_over.text()), &sorted).bind(refuses);
    let rows = query.fetch_all(&mut wire.connection).await?;
    let mut attempts = vec![None; claims.len()];
    for row in &rows {
        if let Some(at) = sorted.find(row.try_get(0)?, |_| true) {
            attempts[at] = Some(row.try_get(1)?);
        }
    }
    Ok(attempts)
}

fn bind_claims<'q>(query: Query<'q>, claims: &Sorted<'_, &ClaimRequest>) -> Query<'q> {
    query
        .bind(claims.column(|claim| claim.slot.as_bytes().to_vec()))
        .bind(claims.column(|claim| claim.fingerprint.as_bytes().to_vec()))
        .bind(claims.column(|claim| signed(claim.token)))
        .bind(claims.column(|claim| as_float(claim.lease)))
        .bind(claims.column(|claim| as_float(claim.ttl)))
        .bind(claims.column(|claim| claim.scope.as_bytes().to_vec()))
}

pub(super) async fn change_one(wire: &mut Wire, change: &Change) -> Result<Answer, sqlx::Error> {
    let (slot, token) = (change.slot.as_bytes().as_slice(), signed(change.token));
    let query = match &change.what {
        What::Complete(record, ttl) if !change.skips_lock => sqlx::query(wire.sql.complete.text())
            .bind(record.as_ref())
            .bind(as_float(*ttl)),
        What::Release if !change.skips_lock => sqlx::query(wire.sql.release.text()),
        _ => {
            let answers = change_together(wire, &[change]).await?;
            return answers.into_iter().next().ok_or(sqlx::Error::RowNotFound);
        }
    };
    let changed = query.bind(slot).bind(token).execute(&mut wire.connection).await?;
    if changed.rows_affected() == 1 {
        return Ok(Answer::Changed(Held::Yes));
    }
    let mut answers = vec![Answer::Changed(Held::Lost)];
    explain(wire, &[change], &mut answers).await?;
    answers.pop().ok_or(sqlx::Error::RowNotFound)
}

/// Applies changes of one kind.
pub(super) async fn change_together(wire: &mut Wire, changes: &[&Change]) -> Result<Vec<Answer>, sqlx::Error> {
    let sorted = Sorted::new(changes, |change| &change.slot);
    let Some(first) = changes.first() else {
        return Ok(Vec::new());
    };
    let statement = match (&first.what, first.skips_lock) {
        (What::Renew(_), _) => &wire.sql.renew_many,
        (What::Complete(..), false) => &wire.sql.complete_many,
        (What::Complete(..), true) => &wire.sql.complete_unlocked,
        (What::Release, false) => &wire.sql.release_many,
        (What::Release, true) => &wire.sql.release_unlocked,
    };
    let query = sqlx::query(statement.text())
        .bind(sorted.column(|change| change.slot.as_bytes().to_vec()))
        .bind(sorted.column(|change| signed(change.token)));
    let query = match first.what {
        What::Renew(_) => query.bind(sorted.column(|change| as_float(change.what.duration()))),
        What::Complete(..) => query
            .bind(sorted.column(|change| change.what.record()))
            .bind(sorted.column(|change| as_float(change.what.duration()))),
        What::Release => query,
    };
    let rows = query.fetch_all(&mut wire.connection).await?;
    let mut answers: Vec<_> = changes.iter().map(|_| Answer::Changed(Held::Lost)).collect();
    for row in &rows {
        if let Some(at) = sorted.at(row.try_get(0)?) {
            answers[at] = Answer::Changed(Held::Yes);
        }
    }
    explain(wire, changes, &mut answers).await?;
    Ok(answers)
}

/// Determines why changes were not applied, if their claims may still be held. A renewal skips
/// locked rows, and so does a change that has already waited for a lock. A change that is sent
/// again may have been applied the first time.
async fn explain(wire: &mut Wire, changes: &[&Change], answers: &mut [Answer]) -> Result<(), sqlx::Error> {
    let in_question = |change: &Change, answer: &Answer| {
        let skips = change.skips_lock || matches!(change.what, What::Renew(_));
        matches!(answer, Answer::Changed(Held::Lost)) && (change.is_repeated || skips)
    };
    let asked = changes
        .iter()
        .zip(&*answers)
        .filter(|(change, answer)| in_question(change, answer));
    let slots: Vec<_> = asked.map(|(change, _)| change.slot.as_bytes().to_vec()).collect();
    if slots.is_empty() {
        return Ok(());
    }
    let query = sqlx::query_as(wire.sql.check.text()).bind(slots);
    let rows: Vec<(Vec<u8>, i64, bool, bool)> = query.fetch_all(&mut wire.connection).await?;
    for (change, answer) in changes.iter().zip(answers) {
        if !in_question(change, answer) {
            continue;
        }
        let row = rows.iter().find(|row| row.0 == change.slot.as_bytes());
        let is_ours = row.is_some_and(|row| row.1 == signed(change.token));
        let is_done = row.is_some_and(|row| row.2);
        let is_held = is_ours && !is_done && row.is_some_and(|row| row.3);
        *answer = match &change.what {
            _ if is_held => Answer::Locked,
            // Only the claim's holder writes its record.
            What::Complete(..) if change.is_repeated && is_ours && is_done => Answer::Changed(Held::Yes),
            What::Release if change.is_repeated && row.is_none() => Answer::Changed(Held::Yes),
            _ => Answer::Changed(Held::Lost),
        };
    }
    Ok(())
}

/// Returns whether the claim's record exists, or `Answer::Locked` if a transaction may still write
/// it.
pub(super) async fn is_done(wire: &mut Wire, slot: &Slot, token: Token) -> Result<Answer, sqlx::Error> {
    let query = sqlx::query_scalar(wire.sql.is_done.text())
        .bind(signed(token))
        .bind(slot.as_bytes().as_slice());
    let unlocked: Vec<bool> = query.fetch_all(&mut wire.connection).await?;
    if let Some(is_done) = unlocked.first() {
        return Ok(Answer::Done(*is_done));
    }
    let query = sqlx::query(wire.sql.check.text()).bind(vec![slot.as_bytes().to_vec()]);
    let rows = query.fetch_all(&mut wire.connection).await?;
    Ok(if rows.is_empty() {
        Answer::Done(false)
    } else {
        Answer::Locked
    })
}

pub(super) async fn read(wire: &mut Wire, job: &Job) -> Result<Answer, sqlx::Error> {
    match job {
        Job::Forget(slot) => {
            let query = sqlx::query_scalar(wire.sql.forget.text()).bind(slot.as_bytes().as_slice());
            let counted: Vec<bool> = query.fetch_all(&mut wire.connection).await?;
            Ok(Answer::Forgotten(counted.first() == Some(&true)))
        }
        Job::LookUp(slot) => {
            let query = sqlx::query_as(wire.sql.look_up.text()).bind(slot.as_bytes().as_slice());
            let mut rows = query.fetch_all(&mut wire.connection).await?;
            Ok(Answer::LookedUp(rows.pop()))
        }
        _ => Err(sqlx::Error::Protocol("this job does not read".into())),
    }
}

/// Items in the order of their slots, with the original position of each item.
struct Sorted<'a, T> {
    items: &'a [T],
    order: Vec<usize>,
    slot: fn(&T) -> &Slot,
}

impl<'a, T> Sorted<'a, T> {
    fn new(items: &'a [T], slot: fn(&T) -> &Slot) -> Self {
        let mut order: Vec<_> = (0..items.len()).collect();
        order.sort_by_key(|at| slot(&items[*at]).as_bytes());
        Self { items, order, slot }
    }

    fn column<C>(&self, value: impl Fn(&'a T) -> C) -> Vec<C> {
        self.order.iter().map(|at| value(&self.items[*at])).collect()
    }

    /// Returns the original position of the item with this number. Numbers start at 1.
    fn at(&self, number: i64) -> Option<usize> {
        let number = usize::try_from(number).ok()?;
        self.order.get(number.checked_sub(1)?).copied()
    }

    /// Returns the original position of an item with this slot.
    fn find(&self, slot: &[u8], is_it: impl Fn(&T) -> bool) -> Option<usize> {
        let slot_at = |at: &usize| (self.slot)(&self.items[*at]).as_bytes().as_slice();
        let first = self.order.partition_point(|at| slot_at(at) < slot);
        let of_slot = self.order[first..].iter().take_while(|at| slot_at(at) == slot);
        of_slot.copied().find(|at| is_it(&self.items[*at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_sorted_by_slot_and_found_again() {
        let slot = |number| Slot::from_bytes([number; Slot::LEN]);
        let items = [(slot(3), 'a'), (slot(1), 'b'), (slot(3), 'c'), (slot(2), 'd')];
        let sorted = Sorted::new(&items, |item| &item.0);
        assert_eq!(sorted.column(|item| item.1), ['b', 'd', 'a', 'c']);
        let at = [0, 1, 2, 3, 4, 5].map(|number| sorted.at(number));
        assert_eq!(at, [None, Some(1), Some(3), Some(0), Some(2), None]);
        assert_eq!(sorted.find(slot(3).as_bytes(), |item| item.1 == 'c'), Some(2));
        assert_eq!(sorted.find(slot(3).as_bytes(), |item| item.1 == 'd'), None);
        assert_eq!(sorted.find(slot(4).as_bytes(), |_| true), None);
    }
}
