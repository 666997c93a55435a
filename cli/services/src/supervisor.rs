//! The process that holds the three services of a folder, and the files by which other processes find it.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Pid;
use services::ports::{Protocol, answers, free_port};
use services::postgres::Postgres;
use services::rabbitmq::RabbitMq;
use services::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use tokio::signal::unix::{SignalKind, signal};

/// The database and the installation's own bucket, which are there from the start.
const DATABASE: &str = "face_id";
const BUCKET: &str = "face-id";
/// Another bucket, for pictures that jobs and batches may read where they lie.
const LIBRARY: &str = "library";
/// The S3 server is in none; requests are signed for this one.
const REGION: &str = "us-east-1";

/// What lies in the folder.
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    /// `dir` is absolute.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the supervisor has to say.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("services.log")
    }

    /// Lines for a shell.
    pub(crate) fn settings(&self) -> PathBuf {
        self.dir.join("env")
    }

    /// One more such line: an API key of theirs.
    pub(crate) fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// There while all services answer.
    pub(crate) fn ready(&self) -> PathBuf {
        self.dir.join("ready")
    }

    pub(crate) fn forget_ready(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.ready()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("delete the file `ready`"),
            _ => Ok(()),
        }
    }

    fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// The supervisor of this folder, if there is one: it holds a lock, which ends with it whatever ends it.
    pub(crate) fn running(&self) -> anyhow::Result<Option<Pid>> {
        let path = self.pid();
        if !path.is_file() {
            return Ok(None);
        }
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match file.try_lock_shared() {
            Ok(()) => return Ok(None),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).context(format!("lock {}", path.display())),
        }
        let text = std::fs::read_to_string(&path)?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        pid.with_context(|| format!("{} holds no process id; try again", path.display())).map(Some)
    }

    /// Makes this process the supervisor for as long as it keeps the file.
    async fn hold(&self) -> anyhow::Result<File> {
        let path = self.pid();
        let mut file = File::options().create(true).append(true).open(&path)?;
        // Somebody who only asks holds the lock for a moment too.
        let mut tries = 0;
        while let Err(error) = file.try_lock() {
            ensure!(tries < 20, "the services of {} run already ({error})", self.dir.display());
            tries += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(file)
    }

    /// Deletes the services' data and logs, and the key with them. Ports and settings stay valid.
    pub(crate) fn wipe(&self) -> anyhow::Result<()> {
        if self.key().is_file() {
            std::fs::remove_file(self.key()).context("delete the API key")?;
        }
        let elsewhere = services::postgres::folder(&self.dir.join("postgres"))?;
        for folder in ["postgres", "rabbitmq", "s3"].map(|name| self.dir.join(name)).into_iter().chain([elsewhere]) {
            if folder.is_dir() {
                std::fs::remove_dir_all(&folder).with_context(|| format!("delete {}", folder.display()))?;
            }
        }
        Ok(())
    }

    /// Chosen once, so that settings stay valid over restarts: of PostgreSQL, RabbitMQ and S3.
    fn ports(&self) -> anyhow::Result<[u16; 3]> {
        let path = self.dir.join("ports");
        if !path.is_file() {
            std::fs::write(&path, format!("{} {} {}\n", free_port()?, free_port()?, free_port()?))?;
        }
        let text = std::fs::read_to_string(&path)?;
        let ports: Vec<u16> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [postgres, rabbitmq, s3] = ports[..] else { bail!("{} holds no three ports; delete it", path.display()) };
        Ok([postgres, rabbitmq, s3])
    }
}

/// Runs the services of a folder until SIGTERM or Ctrl-C.
pub(crate) async fn run(files: &Files) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let _held = files.hold().await?;
    files.forget_ready()?;
    let services = tokio::select! {
        services = Services::start(files) => services?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    std::fs::write(files.ready(), "")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    files.forget_ready()?;
    tokio::try_join!(services.postgres.stop(), services.rabbitmq.stop())?;
    Ok(())
}

/// Each service's name and port, and whether it answers.
pub(crate) async fn probe(files: &Files) -> anyhow::Result<Vec<(&'static str, u16, bool)>> {
    let names = ["postgres", "rabbitmq", "s3"];
    let protocols = [Protocol::Postgres, Protocol::Amqp, Protocol::Http];
    let mut found = Vec::new();
    for ((name, protocol), port) in names.into_iter().zip(protocols).zip(files.ports()?) {
        found.push((name, port, answers(port, protocol).await.is_ok()));
    }
    Ok(found)
}

struct Services {
    postgres: Postgres,
    rabbitmq: RabbitMq,
    _s3: S3Server,
}

impl Services {
    /// Starts all, makes the database and the buckets, and writes the settings down.
    async fn start(files: &Files) -> anyhow::Result<Self> {
        let [postgres_port, rabbitmq_port, s3_port] = files.ports()?;
        let [postgres_dir, rabbitmq_dir, s3_dir] = ["postgres", "rabbitmq", "s3"].map(|name| files.dir.join(name));
        let (postgres, rabbitmq, s3) = tokio::try_join!(
            Postgres::start_on(&postgres_dir, postgres_port, true),
            RabbitMq::start_on(&rabbitmq_dir, rabbitmq_port),
            S3Server::start(&s3_dir, s3_port)
        )?;
        if postgres.dir() != postgres_dir {
            let (asked, used) = (postgres_dir.display(), postgres.dir().display());
            eprintln!("PostgreSQL's user may not enter {asked}: its data and its log are in {used}");
        }
        let database = postgres.create_database(DATABASE).await?;
        s3.create_bucket(BUCKET).await?;
        s3.create_bucket(LIBRARY).await?;
        let services = [
            ("FACE_ID_DATABASE__URL", database),
            ("FACE_ID_QUEUE__URL", rabbitmq.url()),
            ("FACE_ID_OBJECTS__BUCKET", BUCKET.to_owned()),
            ("FACE_ID_OBJECTS__ALLOWED_BUCKETS", LIBRARY.to_owned()),
            ("FACE_ID_OBJECTS__ENDPOINT", s3.endpoint()),
            ("FACE_ID_OBJECTS__REGION", REGION.to_owned()),
            ("FACE_ID_OBJECTS__ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("FACE_ID_OBJECTS__SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("FACE_ID_SERVER__SECRET_KEY", services::FACE_ID_SECRET_KEY.to_owned()),
        ];
        let lines: String = services.into_iter().chain(folders()?).map(|(name, value)| export(name, &value)).collect();
        std::fs::write(files.settings(), lines)?;
        Ok(Self { postgres, rabbitmq, _s3: s3 })
    }
}

/// Where programs from another shell find the ONNX Runtime library and weights: the downloads, and an operator's own copy
/// where there is one.
fn folders() -> anyhow::Result<Vec<(&'static str, String)>> {
    let downloads = services::cache_folders().into_iter().find(|folder| folder.is_dir());
    let own_copy = std::env::var_os("FACE_ID_ASSETS_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let mut settings = Vec::new();
    for (name, folder) in [("FACE_ID_CACHE_DIR", downloads), ("FACE_ID_ASSETS_DIR", own_copy)] {
        let Some(folder) = folder else { continue };
        let folder = std::path::absolute(folder)?;
        settings.push((name, folder.to_str().with_context(|| format!("{} is no UTF-8", folder.display()))?.to_owned()));
    }
    Ok(settings)
}

/// A line for a shell.
pub(crate) fn export(name: &str, value: &str) -> String {
    format!("export {name}='{}'\n", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_meant() {
        let line = export("NAME", "it's a $HOME");
        let shell = std::process::Command::new("sh").args(["-c", &(line + "printf %s \"$NAME\"")]).output().unwrap();
        assert_eq!(String::from_utf8(shell.stdout).unwrap(), "it's a $HOME");
    }
}
