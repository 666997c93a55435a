//! How fast a library is gone through: the bare loop, as a batch of a server, embedded and on services, and the peer.

use std::path::Path;

use super::bare::BareLoop;
use super::library::{Library, pictures};
use super::peer::Peer;
use super::setting::{Setting, say};
use super::site::Site;
use super::usage::Took;

/// The faces of our own pipeline and of the peer's may differ by this share: we show the detector large faces a second
/// time, and decode large pictures at a reduced scale.
const FACES_DIFFER: f64 = 0.03;

/// Who goes through the pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Bare,
    Embedded,
    Services,
    Peer,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare loop",
            Self::Embedded => "index, embedded",
            Self::Services => "index, services",
            Self::Peer => "Python peer",
        }
    }
}

/// One way with one pipeline: its best round, or why there is none.
pub(super) struct Line {
    pub(super) way: Way,
    pub(super) pipeline: String,
    pub(super) best: Result<Took, String>,
}

/// All ways, and the pictures that they went through.
pub(super) struct Throughput {
    pub(super) images: usize,
    pub(super) lines: Vec<Line>,
}

impl Throughput {
    fn took(&self, way: Way, pipeline: &str) -> Result<&Took, String> {
        let line = self.lines.iter().find(|line| line.way == way && line.pipeline == pipeline);
        line.ok_or_else(|| format!("the {} was not measured with {pipeline}", way.name()))?
            .best
            .as_ref()
            .map_err(Clone::clone)
    }

    /// How much more one way with a pipeline does in a second than another with another.
    pub(super) fn ratio(&self, this: (Way, &str), other: (Way, &str)) -> Result<f64, String> {
        let (took, base) = (self.took(this.0, this.1)?, self.took(other.0, other.1)?);
        let differ = (took.faces as f64 / base.faces as f64 - 1.0).abs();
        if differ > FACES_DIFFER {
            return Err(format!("{} faces are too far from the {} of the {}", took.faces, base.faces, other.0.name()));
        }
        Ok(took.rate() / base.rate())
    }

    /// Adds a round; the faster one stays.
    fn add(&mut self, way: Way, pipeline: &str, took: anyhow::Result<Took>) {
        let took = took.map_err(|e| format!("{e:#}"));
        let Some(line) = self.lines.iter_mut().find(|line| line.way == way && line.pipeline == pipeline) else {
            self.lines.push(Line { way, pipeline: pipeline.to_owned(), best: took });
            return;
        };
        match (&line.best, &took) {
            (Ok(best), Ok(now)) if now.elapsed < best.elapsed => line.best = took,
            // What failed once is not told as if it had not.
            (Ok(_), Err(_)) => line.best = took,
            _ => {}
        }
    }
}

/// Measures all ways in turn, so often as the setting's rounds say.
pub(super) async fn measure(setting: &Setting, folder: &Path, limit: usize) -> anyhow::Result<Throughput> {
    let mut all = Throughput { images: pictures(folder, limit)?.len(), lines: Vec::new() };
    let library = Library::open(&setting.embedded, folder, limit).await?;
    let site = Site::open(&setting.embedded, library, &[]).await?;
    let measured = rounds(setting, &site, &mut all).await;
    site.close(measured).await?;
    if let Err(error) = on_services(setting, folder, limit, &mut all).await {
        for pipeline in setting.pipelines() {
            all.add(Way::Services, pipeline, Err(anyhow::anyhow!("{error:#}")));
        }
    }
    Ok(all)
}

async fn rounds(setting: &Setting, site: &Site, all: &mut Throughput) -> anyhow::Result<()> {
    let pictures = &site.library.pictures;
    let mut loops = Vec::new();
    for pipeline in setting.pipelines() {
        let bare = BareLoop::load(&setting.embedded, &setting.catalogue, &setting.assets, pipeline).await?;
        bare.run(&pictures[..pictures.len().min(10)]).await?;
        site.warm_up(pipeline).await?;
        loops.push((pipeline, bare));
    }
    for round in 0..setting.rounds {
        for (pipeline, bare) in &loops {
            say(&format!("{} pictures, {pipeline}, round {} of {}", pictures.len(), round + 1, setting.rounds));
            // The peer is what a user would write, with 32-bit floats; with our own 8-bit file it runs once, to compare.
            if *pipeline == setting.default_pipeline || round == 0 {
                all.add(Way::Peer, pipeline, peer(setting, pipeline, pictures).await);
            }
            all.add(Way::Bare, pipeline, bare.run(pictures).await);
            all.add(Way::Embedded, pipeline, site.index(pipeline).await.map(|batch| batch.took));
        }
    }
    Ok(())
}

async fn peer(setting: &Setting, pipeline: &str, pictures: &[std::path::PathBuf]) -> anyhow::Result<Took> {
    let peer = Peer::new(&setting.repository, setting.catalogue.pipeline(pipeline)?, &setting.assets).await?;
    peer.run(pictures).await
}

async fn on_services(setting: &Setting, folder: &Path, limit: usize, all: &mut Throughput) -> anyhow::Result<()> {
    let config = setting.services()?;
    say("the same on services");
    let site = Site::open(config, Library::open(config, folder, limit).await?, &[]).await?;
    let measured = async {
        for pipeline in setting.pipelines() {
            site.warm_up(pipeline).await?;
            for _ in 0..setting.rounds {
                all.add(Way::Services, pipeline, site.index(pipeline).await.map(|batch| batch.took));
            }
        }
        anyhow::Ok(())
    }
    .await;
    site.close(measured).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn took(seconds: u64, faces: usize) -> Took {
        Took { images: 100, faces, elapsed: Duration::from_secs(seconds), cpu: Duration::from_secs(seconds) }
    }

    #[test]
    fn the_best_round_counts_and_a_failed_one_is_told() {
        let mut all = Throughput { images: 100, lines: Vec::new() };
        for seconds in [5, 4, 6] {
            all.add(Way::Bare, "p", Ok(took(seconds, 100)));
        }
        all.add(Way::Embedded, "p", Ok(took(5, 101)));
        let ratio = all.ratio((Way::Embedded, "p"), (Way::Bare, "p")).unwrap();
        assert!((ratio - 0.8).abs() < 1e-9);
        all.add(Way::Peer, "p", Ok(took(5, 90)));
        let differ = all.ratio((Way::Embedded, "p"), (Way::Peer, "p")).unwrap_err();
        assert!(differ.contains("101 faces"), "{differ}");
        all.add(Way::Embedded, "p", Err(anyhow::anyhow!("broken")));
        assert_eq!(all.ratio((Way::Embedded, "p"), (Way::Bare, "p")).unwrap_err(), "broken");
        assert!(all.ratio((Way::Services, "p"), (Way::Bare, "p")).unwrap_err().contains("index, services"));
    }
}
