//! Open-set identification (ISO/IEC 19795-1): some pictures of each person are enrolled, the others and strangers' are
//! looked up. TPIR is the share of the former whose person is named, FPIR the share of the latter for whom somebody is.

use serde::Serialize;
use shared::catalogue::{Calibration, Metric};
use shared::digest::sha256_hex;
use shared::embedding::Embedding;
use shared::face_index::GallerySize;
use shared::face_index::matches::{Match, nearest};
use shared::ids::{FaceId, PersonId};
use shared::template::{FEWEST, Template, most_by_mean};
use uuid::Uuid;

use crate::eval::calibration::allowed;

/// Share of strangers for whom somebody may be named.
const FPIR: f64 = 0.01;

/// Whose the enrolled faces are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Labels {
    /// Each is the person's whose it is said to be.
    Right,
    /// One of each person's is a stranger's of whom no other picture is looked up.
    OneWrong,
    /// One of each person's is a stranger's whose other pictures are looked up.
    OneWrongComes,
}

impl Labels {
    pub(super) const ALL: [Self; 3] = [Self::Right, Self::OneWrong, Self::OneWrongComes];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::OneWrong => "one wrong",
            Self::OneWrongComes => "one wrong, who comes too",
        }
    }
}

/// Everybody's vectors.
pub(super) struct People<'a> {
    pub(super) enrolled: &'a [Vec<Embedding>],
    pub(super) strangers: &'a [Vec<Embedding>],
    /// Enrolled of each.
    pub(super) faces: usize,
    pub(super) calibration: &'a Calibration,
    pub(super) metric: Metric,
}

/// Shares of 0..1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// At the threshold that one in a hundred of these strangers reaches.
    pub(super) tpir: f64,
    /// At the calibration's threshold for one in a hundred.
    pub(super) tpir_at_threshold: f64,
    pub(super) fpir_at_threshold: f64,
}

/// What one choice of faces gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) single: Rates,
    pub(super) template: Rates,
    pub(super) doubted_wrong: f64,
    pub(super) doubted_right: f64,
}

/// A person as it is enrolled.
struct Enrolled {
    id: PersonId,
    /// The newest first.
    faces: Vec<(FaceId, Embedding)>,
    template: Option<Template>,
    wrong: Option<FaceId>,
}

/// The best person for a face, by both rules.
#[derive(Clone, Copy)]
struct Best {
    single: Match,
    template: Match,
}

impl People<'_> {
    /// Chooses by the seed which faces are enrolled and which are wrong, and looks all others up.
    pub(super) fn run(&self, labels: Labels, seed: u32) -> Run {
        let mut strangers: Vec<(usize, usize)> = (0..self.strangers.len())
            .flat_map(|person| (0..self.strangers[person].len()).map(move |n| (person, n)))
            .collect();
        strangers.sort_by_key(|place| sha256_hex(format!("{seed} stranger {place:?}")));
        let wrong = if labels == Labels::Right { 0 } else { self.enrolled.len() };
        let came: Vec<(usize, usize)> = strangers.drain(..wrong).collect();
        if labels == Labels::OneWrong {
            strangers.retain(|(person, _)| came.iter().all(|(gone, _)| gone != person));
        }
        let (mut gallery, mut own) = (Vec::new(), Vec::new());
        for (person, vectors) in self.enrolled.iter().enumerate() {
            let mut order: Vec<usize> = (0..vectors.len()).collect();
            order.sort_by_key(|n| sha256_hex(format!("{seed} person {person} {n}")));
            let (chosen, others) = order.split_at(self.faces.min(order.len()));
            let wrong = came.get(person).map(|(stranger, n)| &self.strangers[*stranger][*n]);
            gallery.push(self.enroll(person, chosen.iter().map(|n| &vectors[*n]), wrong));
            own.extend(others.iter().map(|n| (gallery[person].id, &vectors[*n])));
        }
        let known: Vec<(PersonId, Best)> =
            own.iter().map(|(person, face)| (*person, best(&gallery, face, self.metric))).collect();
        let unknown: Vec<Best> =
            strangers.iter().map(|(person, n)| best(&gallery, &self.strangers[*person][*n], self.metric)).collect();
        let faces = gallery.iter().map(|person| person.faces.len()).sum();
        let means = gallery.iter().filter(|person| person.faces.len() >= FEWEST).count();
        let size = GallerySize { persons: gallery.len(), faces, means };
        let rates = |comparisons, of: fn(&Best) -> Match| {
            let known: Vec<(PersonId, Match)> = known.iter().map(|(person, best)| (*person, of(best))).collect();
            let unknown = unknown.iter().map(|best| of(best).score).collect();
            Rates::of(&known, unknown, self.calibration.threshold_for_gallery(FPIR, comparisons).score)
        };
        let (doubted_wrong, doubted_right) = doubted(&gallery);
        Run {
            single: rates(size.faces, |best| best.single),
            template: rates(size.comparisons(), |best| best.template),
            doubted_wrong,
            doubted_right,
        }
    }

    /// The last of the faces is the wrong one, if there is one.
    fn enroll<'a>(
        &self,
        person: usize,
        right: impl Iterator<Item = &'a Embedding>,
        wrong: Option<&'a Embedding>,
    ) -> Enrolled {
        let id = |n: usize| Uuid::from_u128((person * 1000 + n) as u128);
        let right: Vec<&Embedding> = right.collect();
        let kept = right.len() - usize::from(wrong.is_some()).min(right.len());
        let all = right.into_iter().take(kept).chain(wrong);
        let mut faces: Vec<(FaceId, Embedding)> = (0..).map(|n| FaceId(id(n))).zip(all.cloned()).collect();
        let wrong = wrong.and(faces.last()).map(|(face, _)| *face);
        faces.reverse();
        let template = Template::of(faces.clone(), self.calibration, self.metric);
        Enrolled { id: PersonId(id(0)), faces, template, wrong }
    }
}

fn best(gallery: &[Enrolled], face: &Embedding, metric: Metric) -> Best {
    let mut best: Option<Best> = None;
    for person in gallery {
        let Some(single) = nearest(face, person.id, &person.faces, metric).map(Match::of) else { continue };
        let Some(known) = &mut best else {
            let mut template = single;
            template.judge(face, person.template.as_ref());
            best = Some(Best { single, template });
            continue;
        };
        if single.score > known.single.score {
            known.single = single;
        }
        if most_by_mean(single.score, metric) > known.template.score {
            let mut template = single;
            template.judge(face, person.template.as_ref());
            if template.score > known.template.score {
                known.template = template;
            }
        }
    }
    best.expect("a gallery of nobody is refused; this is a bug: it was not")
}

/// The shares of wrong and of right labels that are doubted; 0 where there is none.
fn doubted(gallery: &[Enrolled]) -> (f64, f64) {
    let share = |doubted: usize, of: usize| if of == 0 { 0.0 } else { doubted as f64 / of as f64 };
    let all = gallery.iter().map(|person| person.faces.len()).sum::<usize>();
    let wrong = gallery.iter().filter(|person| person.wrong.is_some()).count();
    let doubts = |person: &Enrolled| person.template.iter().flat_map(Template::doubted).collect::<Vec<_>>();
    let of_all = gallery.iter().map(|person| doubts(person).len()).sum::<usize>();
    let of_wrong = gallery.iter().filter(|p| p.wrong.is_some_and(|wrong| doubts(p).contains(&wrong))).count();
    (share(of_wrong, wrong), share(of_all - of_wrong, all - wrong))
}

impl Rates {
    /// `known`: who each face is, and who was found; `unknown`: the best score of each stranger.
    fn of(known: &[(PersonId, Match)], mut unknown: Vec<f32>, threshold: f32) -> Self {
        unknown.sort_by(|a, b| b.total_cmp(a));
        // The best of those that may not be named: what is named is above it.
        let refused = usize::try_from(allowed(FPIR, unknown.len() as u64)).ok().and_then(|at| unknown.get(at));
        let refused = refused.copied().unwrap_or(f32::NEG_INFINITY);
        let named = |is_enough: &dyn Fn(f32) -> bool| {
            let right = known.iter().filter(|(person, found)| found.person == *person && is_enough(found.score));
            right.count() as f64 / known.len() as f64
        };
        Self {
            tpir: named(&|score| score > refused),
            tpir_at_threshold: named(&|score| score >= threshold),
            fpir_at_threshold: unknown.iter().filter(|score| **score >= threshold).count() as f64
                / unknown.len() as f64,
        }
    }

    pub(super) fn mean(all: impl Iterator<Item = Self>) -> Self {
        let all: Vec<Self> = all.collect();
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        Self {
            tpir: mean(|rates| rates.tpir),
            tpir_at_threshold: mean(|rates| rates.tpir_at_threshold),
            fpir_at_threshold: mean(|rates| rates.fpir_at_threshold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(person: u128, score: f32) -> Match {
        let (person, face) = (PersonId(Uuid::from_u128(person)), FaceId(Uuid::nil()));
        Match { person, score, face, face_score: score }
    }

    #[test]
    fn rates_by_hand() {
        let person = PersonId(Uuid::from_u128(1));
        let known =
            [(person, found(1, 0.9)), (person, found(1, 0.5)), (person, found(2, 0.9)), (person, found(1, 0.2))];
        // Of two hundred strangers two may be named; the third one's score is not enough.
        let unknown: Vec<f32> = [0.7, 0.6, 0.5].into_iter().chain([0.1; 197]).collect();
        let rates = Rates::of(&known, unknown.clone(), 0.15);
        assert_eq!(rates, Rates { tpir: 0.25, tpir_at_threshold: 0.75, fpir_at_threshold: 0.015 });
        let lower = [0.7, 0.6, 0.49].into_iter().chain([0.1; 197]).collect();
        assert!((Rates::of(&known, lower, 0.15).tpir - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_wrong_label_is_found_by_the_template_alone() {
        let calibration = Calibration {
            measured_on: "a test".to_owned(),
            far: vec![1e-1, 1e-2, 1e-3],
            score: vec![0.3, 0.5, 0.7],
            measured_far: None,
        };
        let axis = |at: usize| {
            let mut values = vec![0.0; 30];
            values[at] = 1.0;
            Embedding::normalised(values).unwrap()
        };
        let enrolled: Vec<Vec<Embedding>> = (0..5).map(|n| vec![axis(n); 5]).collect();
        let strangers: Vec<Vec<Embedding>> = (5..30).map(|n| vec![axis(n); 4]).collect();
        let (metric, calibration) = (Metric::Cosine, &calibration);
        let people = People { enrolled: &enrolled, strangers: &strangers, faces: 4, calibration, metric };
        let right = people.run(Labels::Right, 1);
        assert_eq!((right.single, right.template, right.doubted_right.to_bits()), (right.template, right.single, 0));
        let wrong = people.run(Labels::OneWrongComes, 1);
        assert!(wrong.single.fpir_at_threshold > 0.1 && wrong.template.fpir_at_threshold == 0.0, "{wrong:?}");
        assert!(wrong.single.tpir < 0.5 && wrong.template.tpir > 0.99, "{wrong:?}");
        assert_eq!([wrong.doubted_wrong, wrong.doubted_right].map(f64::to_bits), [1.0, 0.0].map(f64::to_bits));
        let gone = people.run(Labels::OneWrong, 1);
        assert_eq!((gone.single.tpir.to_bits(), gone.single.fpir_at_threshold.to_bits()), (1f64.to_bits(), 0));
    }
}
