//! The file: fetched from a server, and checked.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use shared::transfer::{Checker, Counts, Header, Line, MAX_LINE_BYTES};

use super::PATIENCE;
use crate::client::Client;

/// A whole file that was written.
pub(super) struct Written {
    pub(super) counts: Counts,
    pub(super) bytes: u64,
}

/// Writes a collection to a file, which has its name once it is whole.
pub(super) async fn fetch(client: &Client, collection: &str, path: &Path) -> anyhow::Result<Written> {
    let mut out = Out::begin(path)?;
    let progress = bar("{spinner} {msg}, {bytes} written, {bytes_per_sec}");
    let counts = read(client, collection, &progress, |piece| out.write(piece), |_| ()).await?;
    out.end()?;
    Ok(Written { counts, bytes: progress.position() })
}

/// Tells each line of a collection as the server has it.
pub(crate) async fn tell_lines(client: &Client, collection: &str, tell: impl FnMut(Line)) -> anyhow::Result<Counts> {
    let progress = bar("{spinner} {msg}, {bytes} read, {bytes_per_sec}");
    read(client, collection, &progress, |_| Ok(()), tell).await
}

async fn read(
    client: &Client,
    collection: &str,
    progress: &ProgressBar,
    mut write: impl FnMut(&[u8]) -> anyhow::Result<()>,
    mut tell: impl FnMut(Line),
) -> anyhow::Result<Counts> {
    let mut answer = client.get_stream(&format!("/v1/collections/{collection}/export"), PATIENCE).await?;
    let mut lines = CheckedLines::default();
    loop {
        let piece = answer.chunk().await.context("the server broke off; run the command again")?;
        let Some(piece) = piece else { break };
        lines.add(&piece, &mut tell)?;
        write(&piece)?;
        progress.inc(piece.len() as u64);
        progress.set_message(format!("{} lines", lines.checker.line()));
    }
    progress.finish_and_clear();
    lines.finish()
}

/// Reads the file from beginning to end; its header, where nothing is wrong with it.
pub(super) fn check(path: &Path) -> anyhow::Result<Header> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.metadata().with_context(|| format!("look at {}", path.display()))?.len();
    let progress = bar("{bar:30} {percent}% checked");
    progress.set_length(length);
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (mut checker, mut header, mut line) = (Checker::default(), None, Vec::new());
    loop {
        line.clear();
        let most = MAX_LINE_BYTES as u64 + 2;
        let read = (&mut file).take(most).read_until(b'\n', &mut line);
        let read = read.with_context(|| format!("read {}", path.display()))?;
        if read == 0 {
            break;
        }
        progress.inc(read as u64);
        anyhow::ensure!(line.len() as u64 != most, "{}: line {} is too long", path.display(), checker.line() + 1);
        let content = line.strip_suffix(b"\n").unwrap_or(&line);
        let of_line = checker.read(content).with_context(|| path.display().to_string())?;
        if let Line::FaceIdExport(found) = of_line {
            header = Some(found);
        }
    }
    progress.finish_and_clear();
    checker.finish().with_context(|| path.display().to_string())?;
    header.context("a file that was read has a header; this is a bug")
}

/// A live line on the standard error.
pub(super) fn bar(line: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(line) {
        bar.set_style(style);
    }
    bar
}

/// Lines that are put together from what comes.
#[derive(Default)]
struct CheckedLines {
    checker: Checker,
    rest: Vec<u8>,
}

impl CheckedLines {
    fn add(&mut self, piece: &[u8], mut tell: impl FnMut(Line)) -> anyhow::Result<()> {
        let mut lines = piece.split(|byte| *byte == b'\n');
        let last = lines.next_back().unwrap_or_default();
        for line in lines {
            self.rest.extend_from_slice(line);
            tell(self.checker.read(&self.rest).context("what the server sent")?);
            self.rest.clear();
        }
        self.rest.extend_from_slice(last);
        anyhow::ensure!(self.rest.len() <= MAX_LINE_BYTES, "the server sent a line that is too long to be imported");
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Counts> {
        anyhow::ensure!(self.rest.is_empty(), "the server broke off; run the command again");
        self.checker.finish().context("what the server sent")
    }
}

enum Out {
    Stdout(std::io::Stdout),
    /// A file that gets its name at the end.
    File {
        file: tempfile::NamedTempFile,
        path: std::path::PathBuf,
    },
}

impl Out {
    fn begin(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(std::io::stdout()));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder);
        let file = file.with_context(|| format!("make a file in {}", folder.display()))?;
        Ok(Self::File { file, path: path.to_owned() })
    }

    fn write(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(piece).context("write to the standard output"),
            Self::File { file, path } => file.write_all(piece).with_context(|| format!("write {}", path.display())),
        }
    }

    fn end(self) -> anyhow::Result<()> {
        match self {
            Self::Stdout(mut stdout) => stdout.flush().context("write to the standard output"),
            Self::File { file, path } => {
                let named = |path: &Path| format!("write {}", path.display());
                file.as_file().sync_all().with_context(|| named(&path))?;
                file.persist(&path).map_err(|e| e.error).with_context(|| named(&path))?;
                Ok(())
            }
        }
    }
}
