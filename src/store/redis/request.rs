//! A command or a script to send.

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisResult, Value};

use super::link::Question;
use super::scripts::{By, Call};

pub(super) enum Request<'a> {
    Script(Call<'a>),
    Command(Cmd),
}

impl Request<'_> {
    pub(super) fn command(&self, by: By) -> Cmd {
        match self {
            Self::Script(call) => call.command(by),
            Self::Command(command) => command.clone(),
        }
    }
}

impl<C: ConnectionLike + Send> Question<C> for Request<'_> {
    type Answer = Value;

    async fn put_to(&self, connection: &mut C) -> RedisResult<Value> {
        match self {
            Self::Script(call) => call.put_to(connection).await,
            Self::Command(command) => command.put_to(connection).await,
        }
    }
}
