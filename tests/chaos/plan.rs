//! What happens in a round: all that the seed decides.

use std::time::Duration;

use super::operation::{ACCOUNTS, Kind, Operation};
use super::rng::Rng;
use super::store::Engine;

#[derive(Debug)]
pub struct Plan {
    pub operations: Vec<Operation>,
    pub clients: Vec<Client>,
    pub faults: Vec<(Duration, Fault)>,
    /// How far the second server's clock is off.
    pub shift: Option<&'static str>,
}

impl Plan {
    /// As in `KillServer, ReadOnly`.
    pub fn names_of_faults(&self) -> String {
        let debugged = self.faults.iter().map(|(_, fault)| format!("{fault:?}"));
        let names: Vec<String> = debugged
            .map(|text| text.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        names.join(", ")
    }

    /// Whether the store needs another that takes over from it.
    pub fn fails_over(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::FailOver { .. }))
    }

    /// Whether rows were put into the table that the sweeper has to remove.
    pub fn leaves_a_backlog(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::Backlog { .. }))
    }

    fn has(&self, is_of_that_kind: fn(Fault) -> bool) -> bool {
        self.faults.iter().any(|(_, fault)| is_of_that_kind(*fault))
    }
}

/// One of those that want the same operation done.
#[derive(Debug)]
pub struct Client {
    pub operation: usize,
    pub starts: Duration,
    /// Of its own decisions.
    pub seed: u64,
}

/// What goes wrong. `server` is 0 or 1; a fault of the network is one between that server and the
/// store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    KillServer {
        server: usize,
    },
    HaltServer {
        server: usize,
        time: Duration,
    },
    HaltStore {
        time: Duration,
    },
    KillStore {
        time: Duration,
    },
    /// The store takes no writes, as after a failover while the old connections live on. Reads go on. On
    /// PostgreSQL claims are refused; a handler's transaction that has its claim goes on, because it begins as
    /// one that writes.
    ReadOnly {
        time: Duration,
    },
    /// Another server takes over, with all that was committed, and new connections lead to it. The old
    /// ones live on for a time: PostgreSQL's to a server that is frozen, Redis's to one that became a replica.
    FailOver {
        time: Duration,
    },
    /// So many expired rows come into the table each time, for a time: more than the sweepers remove.
    Backlog {
        rows: u64,
        time: Duration,
    },
    CutAll {
        server: usize,
    },
    CutAnswer {
        server: usize,
        request: u64,
    },
    CutRequest {
        server: usize,
        request: u64,
    },
    Delay {
        server: usize,
        by: Duration,
        time: Duration,
    },
    BlackHole {
        server: usize,
        time: Duration,
    },
    Refuse {
        server: usize,
        time: Duration,
    },
}

impl Fault {
    /// Whether what runs meanwhile may have to be run again, where effect and record are not one.
    pub fn harms(self) -> bool {
        !matches!(self, Self::Nothing | Self::Delay { .. } | Self::Backlog { .. })
    }

    fn draw(rng: &mut Rng, engine: Engine) -> Self {
        let server = rng.index(2);
        // Shorter than a lease, or long enough for another server to take over and be done.
        let time = if rng.chance(50) {
            rng.millis(50, 1400)
        } else {
            engine.lease() + rng.millis(100, 1100)
        };
        // Those that a store in a file knows, then those of a server behind a network.
        let kinds = if engine == Engine::Sqlite { 6 } else { 18 };
        match rng.below(kinds) {
            0 => Self::Nothing,
            1 | 2 => Self::KillServer { server },
            3 | 4 => Self::HaltServer { server, time },
            // It forgets by itself.
            5 if engine == Engine::Redis => Self::Nothing,
            5 => Self::Backlog {
                rows: 200 + rng.below(800),
                time,
            },
            6 => Self::HaltStore { time },
            7 => Self::KillStore { time: time / 4 },
            8 => Self::CutAll { server },
            9 | 10 => Self::CutAnswer {
                server,
                request: 1 + rng.below(12),
            },
            11 => Self::CutRequest {
                server,
                request: 1 + rng.below(12),
            },
            12 if rng.chance(50) => Self::Delay {
                server,
                by: rng.millis(1, 15),
                time,
            },
            12 => Self::Refuse { server, time },
            13 => Self::BlackHole { server, time },
            14 | 15 => Self::ReadOnly { time },
            _ => Self::FailOver { time },
        }
    }
}

impl Plan {
    pub fn draw(seed: u64, engine: Engine) -> Self {
        let mut rng = Rng::new(seed);
        let mut operations: Vec<Operation> = Vec::new();
        for number in 0..10 + rng.index(8) {
            let kind = match rng.below(24) {
                0..10 => Kind::Session {
                    workflow: "wkf_kyc_full",
                },
                10 => Kind::Session { workflow: "wkf_flaky" },
                11 if rng.chance(30) => Kind::Session { workflow: "wkf_crash" },
                11..15 => Kind::Screening,
                15..18 => Kind::Status,
                18..20 => Kind::Event,
                _ => Kind::Document,
            };
            let account = rng.pick(&ACCOUNTS);
            // The other account's key is another key.
            let taken: Vec<&String> = operations
                .iter()
                .filter(|other| other.account != account)
                .map(|other| &other.key)
                .filter(|key| !operations.iter().any(|own| own.account == account && own.key == **key))
                .collect();
            let key = if !taken.is_empty() && rng.chance(30) {
                rng.pick(&taken).clone()
            } else {
                format!("key-{number}-{:x}", rng.next())
            };
            let subject = format!("subject_{seed}_{number}");
            operations.push(Operation::new(account, key, kind, subject));
        }
        let mut clients = Vec::new();
        for operation in 0..operations.len() {
            let starts = rng.millis(0, 1500);
            for _ in 0..2 + rng.below(2) {
                clients.push(Client {
                    operation,
                    starts: starts + rng.millis(0, 60),
                    seed: rng.next(),
                });
            }
        }
        let mut faults: Vec<(Duration, Fault)> = (0..1 + rng.below(3))
            .map(|_| (rng.millis(20, 500), Fault::draw(&mut rng, engine)))
            .collect();
        // One other server is there to take over.
        let mut fails_over = false;
        for (_, fault) in &mut faults {
            if matches!(fault, Fault::FailOver { .. }) && std::mem::replace(&mut fails_over, true) {
                *fault = Fault::Nothing;
            }
        }
        let shift = rng.chance(25).then(|| match engine {
            // Its leases are by the clocks of those who use it: with more than a lease between them
            // each would take the other's claims for lapsed all the time.
            Engine::Sqlite => rng.pick(&["+0.4s", "-0.4s"]),
            Engine::Postgres | Engine::Redis => rng.pick(&["+1h", "-1h", "+0.7s", "-0.7s", "-400d"]),
        });
        Self {
            operations,
            clients,
            faults,
            shift,
        }
    }
}

#[test]
fn the_seed_decides() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let plan = |seed| format!("{:?}", Plan::draw(seed, engine));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }
}
