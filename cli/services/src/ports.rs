//! Free ports of the loopback address, and whether a server answers there.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Below Linux's usual range for outgoing connections (32768 and up): while a server is down, a client that tries again
/// and again could otherwise be given the server's own port, and keep it.
const RANGE: Range<u32> = 15_000..32_000;

/// What a server is asked, to see that it answers.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// PostgreSQL: a request for TLS, which is answered with one byte whoever asks.
    Postgres,
    /// AMQP 0-9-1: the header that a client begins with.
    Amqp,
    /// Erlang's name server: a request for all names.
    Epmd,
    /// HTTP/1.1: a request without credentials.
    Http,
}

impl Protocol {
    fn hello(self) -> &'static [u8] {
        match self {
            Self::Postgres => &[0, 0, 0, 8, 4, 210, 22, 47],
            Self::Amqp => b"AMQP\x00\x00\x09\x01",
            Self::Epmd => &[0, 1, b'n'],
            Self::Http => b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        }
    }
}

/// A port that nobody listens on at this moment, another one at every call of a process.
///
/// # Errors
/// All are taken.
pub fn free_port() -> anyhow::Result<u16> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Processes that start one after the other begin far apart.
    let begin = std::process::id().wrapping_mul(7919);
    for _ in RANGE {
        let offset = begin.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed)) % (RANGE.end - RANGE.start);
        let port = u16::try_from(RANGE.start + offset)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of 127.0.0.1 from {} to {} is free", RANGE.start, RANGE.end)
}

/// Waits until a server answers on the port.
pub(crate) async fn wait_for_answer(port: u16, protocol: Protocol, patience: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if answers(port, protocol).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("nothing answered on port {port} within {} s", patience.as_secs())
}

/// Asks the server on a port of 127.0.0.1.
///
/// # Errors
/// There is none, or it says nothing within 5 s.
pub async fn answers(port: u16, protocol: Protocol) -> anyhow::Result<()> {
    let dialogue = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(protocol.hello()).await?;
        stream.read_exact(&mut [0]).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), dialogue).await;
    answer.context("it is silent")?.map(drop).context("it does not answer")
}
