//! Joint Bayesian on LFW: trained on the people of some folds, and judged beside the plain score of the search on the pairs of the others.

pub(crate) mod train;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;
use shared::catalogue::Metric;
use shared::config::Config;
use shared::embedding::Embedding;
use shared::joint_bayes::{Trained, Training};

use super::pairs::{Pair, Pairs};
use super::protocol::{Kinds, Scored, best_threshold};
use super::{embed, setup};

/// Score of a pair with a picture on which no face was found: never a match.
const NO_FACE: f32 = f32::MIN;
/// People are parted into so many groups, each of which is scored by what the others teach.
const PARTS: usize = 5;
/// A step that gains less than this, in nats a picture, is the last one.
const LEAST_GAIN: f64 = 1e-4;

#[derive(clap::Args)]
pub(crate) struct JointBayesArgs {
    /// LFW's pictures, as `DIR/<person>/<person>_<number>.jpg`.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// LFW's pairs.txt.
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// The folds whose people are learnt from; the pairs of all others are judged.
    #[arg(long, value_name = "FROM-TO", default_value = "1-5")]
    folds: Folds,
    /// The pipeline; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Steps of the training at most.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: u16,
    /// Write all figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Folds by their numbers in `pairs.txt`, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Folds {
    first: usize,
    last: usize,
}

impl FromStr for Folds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 1 <= first && first <= last => Ok(Self { first, last }),
            _ => Err("write FROM-TO, as in 1-5, or one number".to_owned()),
        }
    }
}

impl Folds {
    fn holds(self, pair: &Pair) -> bool {
        (self.first..=self.last).contains(&(pair.fold + 1))
    }
}

/// The pictures of an LFW folder, with vectors.
struct Lfw {
    pairs: Pairs,
    embeddings: Vec<Option<Embedding>>,
    metric: Metric,
    folds: Folds,
}

impl Lfw {
    async fn read(
        config: &Config,
        model: Option<&str>,
        (images, pairs, folds): (&PathBuf, &PathBuf, Folds),
    ) -> anyhow::Result<(Self, String)> {
        let text = std::fs::read_to_string(pairs).with_context(|| format!("read {}", pairs.display()))?;
        let pairs = Pairs::parse(&text).with_context(|| format!("read {}", pairs.display()))?;
        let (setup, _) = setup(config, model, None).await?;
        let photos: Vec<PathBuf> = pairs.photos.iter().map(|photo| photo.path(images)).collect();
        let embeddings = embed::embed(&setup, &photos).await?.embeddings;
        let pipeline = setup.engine.pipeline();
        Ok((Self { pairs, embeddings, metric: pipeline.recognizer.metric, folds }, pipeline.name.clone()))
    }

    /// The vectors of each person of the folds, but not of one who is in a pair of another fold too.
    fn people(&self) -> Vec<Vec<Embedding>> {
        let photos = &self.pairs.photos;
        let of = |pair: &Pair| [photos[pair.left].person.as_str(), photos[pair.right].person.as_str()];
        let (learnt, judged): (Vec<&Pair>, Vec<&Pair>) =
            self.pairs.comparisons.iter().partition(|pair| self.folds.holds(pair));
        let judged: HashSet<&str> = judged.into_iter().flat_map(of).collect();
        let learnt: HashSet<&str> = learnt.into_iter().flat_map(of).filter(|name| !judged.contains(name)).collect();
        let mut people: BTreeMap<&str, Vec<Embedding>> = BTreeMap::new();
        for (photo, embedding) in photos.iter().zip(&self.embeddings) {
            if let Some(embedding) = embedding.as_ref().filter(|_| learnt.contains(photo.person.as_str())) {
                people.entry(&photo.person).or_default().push(embedding.clone());
            }
        }
        people.into_values().collect()
    }

    /// The pairs of all other folds.
    fn scored(&self, score: impl Fn(&Embedding, &Embedding) -> f32) -> Vec<Scored> {
        let wanted = self.pairs.comparisons.iter().filter(|pair| !self.folds.holds(pair));
        let both = |pair: &Pair| self.embeddings[pair.left].as_ref().zip(self.embeddings[pair.right].as_ref());
        let scored = |pair: &Pair| Scored {
            score: both(pair).map_or(NO_FACE, |(one, other)| score(one, other)),
            fold: pair.fold,
            is_same_person: pair.is_same_person,
        };
        wanted.map(scored).collect()
    }

    /// What a score and its threshold come to on the pairs of all other folds.
    fn judged(&self, method: &'static str, threshold: f32, score: impl Fn(&Embedding, &Embedding) -> f32) -> Judged {
        let pairs = self.scored(score);
        let right = pairs.iter().filter(|pair| (pair.score >= threshold) == pair.is_same_person).count();
        let kinds = Kinds::of(&pairs);
        Judged {
            method,
            accuracy: right as f64 / pairs.len().max(1) as f64,
            threshold,
            tar_at_far_1e2: kinds.at_far(1e-2).tar,
            equal_error_rate: kinds.equal_error_rate(),
        }
    }
}

/// As many pairs of two people as of one: each picture with the person's next one, and with one of the next person.
fn neighbours(people: &[Vec<Embedding>], score: impl Fn(&Embedding, &Embedding) -> f32) -> Vec<Scored> {
    let mut scored = Vec::new();
    for (n, own) in people.iter().enumerate() {
        let others = &people[(n + 1) % people.len()];
        for (at, pair) in own.windows(2).enumerate() {
            let scores = [(true, score(&pair[0], &pair[1])), (false, score(&pair[0], &others[at % others.len()]))];
            scored.extend(scores.map(|(is_same_person, score)| Scored { score, fold: 0, is_same_person }));
        }
    }
    scored
}

/// The threshold that is best for people of whom nothing was learnt: every fifth person's pairs are scored by what the others
/// teach. On the people that a model was learnt from, it is far better than on any others.
async fn held_out_threshold(people: &[Vec<Embedding>], steps: u16) -> anyhow::Result<f32> {
    anyhow::ensure!(
        people.len() >= 2 * PARTS,
        "{} people are too few to find a threshold by those of whom nothing is learnt; take {} at least",
        people.len(),
        2 * PARTS
    );
    let mut scored = Vec::new();
    for part in 0..PARTS {
        let of = |is_held_out: bool| -> Vec<Vec<Embedding>> {
            let chosen = people.iter().enumerate().filter(|(n, _)| (n % PARTS == part) == is_held_out);
            chosen.map(|(_, vectors)| vectors.clone()).collect()
        };
        let trained =
            learnt(of(false), steps).await.context("learn from four fifths of the people, for the threshold")?;
        scored.extend(neighbours(&of(true), score(&trained)));
    }
    Ok(best_threshold(&scored))
}

/// Learns from people, off the threads that others wait for.
async fn learnt(people: Vec<Vec<Embedding>>, steps: u16) -> anyhow::Result<Trained> {
    let learn = move || Training::of(&people)?.run(usize::from(steps), LEAST_GAIN);
    Ok(tokio::task::spawn_blocking(learn).await??)
}

/// As [`shared::joint_bayes::JointBayes::score`], of vectors that it was made for.
#[expect(clippy::cast_possible_truncation, reason = "a score needs no more than six digits")]
fn score(trained: &Trained) -> impl Fn(&Embedding, &Embedding) -> f32 {
    move |one, other| trained.model.score(one, other).map_or(NO_FACE, |score| score as f32)
}

/// What was measured. Rates are shares of 0..1.
#[derive(Debug, Serialize)]
struct Report {
    pipeline: String,
    /// Whose vectors were learnt from.
    people: usize,
    pictures: usize,
    /// Log-likelihood of a picture in nats, before each step and after the last.
    likelihoods: Vec<f64>,
    /// Pairs that were judged.
    pairs: usize,
    methods: [Judged; 2],
}

#[derive(Debug, Serialize)]
struct Judged {
    method: &'static str,
    accuracy: f64,
    threshold: f32,
    tar_at_far_1e2: f64,
    equal_error_rate: f64,
}

#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(super) async fn run(config: &Config, args: &JointBayesArgs) -> anyhow::Result<()> {
    let from = (&args.images, &args.pairs, args.folds);
    let (lfw, pipeline) = Lfw::read(config, args.model.as_deref(), from).await?;
    let folds = lfw.pairs.folds;
    anyhow::ensure!(
        args.folds.last < folds || args.folds.first > 1 && args.folds.last == folds,
        "--folds {}-{} leaves none of the {folds} folds to be judged",
        args.folds.first,
        args.folds.last
    );
    let people = lfw.people();
    let (count, pictures) = (people.len(), people.iter().map(Vec::len).sum());
    let search = |one: &Embedding, other: &Embedding| one.score(other, lfw.metric);
    let thresholds = [best_threshold(&neighbours(&people, search)), held_out_threshold(&people, args.steps).await?];
    let trained = learnt(people, args.steps).await?;
    let methods = [
        lfw.judged(lfw.metric.as_str(), thresholds[0], search),
        lfw.judged("joint-bayesian", thresholds[1], score(&trained)),
    ];
    let pairs = lfw.scored(search).len();
    let report = Report { pipeline, people: count, pictures, likelihoods: trained.likelihoods.clone(), pairs, methods };
    println!("{}", report.table());
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

impl Report {
    fn table(&self) -> Table {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let learnt = format!("{}, learnt from {} pictures of {} people", self.pipeline, self.pictures, self.people);
        table.set_header([
            learnt.as_str(),
            "accuracy",
            "threshold",
            "true accepts at 1e-2 false ones",
            "equal error rate",
        ]);
        table.add_rows(self.methods.iter().map(|judged| {
            [
                format!("{}, {} pairs", judged.method, self.pairs),
                percent(judged.accuracy),
                format!("{:.3}", judged.threshold),
                percent(judged.tar_at_far_1e2),
                percent(judged.equal_error_rate),
            ]
        }));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_read_and_others_refused() {
        assert_eq!("1-5".parse(), Ok(Folds { first: 1, last: 5 }));
        assert_eq!("3".parse(), Ok(Folds { first: 3, last: 3 }));
        for wrong in ["", "0-5", "5-1", "1-x", "-"] {
            assert!(wrong.parse::<Folds>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_is_learnt_from_who_is_judged() {
        let text = "2 2\nAda 1 2\nBob 1 2\nAda 1 Bob 1\nAda 3 Eve 1\nCy 1 2\nDot 1 2\nCy 1 Dot 1\nCy 3 Eve 2\n";
        let pairs = Pairs::parse(text).unwrap();
        let vector = |n: usize| (n != 1).then(|| Embedding::as_given(vec![n as f32 + 1.0, 1.0]).unwrap());
        let embeddings = (0..pairs.photos.len()).map(vector).collect();
        let lfw = Lfw { pairs, embeddings, metric: Metric::Cosine, folds: Folds { first: 1, last: 1 } };
        // Ada has three pictures, on the second of which no face was found; Eve is in both folds.
        assert_eq!(lfw.people().iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        let judged = lfw.scored(|_, _| 0.5);
        assert_eq!(judged.iter().map(|pair| pair.is_same_person).collect::<Vec<_>>(), [true, true, false, false]);
        assert!(judged.iter().all(|pair| pair.score > 0.0), "all of them have a face");
    }

    #[test]
    fn as_many_pairs_of_two_people_as_of_one() {
        let vector = |n: usize| Embedding::as_given(vec![n as f32 + 1.0, 1.0]).unwrap();
        let people = vec![vec![vector(0), vector(1), vector(2)], vec![vector(3)], vec![vector(4), vector(5)]];
        let pairs = neighbours(&people, Embedding::cosine);
        assert_eq!(pairs.iter().filter(|pair| pair.is_same_person).count(), 3);
        assert_eq!(pairs.len(), 6);
    }

    #[tokio::test]
    async fn a_threshold_is_that_of_people_of_whom_nothing_was_learnt() {
        // Two components, people far apart and their pictures close together.
        let vector = |x: f32, y: f32| Embedding::as_given(vec![x, y]).unwrap();
        let person = |n: usize| {
            let (x, y) = ((n as f32 * 1.7).sin() * 10.0, (n as f32 * 2.3).cos() * 10.0);
            (0..4).map(|at| vector(x + (at as f32 * 2.1 + n as f32).sin(), y + (at as f32 * 3.1).cos())).collect()
        };
        let people: Vec<Vec<Embedding>> = (0..40).map(person).collect();
        let threshold = held_out_threshold(&people, 20).await.unwrap();
        let trained = learnt(people.clone(), 20).await.unwrap();
        let pairs = neighbours(&people, score(&trained));
        let right = pairs.iter().filter(|pair| (pair.score >= threshold) == pair.is_same_person).count();
        assert!(right * 20 > pairs.len() * 19, "{right} of {}", pairs.len());
        let few = held_out_threshold(&people[..9], 20).await.unwrap_err().to_string();
        assert!(few.contains("take 10"), "{few}");
    }
}
