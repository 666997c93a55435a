//! `face-id-services`: starts and stops PostgreSQL, RabbitMQ and an S3 server for trying face-id out without containers.

mod key;
mod supervisor;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use rustix::process::{Signal, kill_process};

use self::supervisor::Files;

/// Real services for face-id as plain processes, on ports that stay the same, with their data in one folder.
#[derive(Parser)]
#[command(name = "face-id-services", version, about, max_term_width = 110)]
struct Cli {
    /// Where their data, logs and ports are kept.
    #[arg(long, global = true, value_name = "DIR", default_value = ".cache/services")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start them in the background, where they do not run yet, make an API key, and print the settings with which face-id
    /// uses them.
    Up,
    /// Print those settings, for a shell.
    Env,
    /// Tell which of them answer.
    Status,
    /// Stop them; their data stays, and their ports are kept.
    Down {
        /// Delete their data as well.
        #[arg(long)]
        wipe: bool,
    },
    /// Run them until Ctrl-C.
    Run,
}

/// Longest wait for all services: each has a shorter one of its own.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest wait for their end.
const STOP_TIMEOUT: Duration = Duration::from_secs(150);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    std::fs::create_dir_all(&cli.dir).with_context(|| format!("make {}", cli.dir.display()))?;
    let files = Files::new(std::path::absolute(&cli.dir)?);
    match cli.command {
        Command::Up => up(&files).await,
        Command::Env => print_settings(&files),
        Command::Status => status(&files).await,
        Command::Down { wipe } => down(&files, wipe).await,
        Command::Run => supervisor::run(&files).await,
    }
}

async fn up(files: &Files) -> anyhow::Result<()> {
    let mut started = if files.running()?.is_some() { None } else { Some(start_in_background(files)?) };
    let log = || std::fs::read_to_string(files.log()).unwrap_or_default();
    let began = std::time::Instant::now();
    while !files.ready().is_file() {
        let ended = match &mut started {
            Some(supervisor) => supervisor.try_wait()?.is_some(),
            None => files.running()?.is_none(),
        };
        if ended {
            bail!("the services did not start:\n{}", log());
        }
        ensure!(began.elapsed() < START_TIMEOUT, "the services did not start in time:\n{}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprint!("{}", log());
    key::make(files).await?;
    print_settings(files)
}

fn start_in_background(files: &Files) -> anyhow::Result<std::process::Child> {
    let log = std::fs::File::create(files.log())?;
    files.forget_ready()?;
    // In a session of its own, so that the terminal's end is not its.
    std::process::Command::new("setsid")
        .arg(std::env::current_exe()?)
        .args(["--dir".as_ref(), files.dir().as_os_str(), "run".as_ref()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the services")
}

async fn down(files: &Files, wipe: bool) -> anyhow::Result<()> {
    if let Some(pid) = files.running()? {
        kill_process(pid, Signal::TERM).context("end the services' supervisor")?;
        let began = std::time::Instant::now();
        while files.running()?.is_some() {
            ensure!(began.elapsed() < STOP_TIMEOUT, "the services do not stop; their process is {pid:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    if wipe { files.wipe() } else { Ok(()) }
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
async fn status(files: &Files) -> anyhow::Result<()> {
    match files.running()? {
        Some(pid) => println!("supervisor  process {}", pid.as_raw_pid()),
        None => println!("supervisor  does not run"),
    }
    let mut silent = Vec::new();
    for (service, port, answers) in supervisor::probe(files).await? {
        println!("{service:<10}  127.0.0.1:{port}  {}", if answers { "answers" } else { "does not answer" });
        if !answers {
            silent.push(service);
        }
    }
    ensure!(
        silent.is_empty(),
        "without an answer: {}; see the logs below {}",
        silent.join(", "),
        files.dir().display()
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the command's output, to be evaluated by a shell")]
fn print_settings(files: &Files) -> anyhow::Result<()> {
    let path = files.settings();
    let settings = std::fs::read_to_string(&path).with_context(|| {
        format!("{} is missing: these services were never started; run `make services`", path.display())
    })?;
    print!("{settings}");
    // Where no command was built, there is none.
    print!("{}", std::fs::read_to_string(files.key()).unwrap_or_default());
    Ok(())
}
