//! The user as whom `PostgreSQL` runs where this process is root, whom it refuses; and folders which that user can enter.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// A user of the machine.
pub(crate) struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl User {
    /// Debian's `postgres`, else `nobody`; `None` where this process is unprivileged itself.
    pub(crate) fn find() -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        let found = ["postgres", "nobody"].iter().find_map(|name| parse(&users, name));
        found.context("PostgreSQL refuses to run as root, and the machine has no user `postgres` or `nobody`").map(Some)
    }

    fn can(&self, what: &str, path: &Path) -> anyhow::Result<bool> {
        let command = as_user(Some(self), Path::new("test"));
        let mut test = std::process::Command::new(&command[0]);
        let status = test.args(&command[1..]).arg(what).arg(path).status();
        Ok(status.context("run setpriv (of Debian's package util-linux)")?.success())
    }
}

/// The start of a command that runs `program` as `user`.
pub(crate) fn as_user(user: Option<&User>, program: &Path) -> Vec<OsString> {
    let Some(user) = user else { return vec![program.into()] };
    let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.gid));
    vec!["setpriv".into(), uid.into(), gid.into(), "--clear-groups".into(), "--".into(), program.into()]
}

/// Makes a folder that `user` owns and nobody else can read.
pub(crate) fn make_owned(user: Option<&User>, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
    if let Some(user) = user {
        let given = std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid));
        given.with_context(|| format!("give {} to {}", folder.display(), user.name))?;
    }
    Ok(())
}

/// The folder itself, or one for the same purpose below /var/tmp where `user` may not enter it, as below root's home.
pub(crate) fn enterable(user: Option<&User>, folder: &Path) -> anyhow::Result<PathBuf> {
    let folder = std::path::absolute(folder)?;
    let Some(user) = user else { return Ok(folder) };
    if !folder.is_dir() || user.can("-x", &folder)? {
        return Ok(folder);
    }
    let name = folder.to_string_lossy().trim_matches('/').replace('/', "-");
    Ok(crate::own_folder(Path::new("/var/tmp"))?.join(name))
}

/// The folder of programs itself, or a copy below /var/tmp where `user` may not enter it.
pub(crate) fn reachable_programs(user: Option<&User>, tree: &Path, program: &str) -> anyhow::Result<PathBuf> {
    let Some(user) = user else { return Ok(tree.to_owned()) };
    if user.can("-x", &tree.join(program))? {
        return Ok(tree.to_owned());
    }
    let version = tree.file_name().context("the folder of programs has no name")?;
    let base = crate::own_folder(Path::new("/var/tmp"))?;
    let copy = base.join(version);
    if !copy.is_dir() {
        let partial = base.join(format!("{}.{}", version.to_string_lossy(), std::process::id()));
        let copied = std::process::Command::new("cp").arg("-R").arg(tree).arg(&partial).status().context("run cp")?;
        ensure!(copied.success(), "copy {} to {}", tree.display(), partial.display());
        // Another process may have been faster.
        if std::fs::rename(&partial, &copy).is_err() {
            std::fs::remove_dir_all(&partial)?;
        }
    }
    ensure!(user.can("-x", &copy.join(program))?, "{} cannot run {}", user.name, copy.join(program).display());
    Ok(copy)
}

/// A user's line of /etc/passwd, see passwd(5).
fn parse(users: &str, name: &str) -> Option<User> {
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some(User { name: name.to_owned(), uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_parsed() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533::/nonexistent:/usr/sbin/nologin\n";
        let nobody = parse(users, "nobody").unwrap();
        assert_eq!((nobody.uid, nobody.gid), (65_534, 65_533));
        assert!(parse(users, "postgres").is_none());
    }
}
