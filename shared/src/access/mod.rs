//! Who may do what: the scopes of API keys, the collections that they hold for, and their limits.
//!
//! A [`Grant`] is what a caller was given. Every query that a handler begins with takes one, so that a read that nobody
//! narrowed does not compile.

pub mod token;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{ApiKeyId, CollectionId};

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at everything in its collections.
    Read,
    /// Upload pictures, identify and verify, and look at the jobs that it made itself.
    Identify,
    /// Change persons, faces and clusters; enroll, index, import. Includes `read` and `identify`.
    Write,
    /// Make, change and delete collections, export them, and manage keys. Includes all others.
    Admin,
}

impl Scope {
    /// All of them, the smallest first.
    pub const ALL: [Self; 4] = [Self::Read, Self::Identify, Self::Write, Self::Admin];

    /// The name used in requests, rows and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Identify => "identify",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// Whether whoever has this scope may do what `other` allows.
    pub fn includes(self, other: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Write => other != Self::Admin,
            Self::Read | Self::Identify => self == other,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No scope has that name.
#[derive(Debug, thiserror::Error)]
#[error("there is no scope {0}: it is one of read, identify, write and admin")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

/// The collections that a grant holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All, those too that are made later.
    All,
    /// Just these; none where they are all gone.
    Only(BTreeSet<CollectionId>),
}

impl Reach {
    /// Whether the collection is one of them.
    pub fn holds(&self, collection: CollectionId) -> bool {
        match self {
            Self::All => true,
            Self::Only(collections) => collections.contains(&collection),
        }
    }
}

/// How much of something a key may take; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests in a minute of the database's clock.
    pub requests_per_minute: u32,
    /// Single jobs that have not ended.
    pub jobs_in_flight: u32,
    /// Pictures of single jobs and of batches in a day, UTC.
    pub images_per_day: u32,
}

/// What a caller may do, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    key: Option<GrantedKey>,
    scopes: BTreeSet<Scope>,
    reach: Reach,
    limits: Limits,
}

/// The key that a grant comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedKey {
    /// The key itself.
    pub id: ApiKeyId,
    /// The first of the keys of which each was rotated into the next: what one of them made is the others' own, and they
    /// share their limits.
    pub line: ApiKeyId,
}

impl Grant {
    /// All that there is, for nobody in particular: what workers have, a command on its own database, and whoever calls a
    /// server that is open. A handler takes its caller's grant.
    pub fn everything() -> Self {
        Self { key: None, scopes: BTreeSet::from([Scope::Admin]), reach: Reach::All, limits: Limits::default() }
    }

    /// What a key gives.
    pub fn of_key(key: GrantedKey, scopes: impl IntoIterator<Item = Scope>, reach: Reach, limits: Limits) -> Self {
        Self { key: Some(key), scopes: scopes.into_iter().collect(), reach, limits }
    }

    /// Whether it allows what the scope stands for.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|own| own.includes(scope))
    }

    /// The collections that it holds for.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The key that it comes from.
    pub fn key(&self) -> Option<GrantedKey> {
        self.key
    }

    /// Whose the jobs are that are made with it: the first of the key's line.
    pub fn owner(&self) -> Option<ApiKeyId> {
        self.key.map(|key| key.line)
    }

    /// How much it may take.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(scopes: &[Scope], reach: Reach) -> Grant {
        let key = GrantedKey { id: ApiKeyId::new(), line: ApiKeyId::new() };
        Grant::of_key(key, scopes.iter().copied(), reach, Limits::default())
    }

    #[test]
    fn scopes_include_others() {
        let included = |own: &[Scope]| {
            let grant = grant(own, Reach::All);
            Scope::ALL.into_iter().filter(|scope| grant.has(*scope)).collect::<Vec<_>>()
        };
        assert_eq!(included(&[]), []);
        assert_eq!(included(&[Scope::Read]), [Scope::Read]);
        assert_eq!(included(&[Scope::Identify]), [Scope::Identify]);
        assert_eq!(included(&[Scope::Write]), [Scope::Read, Scope::Identify, Scope::Write]);
        assert_eq!(included(&[Scope::Admin]), Scope::ALL);
        assert_eq!(included(&[Scope::Read, Scope::Identify]), [Scope::Read, Scope::Identify]);
    }

    #[test]
    fn scopes_have_names() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse::<Scope>().unwrap(), scope);
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }
        assert!("root".parse::<Scope>().unwrap_err().to_string().contains("read, identify, write and admin"));
    }

    #[test]
    fn a_key_whose_collections_are_gone_reaches_none() {
        let (one, other) = (CollectionId::new(), CollectionId::new());
        assert!(!Reach::Only(BTreeSet::new()).holds(one));
        let only = Reach::Only(BTreeSet::from([one]));
        assert!(only.holds(one) && !only.holds(other) && Reach::All.holds(other));
    }
}
