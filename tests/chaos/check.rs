//! What must hold after a round, whatever happened in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::client::{Answer, Outcome};
use super::operation::{ACCOUNTS, Account, Kind, Operation};

/// All that was seen. Times count from the start of the round.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub operations: Vec<Operation>,
    pub attempts: Vec<Attempt>,
    /// When something went wrong that may let an operation run twice.
    pub harms: Vec<(Duration, Duration)>,
    /// All that went wrong was over by then.
    pub healed: Duration,
    /// What each account is told by the one server and by the other.
    pub books: Vec<[Books; 2]>,
    /// Identifiers of the events processed.
    pub events: Vec<String>,
    /// The files of documents, by the documents' identifiers.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files that have not found their place, and are not gone.
    pub aside: BTreeSet<String>,
    /// By operation, for changes of status: the version after one more change.
    pub next_versions: BTreeMap<usize, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub charges: Vec<Charge>,
    pub total_cents: u64,
    /// Identifier and user.
    pub sessions: Vec<(String, String)>,
    /// Identifier and name of the file.
    pub documents: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    pub reference: String,
    pub cents: u64,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub operation: usize,
    pub server: usize,
    pub began: Duration,
    pub ended: Duration,
    pub outcome: Outcome,
}

impl Attempt {
    fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Answer(answer) => Some(answer),
            _ => None,
        }
    }
}

impl Observed {
    /// When an operation was first known to be done.
    pub fn first_success(&self, operation: usize) -> Option<Duration> {
        let status = self.operations[operation].success();
        let attempts = self.attempts.iter().filter(|attempt| attempt.operation == operation);
        attempts
            .filter(|attempt| attempt.answer().is_some_and(|answer| answer.status == status))
            .map(|attempt| attempt.ended)
            .min()
    }
}

/// What the store promises.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Effect and record are committed together.
    pub atomic: bool,
    /// After all is healed, within this time every operation has its final answer: what is left of a
    /// lease, and an attempt.
    pub settles: Duration,
}

/// All that is wrong; nothing is the answer hoped for.
pub fn violations(observed: &Observed, promise: Promise) -> Vec<String> {
    let mut wrong = Vec::new();
    // By account: what answers say was charged.
    let mut answered: Vec<(Account, String, u64)> = Vec::new();
    let mut excused_accounts = Vec::new();
    for (number, operation) in observed.operations.iter().enumerate() {
        let of_it: Vec<&Attempt> = observed
            .attempts
            .iter()
            .filter(|attempt| attempt.operation == number)
            .collect();
        let done = observed.first_success(number);
        let exact = promise.atomic || !excused(&of_it, done, &observed.harms);
        if !exact {
            excused_accounts.push(operation.account);
        }
        let mut complain = |what: String| {
            wrong.push(format!("operation {number} ({}): {what}", operation.subject));
        };
        statuses(&of_it, operation, &mut complain);
        let successes: Vec<(&Attempt, &Answer)> = of_it
            .iter()
            .filter_map(|attempt| Some((*attempt, attempt.answer()?)))
            .filter(|(_, answer)| answer.status == operation.success())
            .collect();
        answers(&successes, exact, &mut complain);
        settled(&of_it, done, observed.healed + promise.settles, &mut complain);
        for (_, answer) in &successes {
            if !operation.is_subject_of(&answer.json()) {
                complain(format!("the answer is about something else: {}", answer.body));
            }
        }
        let bodies: BTreeSet<&str> = successes.iter().map(|(_, answer)| answer.body.as_str()).collect();
        for body in &bodies {
            let answer: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            if let Some((reference, cents)) = operation.charged(&answer) {
                answered.push((operation.account, reference, cents));
            }
            if exact && operation.kind == Kind::Status && answer["version"] != 1 {
                complain(format!("it ran more than once: {body}"));
            }
        }
        if let Some(&version) = observed.next_versions.get(&number)
            && (version < 2 || exact && version > 2)
        {
            complain(format!("it ran {} times", version.saturating_sub(1)));
        }
        if operation.kind == Kind::Event {
            let times = observed
                .events
                .iter()
                .filter(|event| **event == operation.subject)
                .count();
            if times == 0 || exact && times > 1 {
                complain(format!("the event was processed {times} times"));
            }
        }
    }
    for (account, [one, other]) in ACCOUNTS.iter().zip(&observed.books) {
        if one != other {
            wrong.push(format!("{account:?}: the servers' books differ: {one:?} and {other:?}"));
        }
        let answered: Vec<_> = answered.iter().filter(|(owner, ..)| owner == account).collect();
        files(observed, one, &mut wrong);
        let exact = promise.atomic || !excused_accounts.contains(account);
        books(&answered, one, exact, &mut |what| {
            wrong.push(format!("{account:?}: {what}"));
        });
    }
    let documents = || observed.books.iter().flat_map(|[books, _]| &books.documents);
    for name in &observed.aside {
        wrong.push(format!("the file {name} was left behind"));
    }
    for name in observed.files.keys() {
        if !documents().any(|(id, _)| id == name) {
            wrong.push(format!("the file {name} is of no document"));
        }
    }
    wrong
}

/// Every document must have its file, whole.
fn files(observed: &Observed, books: &Books, wrong: &mut Vec<String>) {
    for (id, name) in &books.documents {
        let upload = observed.operations.iter().find(|operation| operation.subject == *name);
        match (upload, observed.files.get(id)) {
            (None, _) => wrong.push(format!("nobody uploaded the document {id}, {name}")),
            (_, None) => wrong.push(format!("the document {id}, {name}, has no file")),
            (Some(upload), Some(file)) if *file != upload.file() => {
                wrong.push(format!("the file of {id}, {name}, has other contents"));
            }
            _ => {}
        }
    }
}

/// Whether an operation may have run twice where effect and record are not one: something harmed it
/// before it was done, or its lease lapsed.
fn excused(of_it: &[&Attempt], done: Option<Duration>, harms: &[(Duration, Duration)]) -> bool {
    let first = of_it.iter().map(|attempt| attempt.began).min().unwrap_or_default();
    let done = done.unwrap_or(Duration::MAX);
    let lapsed = of_it
        .iter()
        .filter_map(|attempt| attempt.answer())
        .any(|answer| answer.json()["attempt"].as_u64() > Some(1));
    lapsed || harms.iter().any(|&(from, to)| from <= done && first <= to)
}

/// A refusal must be one that a retry overcomes.
fn statuses(of_it: &[&Attempt], operation: &Operation, complain: &mut impl FnMut(String)) {
    for answer in of_it.iter().filter_map(|attempt| attempt.answer()) {
        let expected = match answer.status {
            409 => answer.code().as_deref() == Some("in-flight"),
            500 | 503 => true,
            status => status == operation.success(),
        };
        if !expected {
            complain(format!("unexpected {}: {}", answer.status, answer.body));
        }
    }
}

/// Successes must be one answer, and all but one of them replays.
fn answers(successes: &[(&Attempt, &Answer)], exact: bool, complain: &mut impl FnMut(String)) {
    let bodies: BTreeSet<&str> = successes
        .iter()
        .filter(|(_, answer)| exact || answer.replayed)
        .map(|(_, answer)| answer.body.as_str())
        .collect();
    if bodies.len() > 1 {
        complain(format!("different answers: {bodies:?}"));
    }
    let ran = || successes.iter().filter(|(_, answer)| !answer.replayed);
    if exact && ran().count() > 1 {
        complain(format!("{} successes are no replays", ran().count()));
    }
    let first_replay = successes
        .iter()
        .filter(|(_, answer)| answer.replayed)
        .map(|(attempt, _)| attempt.ended)
        .min();
    if let Some(first_replay) = first_replay
        && ran().any(|(attempt, _)| attempt.began > first_replay)
    {
        complain("it ran again after a replay".to_owned());
    }
}

/// In the end, each server must replay.
fn settled(of_it: &[&Attempt], done: Option<Duration>, latest: Duration, complain: &mut impl FnMut(String)) {
    match done {
        None => complain("it never succeeded".to_owned()),
        Some(done) if done > latest => complain(format!("stuck until {done:?}, and not {latest:?}")),
        Some(_) => {}
    }
    for server in 0..2 {
        let last = of_it
            .iter()
            .filter(|attempt| attempt.server == server)
            .max_by_key(|attempt| attempt.began)
            .and_then(|attempt| attempt.answer());
        if !last.is_some_and(|answer| answer.replayed) {
            complain(format!("server {server} does not replay in the end: {last:?}"));
        }
    }
}

/// The charges must be those that answers speak of.
fn books(answered: &[&(Account, String, u64)], books: &Books, exact: bool, complain: &mut impl FnMut(String)) {
    let total: u64 = books.charges.iter().map(|charge| charge.cents).sum();
    if total != books.total_cents {
        complain(format!("the total is {}, the charges are {total}", books.total_cents));
    }
    // What is charged for and listed, with its price.
    let things = [("session", 150, &books.sessions), ("document", 20, &books.documents)];
    for (_, reference, cents) in answered {
        let times = books
            .charges
            .iter()
            .filter(|charge| charge.reference == *reference && charge.cents == *cents)
            .count();
        if times == 0 || exact && times > 1 {
            complain(format!("{reference} was charged {times} times"));
        }
        for (what, price, listed) in things {
            if *cents == price && !listed.iter().any(|(id, _)| id == reference) {
                complain(format!("the {what} {reference} is lost"));
            }
        }
    }
    if !exact {
        return;
    }
    for charge in &books.charges {
        if !answered.iter().any(|(_, reference, _)| *reference == charge.reference) {
            complain(format!("nobody was told of the charge {charge:?}"));
        }
    }
    for (what, _, listed) in things {
        for (id, name) in listed {
            if !answered.iter().any(|(_, reference, _)| reference == id) {
                complain(format!("nobody was told of the {what} {id} of {name}"));
            }
        }
    }
}

mod bad_histories {
    use super::*;

    const ATOMIC: Promise = Promise {
        atomic: true,
        settles: Duration::from_secs(3),
    };
    const LOOSE: Promise = Promise {
        atomic: false,
        ..ATOMIC
    };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn attempt(operation: usize, server: usize, began: u64, status: u16, replayed: bool, body: &str) -> Attempt {
        Attempt {
            operation,
            server,
            began: at(began),
            ended: at(began + 10),
            outcome: Outcome::Answer(Answer {
                status,
                replayed,
                body: body.to_owned(),
            }),
        }
    }

    const IN_FLIGHT: &str = r#"{"code":"in-flight"}"#;
    const SESSION: &str = r#"{"session_id":"ses_1","user_id":"anna","attempt":1}"#;
    const OTHER_SESSION: &str = r#"{"session_id":"ses_2","user_id":"anna","attempt":1}"#;
    const DOCUMENT: &str = r#"{"document_id":"doc_1","file_name":"carl","attempt":1}"#;
    const STATUS: &str = r#"{"user_id":"bob","status":"approved","version":1}"#;

    fn charge(reference: &str) -> Charge {
        Charge {
            reference: reference.to_owned(),
            cents: 150,
        }
    }

    /// Three operations, all in order.
    fn good() -> Observed {
        let operation =
            |account, kind, subject: &str| Operation::new(account, "k".to_owned(), kind, subject.to_owned());
        let uploaded = operation(Account::Acme, Kind::Document, "carl");
        let document = Charge {
            reference: "doc_1".to_owned(),
            cents: 20,
        };
        let books = Books {
            charges: vec![charge("ses_1"), document],
            total_cents: 170,
            sessions: vec![("ses_1".to_owned(), "anna".to_owned())],
            documents: vec![("doc_1".to_owned(), "carl".to_owned())],
        };
        let mut attempts = vec![
            attempt(0, 0, 0, 201, false, SESSION),
            attempt(0, 1, 5, 409, false, IN_FLIGHT),
            attempt(1, 1, 5, 200, false, STATUS),
        ];
        attempts.push(Attempt {
            outcome: Outcome::HungUp,
            ..attempt(0, 1, 6, 0, false, "")
        });
        for server in 0..2 {
            attempts.push(attempt(0, server, 1000, 201, true, SESSION));
            attempts.push(attempt(1, server, 1000, 200, true, STATUS));
            attempts.push(attempt(2, server, 1000, 201, true, DOCUMENT));
        }
        attempts.push(attempt(2, 1, 8, 201, false, DOCUMENT));
        Observed {
            operations: vec![
                operation(Account::Acme, Kind::Session { workflow: "w" }, "anna"),
                operation(Account::Globex, Kind::Status, "bob"),
                uploaded.clone(),
            ],
            attempts,
            files: [("doc_1".to_owned(), uploaded.file())].into(),
            healed: at(900),
            books: vec![[books.clone(), books], Default::default()],
            next_versions: [(1, 2)].into(),
            ..Observed::default()
        }
    }

    /// The good history, spoilt, is found out, with these words.
    fn found(promise: Promise, expected: &str, spoil: impl FnOnce(&mut Observed)) {
        let mut observed = good();
        spoil(&mut observed);
        let wrong = violations(&observed, promise);
        assert!(wrong.iter().any(|what| what.contains(expected)), "{wrong:?}");
    }

    fn on_both_servers(observed: &mut Observed, spoil: impl Fn(&mut Books)) {
        observed.books[0].iter_mut().for_each(spoil);
    }

    fn charge_also(reference: &'static str) -> impl Fn(&mut Observed) {
        move |observed| {
            on_both_servers(observed, |books| {
                books.charges.push(charge(reference));
                books.total_cents += 150;
            });
        }
    }

    #[test]
    fn a_good_one_is_good() {
        for promise in [ATOMIC, LOOSE] {
            assert_eq!(violations(&good(), promise), Vec::<String>::new());
        }
    }

    #[test]
    fn double_charges_are_found() {
        for promise in [ATOMIC, LOOSE] {
            found(promise, "charged 2 times", charge_also("ses_1"));
            found(promise, "nobody was told of the charge", charge_also("ses_2"));
        }
    }

    #[test]
    fn a_lost_charge_is_found() {
        for promise in [ATOMIC, LOOSE] {
            found(promise, "charged 0 times", |observed| {
                on_both_servers(observed, |books| *books = Books::default());
            });
        }
        found(ATOMIC, "is lost", |observed| {
            on_both_servers(observed, |books| books.sessions.clear());
        });
        found(ATOMIC, "nobody was told of the session", |observed| {
            on_both_servers(observed, |books| books.sessions.push(("ses_2".into(), "anna".into())));
        });
    }

    #[test]
    fn a_wrong_document_is_found() {
        for promise in [ATOMIC, LOOSE] {
            found(promise, "has no file", |observed| observed.files.clear());
            found(promise, "other contents", |observed| {
                observed.files.values_mut().for_each(|file| file.truncate(5));
            });
            found(promise, "was left behind", |observed| {
                observed.aside.insert("doc_2".to_owned());
            });
            found(promise, "is of no document", |observed| {
                observed.files.insert("doc_2".to_owned(), Vec::new());
            });
            found(promise, "the document doc_1 is lost", |observed| {
                on_both_servers(observed, |books| books.documents.clear());
            });
        }
        found(ATOMIC, "nobody was told of the document", |observed| {
            on_both_servers(observed, |books| books.documents.push(("doc_2".into(), "carl".into())));
        });
    }

    #[test]
    fn different_books_are_found() {
        found(ATOMIC, "books differ", |observed| observed.books[0][1].total_cents = 0);
        found(ATOMIC, "the total is", |observed| {
            on_both_servers(observed, |books| books.total_cents += 1);
        });
    }

    #[test]
    fn different_answers_are_found() {
        for promise in [ATOMIC, LOOSE] {
            found(promise, "different answers", |observed| {
                observed.attempts.push(attempt(0, 0, 1100, 201, true, OTHER_SESSION));
            });
        }
    }

    #[test]
    fn a_second_run_is_found() {
        for promise in [ATOMIC, LOOSE] {
            let again = attempt(0, 0, 500, 201, false, SESSION);
            found(promise, "2 successes are no replays", |observed| {
                observed.attempts.push(again);
            });
            found(promise, "ran 2 times", |observed| {
                observed.next_versions.insert(1, 3);
            });
        }
        found(LOOSE, "ran again after a replay", |observed| {
            observed.harms.push((at(0), at(3000)));
            observed.attempts.push(attempt(0, 0, 1100, 201, false, OTHER_SESSION));
            observed.attempts.push(attempt(0, 0, 1200, 201, true, SESSION));
        });
        found(ATOMIC, "ran more than once", |observed| {
            for attempt in &mut observed.attempts {
                if let Outcome::Answer(answer) = &mut attempt.outcome {
                    answer.body = answer.body.replace(r#""version":1"#, r#""version":2"#);
                }
            }
        });
    }

    #[test]
    fn what_did_not_run_is_found() {
        found(LOOSE, "ran 0 times", |observed| {
            observed.harms.push((at(0), at(3000)));
            observed.next_versions.insert(1, 1);
        });
        for (times, expected) in [(0, "processed 0 times"), (2, "processed 2 times")] {
            found(ATOMIC, expected, |observed| {
                observed.operations[1].kind = Kind::Event;
                observed.events = vec!["bob".to_owned(); times];
            });
        }
    }

    #[test]
    fn a_stuck_key_is_found() {
        found(ATOMIC, "stuck", |observed| {
            for attempt in &mut observed.attempts {
                attempt.began += at(4000);
                attempt.ended += at(4000);
            }
        });
        found(ATOMIC, "does not replay in the end", |observed| {
            observed.attempts.push(attempt(0, 1, 2000, 409, false, IN_FLIGHT));
        });
        found(ATOMIC, "does not replay in the end", |observed| {
            observed.attempts.retain(|attempt| attempt.began < at(1000));
        });
        found(ATOMIC, "never succeeded", |observed| {
            observed.attempts.retain(|attempt| attempt.operation == 0);
        });
    }

    #[test]
    fn anothers_answer_is_found() {
        for promise in [ATOMIC, LOOSE] {
            found(promise, "about something else", |observed| {
                observed.operations[0].subject = "bob".to_owned();
            });
        }
    }

    #[test]
    fn a_wrong_refusal_is_found() {
        for (status, body) in [
            (422, r#"{"code":"key-reused"}"#),
            (409, r#"{"code":"outcome-unknown"}"#),
            (401, ""),
        ] {
            found(ATOMIC, "unexpected", |observed| {
                observed.attempts.push(attempt(0, 0, 100, status, false, body));
            });
        }
    }

    /// What a store without transactions cannot help is no fault of it, but only then.
    #[test]
    fn a_lapsed_lease_is_an_excuse_without_transactions() {
        let mut observed = good();
        charge_also("ses_2")(&mut observed);
        on_both_servers(&mut observed, |books| {
            books.sessions.push(("ses_2".to_owned(), "anna".to_owned()));
        });
        observed.attempts.push(attempt(0, 0, 7, 201, false, OTHER_SESSION));
        assert_ne!(violations(&observed, LOOSE), Vec::<String>::new());
        observed.harms = vec![(at(5), at(6))];
        assert_eq!(violations(&observed, LOOSE), Vec::<String>::new());
        assert_ne!(violations(&observed, ATOMIC), Vec::<String>::new());
        // Too late to be one.
        observed.harms = vec![(at(500), at(600))];
        assert_ne!(violations(&observed, LOOSE), Vec::<String>::new());
        observed.harms.clear();
        let taken_over = OTHER_SESSION.replace(r#""attempt":1"#, r#""attempt":2"#);
        observed.attempts.push(attempt(0, 0, 8, 201, false, &taken_over));
        assert_eq!(violations(&observed, LOOSE), Vec::<String>::new());
    }
}
