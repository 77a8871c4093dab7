//! The data in this process's memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::accounts::Account;
use super::super::billing::Charge;
use super::super::documents::Document;
use super::super::events::Draft;
use super::super::sessions::Session;
use super::super::users::UserStatus;
use super::super::webhooks::Event;
use super::outbox::memory::Outbox;

#[derive(Clone, Default)]
pub(crate) struct MemoryData {
    tables: Arc<Mutex<Tables>>,
}

#[derive(Default)]
pub(super) struct Tables {
    accounts: HashMap<Account, AccountTables>,
    events: Vec<Event>,
    pub(super) outbox: Outbox,
}

/// The data of one account. Lookups never cross accounts.
#[derive(Default)]
struct AccountTables {
    sessions: Vec<Session>,
    charges: Vec<Charge>,
    documents: Vec<Document>,
    /// Each user's status and its version.
    users: HashMap<String, (UserStatus, u64)>,
    /// The workflows that a user has been through once. Some workflows fail the first time.
    been_through: HashSet<(&'static str, String)>,
}

/// These methods are asynchronous only because the methods of the other stores are.
impl MemoryData {
    pub(super) async fn add_session(&self, account: Account, session: &Session, charge: &Charge) {
        let mut tables = self.lock();
        let tables = tables.of(account);
        tables.sessions.push(session.clone());
        tables.charges.push(charge.clone());
    }

    pub(super) async fn session(&self, account: Account, id: &str) -> Option<Session> {
        let mut tables = self.lock();
        let sessions = &tables.of(account).sessions;
        sessions.iter().find(|session| session.session_id == id).cloned()
    }

    pub(super) async fn sessions(&self, account: Account) -> Vec<Session> {
        self.lock().of(account).sessions.clone()
    }

    pub(super) async fn add_charge(&self, account: Account, charge: &Charge) {
        self.lock().of(account).charges.push(charge.clone());
    }

    pub(super) async fn charges(&self, account: Account) -> Vec<Charge> {
        self.lock().of(account).charges.clone()
    }

    pub(super) async fn add_document(
        &self,
        account: Account,
        document: &Document,
        charge: &Charge,
        committed: impl Future<Output = ()>,
    ) {
        {
            let mut tables = self.lock();
            let tables = tables.of(account);
            tables.documents.push(document.clone());
            tables.charges.push(charge.clone());
        }
        committed.await;
    }

    pub(super) async fn documents(&self, account: Account, session_id: &str) -> Vec<Document> {
        let mut tables = self.lock();
        let documents = tables.of(account).documents.iter();
        documents
            .filter(|document| document.session_id == session_id)
            .cloned()
            .collect()
    }

    pub(super) async fn has_document(&self, document_id: &str) -> bool {
        let tables = self.lock();
        let mut documents = tables.accounts.values().flat_map(|tables| &tables.documents);
        documents.any(|document| document.document_id == document_id)
    }

    pub(super) async fn set_user_status(
        &self,
        account: Account,
        user_id: &str,
        status: UserStatus,
        event: Option<&Draft>,
    ) -> u64 {
        let mut tables = self.lock();
        let user = tables.of(account).users.entry(user_id.to_owned());
        let (now, version) = user.or_insert((status, 0));
        *now = status;
        *version += 1;
        let version = *version;
        if let Some(event) = event {
            tables.outbox.append(event.complete(version));
        }
        version
    }

    pub(super) async fn is_first_time(&self, account: Account, workflow: &'static str, user_id: &str) -> bool {
        let mut tables = self.lock();
        tables.of(account).been_through.insert((workflow, user_id.to_owned()))
    }

    pub(super) async fn add_event(&self, event: &Event) {
        self.lock().events.push(event.clone());
    }

    pub(super) async fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// Locks the tables. The lock is never held across an await. If a holder of the lock panics,
    /// the tables are still consistent, because none of the methods above can panic halfway.
    pub(super) fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn of(&mut self, account: Account) -> &mut AccountTables {
        self.accounts.entry(account).or_default()
    }
}
