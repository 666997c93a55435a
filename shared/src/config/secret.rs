//! Settings that must never be shown: they print, serialise and log as asterisks.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What stands for a hidden text.
const HIDDEN: &str = "***";

/// A secret text.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// A URL that may hold a password; shown without it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl Secret {
    /// The secret itself, for whoever has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> &str {
        if self.0.is_empty() { "" } else { HIDDEN }
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl SecretUrl {
    /// The URL with its password; `None` where the setting is empty.
    pub fn expose(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|url| !url.is_empty())
    }

    fn shown(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return if self.0.is_empty() { String::new() } else { HIDDEN.to_owned() };
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let Some((user, host)) = authority.rsplit_once('@') else { return format!("{scheme}://{authority}{path}") };
        let user = user.split(':').next().unwrap_or_default();
        format!("{scheme}://{user}:{HIDDEN}@{host}{path}")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_what_is_secret() {
        let url = |text: &str| format!("{:?}", SecretUrl(text.to_owned()));
        assert_eq!(url("postgres://me:pw@db:5432/face_id?password=x"), "postgres://me:***@db:5432/face_id");
        assert_eq!(url("amqp://me:p@w@mq/%2f"), "amqp://me:***@mq/%2f");
        assert_eq!(url("postgres://db/face_id"), "postgres://db/face_id");
        assert_eq!(url("password"), "***");
        assert_eq!(url(""), "");
        assert_eq!(format!("{:?}", Secret("key".to_owned())), "***");
        assert_eq!(format!("{:?}", Secret::default()), "");
    }
}
