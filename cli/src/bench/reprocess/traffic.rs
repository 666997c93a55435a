//! People who are identified all the time while their collection goes over to another pipeline. Each answer must be that of one
//! pipeline: the one that it names.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::site::Site;
use super::sources::Sources;
use crate::client::Client;

/// Requests under way at a time.
const AT_ONCE: usize = 3;
/// Scores of one comparison differ by less between two runs of a model, and by more between two models.
const SAME_SCORE: f64 = 1e-4;

/// What an answer says of a face.
#[derive(Clone, Debug)]
struct Face {
    decision: Value,
    threshold: f64,
    /// Persons by score, best first.
    matches: Vec<(String, f64)>,
}

/// What was answered, and by which pipeline.
#[derive(Clone, Debug)]
struct Answer {
    pipeline: String,
    faces: Vec<Face>,
}

/// Pictures of enrolled people.
pub(super) struct Probes {
    path: String,
    bodies: Vec<Value>,
}

/// What each pipeline answers to them when all is quiet.
#[derive(Default)]
pub(super) struct Expected(HashMap<String, Vec<Vec<Face>>>);

/// What became of the requests.
#[derive(Default)]
pub(super) struct Told {
    pub(super) answers: usize,
    pub(super) errors: usize,
    pub(super) mixed: usize,
}

/// Requests that go on until they are stopped.
pub(super) struct Traffic {
    stop: CancellationToken,
    running: JoinSet<(usize, Vec<(usize, Answer)>)>,
}

impl Probes {
    /// Enrolls one picture each of up to `people` people, whose names become their external ids, and uploads another.
    pub(super) async fn enroll(
        site: &Site,
        collection: &str,
        sources: &Sources,
        people: usize,
    ) -> anyhow::Result<Self> {
        let mut bodies = Vec::new();
        for (person, [enrolled, probe]) in sources.pairs(people) {
            let upload = site.upload(collection, enrolled).await?;
            let body = json!({
                "image": { "upload_id": upload }, "person": { "external_id": person, "name": person }, "face": "center",
            });
            site.job(&format!("/v1/collections/{collection}/enroll"), &body).await?;
            let upload = site.upload(collection, probe).await?;
            bodies.push(json!({ "image": { "upload_id": upload } }));
        }
        anyhow::ensure!(!bodies.is_empty(), "there are not two pictures of anybody; take more");
        Ok(Self { path: format!("/v1/collections/{collection}/identify"), bodies })
    }

    /// Begins to ask.
    pub(super) fn begin(self: &Arc<Self>, client: &Client) -> Traffic {
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        for first in 0..AT_ONCE {
            let (probes, client, stop) = (Arc::clone(self), client.clone(), stop.clone());
            running.spawn(async move { probes.asked(&client, &stop, first).await });
        }
        Traffic { stop, running }
    }

    async fn asked(&self, client: &Client, stop: &CancellationToken, first: usize) -> (usize, Vec<(usize, Answer)>) {
        let (mut errors, mut answers) = (0, Vec::new());
        for n in (0..self.bodies.len()).cycle().skip(first * self.bodies.len() / AT_ONCE) {
            if stop.is_cancelled() {
                break;
            }
            match ask(client, &self.path, &self.bodies[n]).await {
                Ok(answer) => answers.push((n, answer)),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "an identify request was not answered well");
                    errors += 1;
                }
            }
        }
        (errors, answers)
    }
}

impl Expected {
    /// Notes what the collection's present pipeline answers; nobody must change it meanwhile.
    pub(super) async fn note(&mut self, client: &Client, probes: &Probes) -> anyhow::Result<()> {
        let (mut all, mut pipeline) = (Vec::new(), String::new());
        for body in &probes.bodies {
            let answer = ask(client, &probes.path, body).await?;
            pipeline = answer.pipeline;
            all.push(answer.faces);
        }
        self.0.insert(pipeline, all);
        Ok(())
    }

    /// An error unless the two pipelines answer so differently that a mix of both would be seen.
    pub(super) fn ensure_differ(&self, [one, other]: [&str; 2]) -> anyhow::Result<()> {
        let of = |pipeline: &str| self.0.get(pipeline).with_context(|| format!("nobody was identified by {pipeline}"));
        // Who is found by neither is answered alike.
        let same = of(one)?.iter().zip(of(other)?).filter(|(one, other)| is_same(one, other)).count();
        anyhow::ensure!(
            same * 10 <= of(one)?.len(),
            "{one} and {other} give the same scores to {same} probes: no mix of them would be seen"
        );
        Ok(())
    }

    fn is(&self, probe: usize, answer: &Answer) -> bool {
        self.0.get(&answer.pipeline).is_some_and(|all| is_same(&all[probe], &answer.faces))
    }
}

impl Traffic {
    /// Stops it and compares each answer with what the pipeline that it names answers when all is quiet.
    pub(super) async fn end(mut self, expected: &Expected) -> anyhow::Result<Told> {
        self.stop.cancel();
        let mut told = Told::default();
        while let Some(ended) = self.running.join_next().await {
            let (errors, answers) = ended?;
            told.errors += errors;
            told.answers += answers.len();
            told.mixed += answers.iter().filter(|(probe, answer)| !expected.is(*probe, answer)).count();
        }
        anyhow::ensure!(told.answers > 0, "nobody was identified meanwhile; take more pictures");
        Ok(told)
    }
}

async fn ask(client: &Client, path: &str, body: &Value) -> anyhow::Result<Answer> {
    let job = client.post(path, body).await?;
    let id = job["id"].as_str().context("the server's job has no id")?;
    let job = client.get_when_ended(&format!("/v1/jobs/{id}"), 30).await?;
    anyhow::ensure!(job["state"] == "succeeded", "an identify job has not succeeded: {job}");
    let faces = job["result"]["faces"].as_array().context("an identify job has no faces")?;
    let face = |face: &Value| {
        let matches = face["matches"].as_array().into_iter().flatten();
        let matches = matches.filter_map(|m| Some((m["person_id"].as_str()?.to_owned(), m["score"].as_f64()?)));
        Face {
            decision: face["decision"].clone(),
            threshold: face["threshold"].as_f64().unwrap_or_default(),
            matches: matches.collect(),
        }
    };
    let pipeline = job["pipeline"].as_str().unwrap_or_default().to_owned();
    Ok(Answer { pipeline, faces: faces.iter().map(face).collect() })
}

fn is_same(one: &[Face], other: &[Face]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.is(other))
}

impl Face {
    fn is(&self, other: &Self) -> bool {
        let near = |one: f64, other: f64| (one - other).abs() < SAME_SCORE;
        // Persons whose scores are equal may stand in another order, and the last one may be another of them.
        let is_tied = |n: usize| {
            let (before, after) = (n.checked_sub(1).and_then(|n| self.matches.get(n)), self.matches.get(n + 1));
            after.is_none() || [before, after].into_iter().flatten().any(|m| near(m.1, self.matches[n].1))
        };
        let mut pairs = self.matches.iter().zip(&other.matches).enumerate();
        self.decision == other.decision
            && near(self.threshold, other.threshold)
            && self.matches.len() == other.matches.len()
            && pairs.all(|(n, (one, other))| near(one.1, other.1) && (one.0 == other.0 || is_tied(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_two_pipelines_is_seen() {
        let face = |decision: &str, threshold, matches: &[(&str, f64)]| Face {
            decision: json!(decision),
            threshold,
            matches: matches.iter().map(|(person, score)| ((*person).to_owned(), *score)).collect(),
        };
        let one = face("match", 0.4, &[("ann", 0.8), ("bob", 0.3), ("cy", 0.3), ("dan", 0.1)]);
        let tied = face("match", 0.4, &[("ann", 0.8), ("cy", 0.3), ("bob", 0.3), ("eve", 0.1)]);
        assert!(one.is(&tied));
        for other in [
            face("match", 0.5, &[("ann", 0.8), ("bob", 0.3), ("cy", 0.3), ("dan", 0.1)]),
            face("unknown", 0.4, &[("ann", 0.8), ("bob", 0.3), ("cy", 0.3), ("dan", 0.1)]),
            face("match", 0.4, &[("bob", 0.8), ("ann", 0.3), ("cy", 0.3), ("dan", 0.1)]),
            face("match", 0.4, &[("ann", 0.7), ("bob", 0.3), ("cy", 0.3), ("dan", 0.1)]),
            face("match", 0.4, &[("ann", 0.8)]),
        ] {
            assert!(!one.is(&other), "{other:?}");
        }
        assert!(!is_same(std::slice::from_ref(&one), &[]));
    }
}
