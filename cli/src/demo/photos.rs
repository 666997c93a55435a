//! Which photographs the demo uses: the sample list, or a user's folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use shared::config::Config;
use shared::digest::sha256_hex;

const SAMPLES: &str = include_str!("photos.toml");
/// No sample is nearly as long.
const MAX_BYTES: usize = 16 << 20;
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The folder of a user's photographs that are identified.
const PROBES: &str = "_probes";

pub(super) struct Photos {
    pub(super) enroll: Vec<Enroll>,
    pub(super) probes: Vec<Probe>,
    /// (file, what is known of its rights), for the samples.
    pub(super) rights: Vec<(String, String)>,
}

pub(super) struct Enroll {
    pub(super) path: PathBuf,
    pub(super) person: String,
}

pub(super) struct Probe {
    pub(super) path: PathBuf,
    /// The enrolled persons it shows; `None` where that is not known.
    pub(super) shows: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Samples {
    photo: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    file: String,
    url: String,
    rights: String,
    sha256: String,
    enroll: Option<String>,
    shows: Option<Vec<String>>,
}

impl Photos {
    /// The samples, from the operator's assets, the cache, or their addresses.
    pub(super) async fn samples(config: &Config) -> anyhow::Result<Self> {
        let samples: Samples = toml::from_str(SAMPLES).context("the list of samples; this is a bug")?;
        let mut photos = Self { enroll: Vec::new(), probes: Vec::new(), rights: Vec::new() };
        for sample in samples.photo {
            let path = find(config, &sample).await?;
            photos.rights.push((sample.file, sample.rights));
            match sample.enroll {
                Some(person) => photos.enroll.push(Enroll { path, person }),
                None => photos.probes.push(Probe { path, shows: sample.shows }),
            }
        }
        Ok(photos)
    }

    /// `folder/<person>/*` and `folder/_probes/*`.
    pub(super) fn of_folder(folder: &Path) -> anyhow::Result<Self> {
        let mut photos = Self { enroll: Vec::new(), probes: Vec::new(), rights: Vec::new() };
        let mut persons = Vec::new();
        for inside in sorted(folder)?.into_iter().filter(|p| p.is_dir()) {
            let name = inside.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name != PROBES {
                photos.enroll.extend(pictures(&inside)?.into_iter().map(|path| Enroll { path, person: name.clone() }));
                persons.push(name);
            }
        }
        for path in pictures(&folder.join(PROBES))? {
            let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            // The longest name wins, so that "ann" does not take "anna1.jpg".
            let shown = persons.iter().filter(|p| file.starts_with(&p.to_lowercase())).max_by_key(|p| p.len());
            photos.probes.push(Probe { path, shows: shown.map(|p| vec![p.clone()]) });
        }
        anyhow::ensure!(
            !photos.enroll.is_empty() && !photos.probes.is_empty(),
            "{} needs pictures in <person>/ folders and in {PROBES}/ (jpg, png or webp)",
            folder.display()
        );
        Ok(photos)
    }
}

fn sorted(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut paths = listing.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn pictures(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_picture = |p: &PathBuf| {
        let extension = p.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        p.is_file() && matches!(extension.as_str(), "jpg" | "jpeg" | "png" | "webp")
    };
    Ok(sorted(folder)?.into_iter().filter(is_picture).collect())
}

async fn find(config: &Config, sample: &Sample) -> anyhow::Result<PathBuf> {
    let cached = config.cache_dir().join("photos").join(&sample.file);
    let operators = config.assets_dir().map(|d| d.join("data/faces").join(&sample.file));
    if let Some(path) = operators.iter().chain([&cached]).find(|p| p.is_file()) {
        let found = sha256_hex(std::fs::read(path).with_context(|| format!("read {}", path.display()))?);
        anyhow::ensure!(found == sample.sha256, "{} is not the expected photograph (sha256 {found})", path.display());
        return Ok(path.clone());
    }
    download(sample, &cached).await.with_context(|| {
        let looked = operators.as_ref().map_or("FACE_ID_ASSETS_DIR (not set)".to_owned(), |p| p.display().to_string());
        format!(
            "the sample photograph {} is neither at {looked} nor at {}, and could not be fetched; use your own with \
             `make demo PHOTOS=DIR`",
            sample.file,
            cached.display()
        )
    })?;
    Ok(cached)
}

async fn download(sample: &Sample, target: &Path) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(DOWNLOAD_TIMEOUT).build()?;
    let mut answer = client.get(&sample.url).send().await?.error_for_status()?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        bytes.extend_from_slice(&chunk);
        anyhow::ensure!(bytes.len() <= MAX_BYTES, "it is longer than {MAX_BYTES} bytes");
    }
    let found = sha256_hex(&bytes);
    anyhow::ensure!(found == sample.sha256, "{} gave another file (sha256 {found})", sample.url);
    std::fs::create_dir_all(target.parent().unwrap_or(Path::new(".")))?;
    let unfinished = target.with_extension("part");
    std::fs::write(&unfinished, bytes)?;
    Ok(std::fs::rename(unfinished, target)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_ones_own_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for file in
            ["ann/1.jpg", "anna/1.PNG", "_probes/anna2.jpg", "_probes/Ann3.jpg", "_probes/party.webp", "_probes/x.txt"]
        {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        let photos = Photos::of_folder(folder.path()).unwrap();
        assert_eq!(photos.enroll.iter().map(|e| e.person.as_str()).collect::<Vec<_>>(), ["ann", "anna"]);
        let shows: Vec<_> = photos.probes.iter().map(|p| p.shows.clone()).collect();
        assert_eq!(shows, [Some(vec!["ann".to_owned()]), Some(vec!["anna".to_owned()]), None]);
        assert!(Photos::of_folder(&folder.path().join("ann")).is_err());
    }

    #[test]
    fn every_sample_has_a_use() {
        let samples: Samples = toml::from_str(SAMPLES).unwrap();
        assert!(samples.photo.iter().all(|s| s.enroll.is_some() != s.shows.is_some() && s.sha256.len() == 64));
    }
}
