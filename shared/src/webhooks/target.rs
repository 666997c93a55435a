//! A URL that messages may be sent to.

use url::{Host, Url};

use super::address::AddressPolicy;
use crate::config::WebhooksConfig;

/// Longest URL in bytes.
const MAX_URL: usize = 2048;

/// Where messages go: a URL that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    url: Url,
}

/// Why a URL is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It cannot be read, or has a part that a webhook's URL must not have.
    #[error("{0}")]
    Malformed(String),
    /// Its host is an address that is not dialled.
    #[error(
        "names the address {0}, which is not one of the public internet: the operator has to allow its network \
         (webhooks.allowed_networks)"
    )]
    Refused(std::net::IpAddr),
}

impl Target {
    /// Reads and checks a URL. Where its host is a name, the addresses behind it are checked when they are dialled.
    ///
    /// Addresses are read as every browser does: `0x7f.1` and `2130706433` are `127.0.0.1`, and refused like it.
    ///
    /// # Errors
    /// It is not accepted.
    pub fn parse(text: &str, settings: &WebhooksConfig) -> Result<Self, TargetError> {
        let malformed = |why: &str| Err(TargetError::Malformed(why.to_owned()));
        if text.len() > MAX_URL {
            return malformed("must be at most 2048 bytes");
        }
        let url = Url::parse(text).map_err(|e| TargetError::Malformed(format!("is no URL: {e}")))?;
        match url.scheme() {
            "https" => {}
            "http" if settings.allow_http => {}
            "http" => return malformed("must begin with https:// (the operator may allow http: webhooks.allow_http)"),
            _ => return malformed("must begin with https://"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return malformed("must hold no user or password: messages are signed");
        }
        if url.fragment().is_some() {
            return malformed("must hold no fragment (#): it would not be sent");
        }
        if url.port() == Some(0) {
            return malformed("must not name port 0");
        }
        let target = Self { url };
        target.check_literal(&settings.address_policy())?;
        Ok(target)
    }

    /// Refuses a host that is an address which is not dialled.
    fn check_literal(&self, policy: &AddressPolicy) -> Result<(), TargetError> {
        match self.address().filter(|address| !policy.allows(*address)) {
            Some(address) => Err(TargetError::Refused(address)),
            None if self.url.host().is_none() => Err(TargetError::Malformed("must name a host".to_owned())),
            None => Ok(()),
        }
    }

    /// The host, where it is an address and no name.
    pub fn address(&self) -> Option<std::net::IpAddr> {
        match self.url.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }

    /// The host as TLS and name servers want it.
    pub fn host(&self) -> String {
        match self.url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string(),
            None => String::new(),
        }
    }

    /// The host, and the port where it is not the usual one: the `Host` header.
    pub fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(443)
    }

    /// Whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// What the request line says: the path and the query.
    pub fn path(&self) -> String {
        let path = self.url.path();
        self.url.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
    }

    /// The URL in its canonical spelling.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::Config;

    fn settings(pairs: &[(&str, &str)]) -> WebhooksConfig {
        let variables: HashMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::from_sources(None, variables).unwrap().webhooks
    }

    #[test]
    fn every_spelling_of_an_inner_address_is_refused() {
        let settings = settings(&[]);
        let refused = [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://0x7f.0.0.1/",
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://2130706433/",
            "https://017700000001/",
            "https://0/",
            "https://127.0.0.1.:8443/",
            "https://%31%32%37.0.0.1/",
            "https://１２７.0.0.1/",
            "https://127。0。0。1/",
            "https://169.254.169.254/latest",
            "https://0xa9fea9fe/",
            "https://2852039166/",
            "https://10.0.0.1:9/",
            "https://192.168.1.1/",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://[::127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[fd00:ec2::254]/",
            "https://[fe80::1]/",
            "https://[2002:7f00:1::]/",
            "https:\\\\127.0.0.1\\x",
            "https:127.0.0.1",
            "https:///127.0.0.1/",
        ];
        for text in refused {
            let error = Target::parse(text, &settings).map(|t| t.url.to_string()).unwrap_err();
            assert!(matches!(error, TargetError::Refused(_)), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_webhook_url_must_not_have() {
        let settings = settings(&[]);
        let malformed = [
            "",
            "example.com",
            "/path",
            "http://example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "gopher://example.com/",
            "https://",
            "https://user@example.com/",
            "https://user:pw@example.com/",
            "https://example.com@127.0.0.1/",
            "https://example.com/#x",
            "https://example.com:0/",
            "https://example.com:99999/",
            "https://[::1/",
            "https://[fe80::1%25eth0]/",
            "https://256.256.256.256/",
            "https://exa mple.com/",
            "https://example.com\0.net/",
        ];
        for text in malformed {
            let error = Target::parse(text, &settings).map(|t| t.url.to_string()).unwrap_err();
            assert!(matches!(error, TargetError::Malformed(_)), "{text}: {error}");
        }
        assert!(Target::parse(&format!("https://example.com/{}", "x".repeat(2048)), &settings).is_err());
    }

    #[test]
    fn public_urls_are_taken_apart() {
        let target = Target::parse("https://Example.com:8443/a/b?c=d", &settings(&[])).unwrap();
        assert_eq!(
            (target.host(), target.port(), target.path()),
            ("example.com".to_owned(), 8443, "/a/b?c=d".to_owned())
        );
        assert_eq!((target.authority(), target.is_https()), ("example.com:8443".to_owned(), true));
        let target = Target::parse("https://[2606:4700:4700::1111]", &settings(&[])).unwrap();
        assert_eq!((target.host(), target.port()), ("2606:4700:4700::1111".to_owned(), 443));
        assert_eq!((target.authority(), target.path()), ("[2606:4700:4700::1111]".to_owned(), "/".to_owned()));
    }

    #[test]
    fn an_operator_may_allow_more() {
        let allowed = [("FACE_ID_WEBHOOKS__ALLOW_HTTP", "true"), ("FACE_ID_WEBHOOKS__ALLOWED_NETWORKS", "127.0.0.0/8")];
        assert!(Target::parse("http://127.0.0.1:9/x", &settings(&allowed)).is_ok());
        assert!(Target::parse("http://10.0.0.1/", &settings(&allowed)).is_err());
    }
}
