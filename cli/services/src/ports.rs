//! Free ports of the loopback address.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("look for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Waits until a server answers `hello` on the port.
pub(crate) async fn wait_for_answer(port: u16, hello: &[u8], patience: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if tokio::time::timeout(Duration::from_secs(5), answers(port, hello)).await.is_ok_and(|a| a.is_ok()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("nothing answered on port {port} within {} s", patience.as_secs())
}

async fn answers(port: u16, hello: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(hello).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(())
}
