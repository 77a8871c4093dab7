//! The application's own data: sessions, charges, users and events, in this process's memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::accounts::Account;
use super::billing::Charge;
use super::sessions::Session;
use super::users::{User, UserStatus};
use super::webhooks::Event;

/// Each method is one transaction. Clones share the data.
#[derive(Clone, Default)]
pub(crate) struct Data {
    tables: Arc<Mutex<Tables>>,
}

#[derive(Default)]
struct Tables {
    accounts: HashMap<Account, AccountTables>,
    events: Vec<Event>,
}

/// What belongs to one account. Nothing is looked up across accounts.
#[derive(Default)]
struct AccountTables {
    sessions: Vec<Session>,
    charges: Vec<Charge>,
    users: HashMap<String, User>,
    /// The workflows that a user has been through once, for those that fail the first time.
    been_through: HashSet<(&'static str, String)>,
}

impl Data {
    /// Adds a session together with its charge.
    pub(crate) fn add_session(&self, account: Account, session: Session, charge: Charge) {
        let mut tables = self.lock();
        let tables = tables.of(account);
        tables.sessions.push(session);
        tables.charges.push(charge);
    }

    pub(crate) fn session(&self, account: Account, id: &str) -> Option<Session> {
        let mut tables = self.lock();
        let sessions = &tables.of(account).sessions;
        sessions.iter().find(|session| session.session_id == id).cloned()
    }

    /// The account's sessions, oldest first.
    pub(crate) fn sessions(&self, account: Account) -> Vec<Session> {
        self.lock().of(account).sessions.clone()
    }

    pub(crate) fn add_charge(&self, account: Account, charge: Charge) {
        self.lock().of(account).charges.push(charge);
    }

    /// The account's charges, oldest first.
    pub(crate) fn charges(&self, account: Account) -> Vec<Charge> {
        self.lock().of(account).charges.clone()
    }

    /// Sets a user's status; each call makes a new version.
    pub(crate) fn set_user_status(&self, account: Account, user_id: String, status: UserStatus) -> User {
        let mut tables = self.lock();
        let users = &mut tables.of(account).users;
        let user = User {
            version: users.get(&user_id).map_or(1, |user| user.version + 1),
            status,
            user_id,
        };
        users.insert(user.user_id.clone(), user.clone());
        user
    }

    /// Whether the user has not been through the workflow yet. From now on, it has.
    pub(crate) fn is_first_time(&self, account: Account, workflow: &'static str, user_id: &str) -> bool {
        let mut tables = self.lock();
        tables.of(account).been_through.insert((workflow, user_id.to_owned()))
    }

    pub(crate) fn add_event(&self, event: Event) {
        self.lock().events.push(event);
    }

    /// The events in the order in which they were processed.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// The lock is never held across an await. Should its holder ever panic, the tables are whole:
    /// nothing in the methods above can panic halfway.
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn of(&mut self, account: Account) -> &mut AccountTables {
        self.accounts.entry(account).or_default()
    }
}
