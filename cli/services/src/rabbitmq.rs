//! RabbitMQ as a private node, from the distribution's package `rabbitmq-server`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::{Mutex, OnceCell};

use crate::guard::{Guarded, Service, last_lines};
use crate::ports::{Protocol, free_port, wait_for_answer};

/// Where Debian's package puts the scripts that take their whole configuration from the environment.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// Longest wait for the node: 15 s on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// Longest wait for a node that answers to have done all of its start.
const CTL_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for Erlang's name server, which has nothing to load.
const EPMD_TIMEOUT: Duration = Duration::from_secs(30);

/// A running node with a data folder of its own.
pub struct RabbitMq {
    dir: PathBuf,
    port: u16,
    epmd_port: u16,
    variables: Vec<(String, String)>,
    processes: Mutex<Processes>,
}

#[derive(Default)]
struct Processes {
    node: Option<Guarded>,
    /// Erlang's own name server, which a node would start for itself and leave behind.
    epmd: Option<Guarded>,
}

impl RabbitMq {
    /// Starts a node on a free port.
    ///
    /// # Errors
    /// The package is not installed, or the node does not start.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_on(dir, free_port()?).await
    }

    /// The same on a port of the caller's choice.
    ///
    /// # Errors
    /// See [`RabbitMq::start`].
    pub async fn start_on(dir: &Path, port: u16) -> anyhow::Result<Self> {
        ensure!(
            Path::new(SCRIPTS).join("rabbitmq-server").is_file(),
            "RabbitMQ is not installed; run `make setup-services` (or `make test`, which does)"
        );
        let dir = std::path::absolute(dir)?;
        for folder in ["home", "log", "mnesia"] {
            std::fs::create_dir_all(dir.join(folder)).with_context(|| format!("make {}", dir.display()))?;
        }
        // No plugins: the node starts faster, and nothing but AMQP listens.
        std::fs::write(dir.join("enabled_plugins"), "[].\n")?;
        let epmd_port = free_port()?;
        let variables = variables(&dir, port, epmd_port)?;
        let node = Self { dir, port, epmd_port, variables, processes: Mutex::default() };
        node.restart().await?;
        Ok(node)
    }

    /// Its URL, with the user `guest` of every fresh node.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs `rabbitmqctl` on the node. One that has just begun to answer may not have done all of its start yet: it is given
    /// some time for that.
    ///
    /// # Errors
    /// The command fails.
    pub async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let deadline = Instant::now() + CTL_PATIENCE;
        loop {
            let output = Command::new(Path::new(SCRIPTS).join("rabbitmqctl"))
                .args(arguments)
                .envs(self.variables.iter().cloned())
                .output()
                .await
                .context("run rabbitmqctl")?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            let is_starting = said.contains("requires the 'rabbit' app to be running");
            ensure!(is_starting && Instant::now() < deadline, "rabbitmqctl {}: {}", arguments.join(" "), said.trim());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Starts it on its data again, after it was stopped where it runs.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        let log = self.dir.join("rabbitmq.log");
        let variables = &self.variables;
        let mut processes = self.processes.lock().await;
        if processes.epmd.is_none() {
            let command = ["epmd".into(), "-port".into(), self.epmd_port.to_string().into()];
            let log = self.dir.join("epmd.log");
            let service = Service { command: &command, variables, log: &log, stop_signal: "TERM" };
            let mut epmd = Guarded::start(&service).await?;
            // A node that finds none starts one of its own, which would stay.
            let up = epmd.until(wait_for_answer(self.epmd_port, Protocol::Epmd, EPMD_TIMEOUT)).await;
            up.with_context(|| format!("start epmd; its log {} ends:{}", log.display(), last_lines(&log)))?;
            processes.epmd = Some(epmd);
        }
        let command = [Path::new(SCRIPTS).join("rabbitmq-server").into()];
        let service = Service { command: &command, variables, log: &log, stop_signal: "TERM" };
        let mut node = Guarded::start(&service).await?;
        let up = node.until(wait_for_answer(self.port, Protocol::Amqp, START_TIMEOUT)).await;
        up.with_context(|| {
            format!("start RabbitMQ on port {}; its log {} ends:{}", self.port, log.display(), last_lines(&log))
        })?;
        processes.node = Some(node);
        Ok(())
    }

    /// Stops the node in order.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.end(Signal::TERM).await
    }

    /// SIGKILL, as a crash of its machine would.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.end(Signal::KILL).await
    }

    /// Kills it, throws its data away and starts it anew, on the same port.
    ///
    /// # Errors
    /// It does not start.
    pub async fn wipe(&self) -> anyhow::Result<()> {
        self.kill().await?;
        std::fs::remove_dir_all(self.dir.join("mnesia")).context("delete the broker's data")?;
        std::fs::create_dir_all(self.dir.join("mnesia"))?;
        self.restart().await
    }

    /// Freezes it: connections stay open and nothing answers, until [`RabbitMq::resume`].
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.processes.lock().await.node.as_ref().context("RabbitMQ does not run")?.pause()
    }

    /// Goes on after [`RabbitMq::pause`].
    ///
    /// # Errors
    /// It does not run.
    pub async fn resume(&self) -> anyhow::Result<()> {
        self.processes.lock().await.node.as_ref().context("RabbitMQ does not run")?.resume()
    }

    /// Raises a memory alarm, or ends it: while it lasts, the broker reads nothing from publishers.
    ///
    /// # Errors
    /// The command fails.
    pub async fn set_memory_alarm(&self, alarm: bool) -> anyhow::Result<()> {
        self.ctl(&["set_vm_memory_high_watermark", if alarm { "0" } else { "0.4" }]).await.map(drop)
    }

    async fn end(&self, signal: Signal) -> anyhow::Result<()> {
        match self.processes.lock().await.node.take() {
            Some(node) => node.end(signal).await.context("stop RabbitMQ"),
            None => Ok(()),
        }
    }
}

/// One node for all tests of a process; it ends with the process. A test that ends or pauses it needs one of its own:
/// others use this one, and its process belongs to the runtime of whichever test came first.
///
/// # Panics
/// It does not start.
pub async fn shared() -> &'static RabbitMq {
    static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let dir = crate::process_folder("rabbitmq");
            RabbitMq::start(&dir).await.expect("start RabbitMQ for the tests of this process")
        })
        .await
}

/// Everything a node would otherwise share with others of the machine.
fn variables(dir: &Path, port: u16, epmd_port: u16) -> anyhow::Result<Vec<(String, String)>> {
    let inside = |path: &str| dir.join(path).display().to_string();
    let pairs = [
        ("HOME", inside("home")),
        // Its data belongs to this name. Every node has a name server of its own, so that two can have the same.
        ("RABBITMQ_NODENAME", "face-id@localhost".to_owned()),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_NODE_PORT", port.to_string()),
        ("RABBITMQ_DIST_PORT", free_port()?.to_string()),
        ("ERL_EPMD_PORT", epmd_port.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_MNESIA_BASE", inside("mnesia")),
        ("RABBITMQ_MNESIA_DIR", inside("mnesia/node")),
        ("RABBITMQ_QUORUM_DIR", inside("mnesia/node/quorum")),
        ("RABBITMQ_STREAM_DIR", inside("mnesia/node/stream")),
        ("RABBITMQ_FEATURE_FLAGS_FILE", inside("mnesia/feature_flags")),
        ("RABBITMQ_LOG_BASE", inside("log")),
        ("RABBITMQ_PID_FILE", inside("pid")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", inside("enabled_plugins")),
        ("RABBITMQ_PLUGINS_EXPAND_DIR", inside("plugins")),
        // The machine's own settings are for the machine's own broker.
        ("RABBITMQ_CONF_ENV_FILE", inside("none")),
        ("RABBITMQ_CONFIG_FILE", inside("none")),
        ("RABBITMQ_CONFIG_FILES", inside("none")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", inside("none")),
        // Idle schedulers sleep instead of spinning beside what is tested.
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none".to_owned()),
    ];
    Ok(pairs.map(|(name, value)| (name.to_owned(), value)).to_vec())
}
