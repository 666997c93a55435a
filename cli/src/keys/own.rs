//! A key that a command makes for itself, for a server that it started or whose data folder it can write to.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::access::token::NewToken;
use shared::access::{Reach, Scope};
use shared::config::{Config, Secret};
use shared::db::api_keys::changes::{self, NewApiKey};
use shared::db::api_keys::lookup;
use shared::ids::ApiKeyId;

use super::database;

/// One that a killed command leaves behind ends by itself; nobody has its token any more. As long as a watch may run.
const LIFE: Duration = Duration::from_secs(366 * 24 * 3600);

pub(crate) struct OwnKey {
    id: ApiKeyId,
    token: Secret,
    config: Box<Config>,
}

impl OwnKey {
    /// Makes one.
    pub(crate) async fn make(config: &Config) -> anyhow::Result<Self> {
        // Boxed, as with the others: whoever waits for a server would carry all of this along.
        Box::pin(Self::made(config)).await
    }

    async fn made(config: &Config) -> anyhow::Result<Self> {
        let opened = database::open(config).await?;
        let token = NewToken::make()?;
        let new = NewApiKey {
            name: format!("a command, process {}", std::process::id()),
            scopes: BTreeSet::from([Scope::Admin]),
            reach: Reach::All,
            limits: changes::UNLIMITED,
            expires_in: Some(LIFE),
            of_command: true,
        };
        let made = changes::create(&opened.db, &token, new).await;
        opened.close().await?;
        Ok(Self { id: made?.id, token: token.token, config: Box::new(config.clone()) })
    }

    /// Makes one where the server asks for any.
    pub(crate) async fn where_needed(config: &Config) -> anyhow::Result<Option<Self>> {
        let opened = Box::pin(database::open(config)).await?;
        let is_needed = lookup::any(&opened.db).await;
        opened.close().await?;
        if is_needed? { Self::make(config).await.map(Some) } else { Ok(None) }
    }

    pub(crate) fn token(&self) -> &Secret {
        &self.token
    }

    /// Deletes it.
    pub(crate) async fn forget(self) -> anyhow::Result<()> {
        let opened = Box::pin(database::open(&self.config)).await?;
        let forgotten = changes::forget(&opened.db, self.id).await;
        opened.close().await?;
        Ok(forgotten?)
    }
}
