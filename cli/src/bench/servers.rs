//! The servers of services mode, as processes of this machine: those that listen where the settings point.

use std::collections::HashSet;
use std::time::Duration;

use shared::config::Config;

use super::usage;

/// The state of a socket that listens, in `/proc/net/tcp` (`TCP_LISTEN` of Linux's `tcp_states.h`).
const LISTENS: &str = "0A";

/// Each server's name and the process that listens for it.
pub(super) struct Servers(Vec<(&'static str, u32)>);

impl Servers {
    /// The servers that the settings name; none unless all of them are processes of this machine.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let urls = [
            ("PostgreSQL", config.database.url()),
            ("RabbitMQ", config.queue.url()),
            ("S3", config.objects.endpoint()),
        ];
        let found = urls.map(|(name, url)| Some((name, listener(local_port(url?)?)?)));
        found.into_iter().collect::<Option<_>>().map(Self)
    }

    /// Processor time that each has used so far, with the processes that it started.
    pub(super) fn cpu(&self) -> Vec<(&'static str, Duration)> {
        // One process may hold the servers and be one of them itself.
        let all: Vec<u32> = self.0.iter().map(|(_, pid)| *pid).collect();
        self.0.iter().map(|(name, pid)| (*name, usage::tree_cpu(*pid, &all))).collect()
    }
}

/// The port of an address on this machine.
fn local_port(url: &str) -> Option<u16> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let (host, port) = authority.rsplit('@').next()?.rsplit_once(':')?;
    ["127.0.0.1", "localhost", "[::1]"].contains(&host).then(|| port.parse().ok())?
}

/// The process that listens on that port; of several that share the socket, the oldest.
fn listener(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let sockets: HashSet<String> =
        tables.iter().flat_map(|table| table.lines()).filter_map(|l| socket(l, port)).collect();
    usage::processes().filter(|pid| holds(*pid, &sockets)).min()
}

/// What a process that holds the socket of this line of `/proc/net/tcp` has among its files, if it listens on the port.
fn socket(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let is_it = fields.get(1)?.ends_with(&format!(":{port:04X}")) && *fields.get(3)? == LISTENS;
    is_it.then(|| Some(format!("socket:[{}]", fields.get(9)?)))?
}

fn holds(pid: u32, sockets: &HashSet<String>) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|to| to.to_str().is_some_and(|s| sockets.contains(s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listener(socket.local_addr().unwrap().port()), Some(std::process::id()));
    }

    #[test]
    fn ports_of_this_machine_only() {
        assert_eq!(local_port("postgres://user:p@ss@127.0.0.1:5432/database?a=b"), Some(5432));
        assert_eq!(local_port("http://localhost:9000"), Some(9000));
        assert_eq!(local_port("amqp://broker:5672/%2f"), None);
    }
}
