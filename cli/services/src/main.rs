//! `face-id-services`: starts and stops PostgreSQL, RabbitMQ and an S3 server for trying face-id out without containers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use services::postgres::Postgres;
use services::rabbitmq::RabbitMq;
use services::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use tokio::signal::unix::{SignalKind, signal};

/// Real services for face-id as plain processes, on ports that stay the same, with their data in one folder.
#[derive(Parser)]
#[command(name = "face-id-services", version, about, max_term_width = 110)]
struct Cli {
    /// Where their data, logs and ports are kept.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start them in the background, and print the settings with which face-id uses them.
    Up,
    /// Print those settings.
    Env,
    /// Stop them; their data stays.
    Down,
    /// Run them until Ctrl-C.
    Run,
}

const DATABASE: &str = "face_id";
const BUCKET: &str = "face-id";
const START_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    std::fs::create_dir_all(&cli.dir).with_context(|| format!("make {}", cli.dir.display()))?;
    let dir = std::path::absolute(&cli.dir)?;
    match cli.command {
        Command::Up => up(&dir).await,
        Command::Env => print_settings(&dir),
        Command::Down => down(&dir).await,
        Command::Run => run(&dir).await,
    }
}

async fn up(dir: &Path) -> anyhow::Result<()> {
    if running(dir).is_none() {
        let log = std::fs::File::create(dir.join("services.log"))?;
        let _ = std::fs::remove_file(dir.join("ready"));
        // In a session of its own, so that the terminal's end is not its.
        let mut child = std::process::Command::new("setsid")
            .arg(std::env::current_exe()?)
            .args(["--dir".as_ref(), dir.as_os_str(), "run".as_ref()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the services")?;
        let began = std::time::Instant::now();
        while !dir.join("ready").is_file() {
            let log = || std::fs::read_to_string(dir.join("services.log")).unwrap_or_default();
            if child.try_wait()?.is_some_and(|status| !status.success()) {
                bail!("the services did not start:\n{}", log());
            }
            ensure!(began.elapsed() < START_TIMEOUT, "the services did not start in time:\n{}", log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    print_settings(dir)
}

async fn run(dir: &Path) -> anyhow::Result<()> {
    ensure!(running(dir).is_none(), "the services of {} run already", dir.display());
    let mut terminate = signal(SignalKind::terminate())?;
    std::fs::write(dir.join("pid"), std::process::id().to_string())?;
    let ports = Ports::of(dir)?;
    let (folder, postgres_dir, rabbitmq_dir) = (dir.join("s3"), dir.join("postgres"), dir.join("rabbitmq"));
    std::fs::create_dir_all(&folder)?;
    let (postgres, rabbitmq) = tokio::try_join!(
        Postgres::start_on(&postgres_dir, ports.postgres, true),
        RabbitMq::start_on(&rabbitmq_dir, ports.rabbitmq)
    )?;
    let s3 = S3Server::start(&folder, ports.s3).await?;
    let database = postgres.create_database(DATABASE).await?;
    s3.create_bucket(BUCKET).await?;
    let settings = [
        ("FACE_ID_DATABASE__URL", database),
        ("FACE_ID_QUEUE__URL", rabbitmq.url()),
        ("FACE_ID_OBJECTS__BUCKET", BUCKET.to_owned()),
        ("FACE_ID_OBJECTS__ENDPOINT", s3.endpoint()),
        ("FACE_ID_OBJECTS__ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("FACE_ID_OBJECTS__SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
    ];
    let lines: Vec<_> = settings.iter().map(|(name, value)| format!("export {name}='{value}'")).collect();
    std::fs::write(dir.join("env"), lines.join("\n") + "\n")?;
    std::fs::write(dir.join("ready"), "")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    std::fs::remove_file(dir.join("ready"))?;
    tokio::try_join!(postgres.stop(), rabbitmq.stop())?;
    std::fs::remove_file(dir.join("pid"))?;
    Ok(())
}

async fn down(dir: &Path) -> anyhow::Result<()> {
    let Some(pid) = running(dir) else { return Ok(()) };
    kill_process(pid, Signal::TERM)?;
    let began = std::time::Instant::now();
    while running(dir).is_some() {
        ensure!(began.elapsed() < STOP_TIMEOUT, "the services do not stop; their process is {pid:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The process that holds the services of this folder, if there is one.
fn running(dir: &Path) -> Option<Pid> {
    let pid = Pid::from_raw(std::fs::read_to_string(dir.join("pid")).ok()?.trim().parse().ok()?)?;
    test_kill_process(pid).is_ok().then_some(pid)
}

#[expect(clippy::print_stdout, reason = "this is the command's output, to be evaluated by a shell")]
fn print_settings(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("env");
    let settings =
        std::fs::read_to_string(path).context("the services of this folder were never started; run `make services`")?;
    print!("{settings}");
    Ok(())
}

/// Chosen once, so that settings stay valid over restarts.
struct Ports {
    postgres: u16,
    rabbitmq: u16,
    s3: u16,
}

impl Ports {
    fn of(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("ports");
        if !path.is_file() {
            let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
            let ports: Vec<_> =
                listeners.iter().map(|l| Ok(l.local_addr()?.port().to_string())).collect::<std::io::Result<_>>()?;
            std::fs::write(&path, ports.join(" "))?;
        }
        let text = std::fs::read_to_string(&path)?;
        let ports: Vec<u16> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [postgres, rabbitmq, s3] = ports[..] else { bail!("{} holds no three ports; delete it", path.display()) };
        Ok(Self { postgres, rabbitmq, s3 })
    }
}
