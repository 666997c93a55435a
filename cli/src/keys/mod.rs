//! `face-id keys`: API keys, beside the database. Whoever can write there needs none.

mod database;
mod own;
mod report;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use api::routes::keys::{KeyView, MadeKeyView};
use shared::access::token::NewToken;
use shared::access::{Grant, Reach, Scope};
use shared::config::Config;
use shared::db::api_keys::changes::{self, LastAdmin, NewApiKey, Revoked, Rotated};
use shared::db::api_keys::{self, ApiKey, KeyLimits};
use shared::db::{Db, collections};
use shared::ids::{ApiKeyId, CollectionId};
use uuid::Uuid;

pub(crate) use self::own::OwnKey;
use self::report::Form;

/// Keys of one page.
const PAGE: u64 = 500;

#[derive(clap::Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print its token, this once.
    Create(CreateArgs),
    /// List all keys.
    List(ListArgs),
    /// Make a key like another one, which stays good for a while.
    Rotate(RotateArgs),
    /// End a key for good. Servers hear of it within two seconds.
    Revoke(RevokeArgs),
}

#[derive(clap::Args)]
struct Place {
    /// The data folder of `face-id serve`, whether that runs or not. With services, keys are in their database.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Longest life of a key, and longest grace, as over HTTP: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A time such as 90d, of ten years at most.
fn lifetime(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time <= LONGEST { Ok(time) } else { Err("is too long; give 10y at most".to_owned()) }
}

#[derive(clap::Args)]
pub(crate) struct CreateArgs {
    /// What the key is for.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// What it may do (repeatable): read, identify, write (with both of these), admin (everything).
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<Scope>,
    /// A collection that it holds for, by name or id (repeatable); all where absent.
    #[arg(long = "collection", value_name = "NAME")]
    collections: Vec<String>,
    /// How long it is good for, such as 90d; until it is revoked where absent.
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires: Option<Duration>,
    /// Requests in a minute; 0 is no limit, absent the one in the settings. So with the others.
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Single jobs that have not ended.
    #[arg(long, value_name = "N")]
    jobs_in_flight: Option<u32>,
    /// Pictures in a day (UTC).
    #[arg(long, value_name = "N")]
    images_per_day: Option<u32>,
    /// Print the token alone, for a script.
    #[arg(long, conflicts_with = "json")]
    token: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
pub(crate) struct RotateArgs {
    /// The key, by its id or prefix.
    #[arg(value_name = "KEY")]
    key: String,
    /// How long the old token stays good.
    #[arg(long, value_name = "TIME", value_parser = lifetime, default_value = "24h")]
    grace: Duration,
    /// Print the new token alone, for a script.
    #[arg(long, conflicts_with = "json")]
    token: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
pub(crate) struct RevokeArgs {
    /// The key, by its id or prefix.
    #[arg(value_name = "KEY")]
    key: String,
    #[command(flatten)]
    place: Place,
}

pub(crate) async fn run(mut config: Config, command: KeysCommand) -> anyhow::Result<()> {
    let place = match &command {
        KeysCommand::Create(CreateArgs { place, .. })
        | KeysCommand::List(ListArgs { place })
        | KeysCommand::Rotate(RotateArgs { place, .. })
        | KeysCommand::Revoke(RevokeArgs { place, .. }) => place,
    };
    if let Some(data_dir) = &place.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    let json = place.json;
    let form = match &command {
        KeysCommand::Create(CreateArgs { token: true, .. }) | KeysCommand::Rotate(RotateArgs { token: true, .. }) => {
            Form::Token
        }
        _ if json => Form::Json,
        _ => Form::Table,
    };
    let opened = if matches!(command, KeysCommand::Create(_)) {
        database::open_or_make(&config).await?
    } else {
        database::open(&config).await?
    };
    let db = &opened.db;
    let done = match command {
        KeysCommand::Create(args) => create(db, args).await.map(|made| report::made(&made, form)),
        KeysCommand::List(_) => list(db).await.map(|keys| report::listed(&keys, json)),
        KeysCommand::Rotate(args) => rotate(db, &args).await.map(|made| report::made(&made, form)),
        KeysCommand::Revoke(args) => revoke(db, &args.key).await.map(|key| report::revoked(key, json)),
    };
    opened.close().await?;
    done
}

async fn create(db: &Db, args: CreateArgs) -> anyhow::Result<MadeKeyView> {
    anyhow::ensure!(!args.name.trim().is_empty(), "--name must say what the key is for");
    let limits = KeyLimits {
        requests_per_minute: args.requests_per_minute,
        jobs_in_flight: args.jobs_in_flight,
        images_per_day: args.images_per_day,
    };
    let reach = reach(db, &args.collections).await?;
    let scopes = args.scopes.into_iter().collect();
    let new = NewApiKey { name: args.name, scopes, reach, limits, expires_in: args.expires, of_command: false };
    let token = NewToken::make()?;
    let key = changes::create(db, &token, new).await.context("make the key")?;
    Ok(MadeKeyView::new(key, &token))
}

async fn reach(db: &Db, named: &[String]) -> anyhow::Result<Reach> {
    if named.is_empty() {
        return Ok(Reach::All);
    }
    let mut found = BTreeSet::new();
    for name in named {
        let collection = match name.parse::<Uuid>() {
            Ok(id) => collections::find(&db.read, &Grant::everything(), CollectionId(id)).await?,
            Err(_) => collections::find_by_name(&db.read, &Grant::everything(), name).await?,
        };
        found.insert(collection.with_context(|| format!("there is no collection {name}"))?.id);
    }
    Ok(Reach::Only(found))
}

async fn list(db: &Db) -> anyhow::Result<Vec<KeyView>> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page: Vec<ApiKey> = api_keys::list(db, &Grant::everything(), after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(keys) };
        after = Some(last.id);
        keys.extend(page.into_iter().map(KeyView::from));
    }
}

async fn rotate(db: &Db, args: &RotateArgs) -> anyhow::Result<MadeKeyView> {
    let id = find(db, &args.key).await?;
    let token = NewToken::make()?;
    match changes::rotate(db, &Grant::everything(), id, &token, args.grace).await? {
        Rotated::Into(successor) => Ok(MadeKeyView::new(*successor, &token)),
        Rotated::Before(successor) => anyhow::bail!("the key was rotated into {successor} before; rotate that one"),
        Rotated::NotActive => anyhow::bail!("the key is expired or revoked; make a new one"),
        Rotated::NotFound => anyhow::bail!("the key has just gone"),
    }
}

async fn revoke(db: &Db, named: &str) -> anyhow::Result<ApiKeyId> {
    let id = find(db, named).await?;
    match changes::revoke(db, &Grant::everything(), id, LastAdmin::MayGo).await? {
        Revoked::Done => Ok(id),
        Revoked::LastAdmin | Revoked::NotFound => anyhow::bail!("the key has just gone"),
    }
}

async fn find(db: &Db, named: &str) -> anyhow::Result<ApiKeyId> {
    let found = match named.parse() {
        Ok(id) => api_keys::find(db, &Grant::everything(), id).await?,
        Err(_) => api_keys::find_by_prefix(db, named).await?,
    };
    Ok(found.with_context(|| format!("there is no key {named}; `face-id keys list` shows ids and prefixes"))?.id)
}
