//! An API key for whoever uses the services: made once with the command beside this one, and kept with the settings.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::supervisor::{Files, export};

/// Longest time to migrate the database and to make a key.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The settings, then the command; what it prints at last is the token.
const SCRIPT: &str = ". \"$1\" && \"$2\" migrate >&2 && exec \"$2\" keys create --name services --scope admin --token";

/// Makes the key where there is none yet; needs the services, and brings their database to this version.
pub(crate) async fn make(files: &Files) -> anyhow::Result<()> {
    let command = std::env::current_exe()?.with_file_name("face-id");
    if files.key().is_file() {
        return Ok(());
    }
    if !command.is_file() {
        eprintln!("{} is not built, so no API key was made; `face-id keys create` makes one", command.display());
        return Ok(());
    }
    let mut script = Command::new("sh");
    script.args(["-c", SCRIPT, "sh"]).arg(files.settings()).arg(command);
    script.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, script.output()).await.context("no API key was made in time")??;
    ensure!(output.status.success(), "no API key was made: {}", output.status);
    let token = String::from_utf8(output.stdout)?;
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(files.key())?;
    write!(file, "{}", export("FACE_ID_API_KEY", token.trim())).context("keep the API key")
}
