//! Receivers that speak TLS, with certificates of the test's own authority and of one that nobody trusts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use super::{SETTINGS, make_endpoint, path, until_all_are};
use crate::server::{Server, Site, on_both, read};

on_both!(certificates_are_checked);

async fn certificates_are_checked(site: Site) {
    let folder = tempfile::tempdir().unwrap();
    let (trusted, other) = (Authority::make(folder.path(), "trusted"), Authority::make(folder.path(), "other"));
    let certificates = trusted.certificate.to_str().unwrap();
    let settings =
        [&SETTINGS[..], &[("SSL_CERT_FILE", certificates), ("FACE_ID_WEBHOOKS__SCHEDULE_S", "0.1")]].concat();
    let server = Server::start_with(&site, &settings).await;
    let good = receiver(&trusted, "localhost").await;
    let cases = [
        (format!("https://localhost:{good}/"), "delivered"),
        // What it proves is another name.
        (format!("https://127.0.0.1:{good}/"), "failed"),
        (format!("https://localhost:{}/", receiver(&other, "localhost").await), "failed"),
    ];
    for (url, state) in cases {
        let endpoint = make_endpoint(&server, json!({ "url": url })).await;
        read(server.request(Method::POST, &format!("{}/test", path(&endpoint)))).await;
        let told = until_all_are(&server, &endpoint, state, 1).await;
        let error = &told[0]["attempts"][0]["error"];
        let is_wrong = error.as_str().is_some_and(|error| error.starts_with("tls_failed"));
        assert_eq!(is_wrong, state == "failed", "{url}: {error}");
    }
    server.stop().await;
}

/// Who vouches for receivers.
struct Authority {
    folder: PathBuf,
    certificate: PathBuf,
}

impl Authority {
    fn make(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        let subject = format!("/CN={name}");
        openssl(
            &folder,
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                &subject,
                "-keyout",
                "authority.key",
                "-out",
                "authority.pem",
            ],
        );
        Self { certificate: folder.join("authority.pem"), folder }
    }

    /// A certificate for a host, and its key, as PEM files.
    fn vouch(&self, host: &str) -> (PathBuf, PathBuf) {
        let name = format!("subjectAltName=DNS:{host}");
        openssl(
            &self.folder,
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=receiver",
                "-addext",
                &name,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-CA",
                "authority.pem",
                "-CAkey",
                "authority.key",
                "-keyout",
                "host.key",
                "-out",
                "host.pem",
            ],
        );
        (self.folder.join("host.pem"), self.folder.join("host.key"))
    }
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Answers everybody with 204, over TLS; its port.
async fn receiver(authority: &Authority, host: &str) -> u16 {
    let (certificate, key) = authority.vouch(host);
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with the test's runtime.
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                let _ = socket.read(&mut [0; 16 * 1024]).await;
                let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                let _ = socket.shutdown().await;
            });
        }
    });
    port
}
