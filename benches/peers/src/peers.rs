//! The peers. Each is set up as its documentation says, so that it keeps responses for a day and
//! does not give one caller's response to another.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use http::header::AUTHORIZATION;
use ruts::store::moka::MokaStore;
use ruts::{CookieOptions, SessionLayer};
use tower_cookies::CookieManagerLayer;

use crate::{by_hand, memory_store};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One way to guard a router. It is called inside a runtime, because a peer's store may spawn a
/// task.
pub struct Peer {
    pub name: String,
    pub guard: fn(Router) -> Router,
    /// The peer with only the settings that it cannot do without.
    pub with_defaults: fn(Router) -> Router,
}

/// All peers. This crate is the first.
pub fn all() -> Vec<Peer> {
    let peer = |name, guard, with_defaults| Peer {
        name,
        guard,
        with_defaults,
    };
    vec![
        peer("this crate".to_owned(), ours, ours),
        peer(named("idempotent"), idempotent_scoped, idempotent),
        peer(named("axum-idempotent"), axum_idempotent, axum_idempotent),
        peer(named("cratestack-axum"), cratestack, cratestack),
        peer("by hand".to_owned(), by_hand::guard, by_hand::guard),
    ]
}

fn ours(router: Router) -> Router {
    use tower_idempotency::{IdempotencyLayer, MemoryStore};
    router.layer(IdempotencyLayer::new(MemoryStore::new()))
}

fn idempotent_layer() -> idempotent::middleware::IdempotencyLayer<idempotent::memory::MemoryStore> {
    let store = idempotent::memory::MemoryStore::builder()
        .try_build()
        .expect("a runtime");
    idempotent::middleware::IdempotencyLayer::new(store)
}

fn idempotent(router: Router) -> Router {
    router.layer(idempotent_layer())
}

/// "A service with more than one client needs a scope."
fn idempotent_scoped(router: Router) -> Router {
    router.layer(idempotent_layer().scope(|head| {
        let credential = head.headers.get(AUTHORIZATION)?;
        credential.to_str().ok().map(str::to_owned)
    }))
}

/// The mode that takes the client's key, within the sessions that it needs.
fn axum_idempotent(router: Router) -> Router {
    let options = IdempotentOptions::default()
        .use_idempotency_key_header(Some("Idempotency-Key"), false)
        .expire_after(DAY.as_secs().cast_signed());
    let cookie = CookieOptions::build().name("session");
    router
        .layer(IdempotentLayer::<MokaStore>::new(options))
        .layer(SessionLayer::new(Arc::new(MokaStore::builder().build())).with_cookie_options(cookie))
        .layer(CookieManagerLayer::new())
}

fn cratestack(router: Router) -> Router {
    let store = Arc::new(memory_store::MemoryStore::default());
    router.layer(cratestack_axum::idempotency::IdempotencyLayer::new(store, DAY))
}

/// The name and the version that this program was built with.
fn named(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let version = lock
        .split("[[package]]")
        .find_map(|package| {
            package
                .trim_start()
                .strip_prefix(&format!("name = \"{name}\"\nversion = \""))
        })
        .and_then(|rest| rest.split('"').next());
    format!("{name} {}", version.expect("a dependency of this program"))
}
