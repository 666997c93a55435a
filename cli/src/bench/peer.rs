//! The peer: what a user would otherwise write in Python, `scripts/bench/peer.py`, as a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use shared::catalogue::Pipeline;
use worker::assets::Assets;

use super::usage::Took;

/// The peer with a pipeline's models.
pub(super) struct Peer {
    scripts: PathBuf,
    /// The pipeline's entry, and the files of its detector and its recognizer.
    files: [PathBuf; 3],
}

/// What `peer.py` prints.
#[derive(Deserialize)]
struct Report {
    images: usize,
    faces: usize,
    seconds: f64,
    cpu_seconds: f64,
}

impl Peer {
    /// `repository` has the scripts and the catalogue's entries.
    pub(super) async fn new(repository: &Path, pipeline: &Pipeline, assets: &Assets) -> anyhow::Result<Self> {
        let entry = repository.join("models").join(format!("{}.toml", pipeline.name));
        anyhow::ensure!(entry.is_file(), "{} is not there: run this from the repository", entry.display());
        let found = async |file| {
            let found = assets.present(file).await?;
            found.with_context(|| format!("the weights of {} are not there", pipeline.name))
        };
        let files = [entry, found(&pipeline.detector.file).await?, found(&pipeline.recognizer.file).await?];
        Ok(Self { scripts: repository.join("scripts/bench"), files })
    }

    /// Analyses the pictures in as many processes as there are cores.
    pub(super) async fn run(&self, pictures: &[PathBuf]) -> anyhow::Result<Took> {
        let folder = tempfile::tempdir()?;
        let list = folder.path().join("pictures");
        let lines: Vec<_> = pictures
            .iter()
            .map(|path| path.to_str().context("a picture's path is no text"))
            .collect::<Result<_, _>>()?;
        std::fs::write(&list, lines.join("\n"))?;
        let mut command = python(&self.scripts, "peer.py");
        let [entry, detector, recognizer] = &self.files;
        command.arg(&list).arg("--pipeline").arg(entry);
        command.arg("--detector").arg(detector).arg("--recognizer").arg(recognizer);
        let report: Report = answer(command, "peer.py").await?;
        Ok(Took {
            images: report.images,
            faces: report.faces,
            elapsed: Duration::from_secs_f64(report.seconds),
            cpu: Duration::from_secs_f64(report.cpu_seconds),
        })
    }
}

/// A script with the packages that it needs; the first time it runs, those are fetched.
pub(super) fn python(scripts: &Path, script: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(scripts.join("python.sh"));
    command.arg(scripts.join(script)).stderr(std::process::Stdio::inherit()).kill_on_drop(true);
    command
}

/// The JSON that a script prints.
pub(super) async fn answer<T: serde::de::DeserializeOwned>(
    mut command: tokio::process::Command,
    script: &str,
) -> anyhow::Result<T> {
    let output = command.output().await.with_context(|| format!("run {script}"))?;
    anyhow::ensure!(output.status.success(), "{script} ended with {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("read what {script} printed"))
}
