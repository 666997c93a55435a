use proptest::prelude::*;

use super::*;

/// How the vectors of a gallery lie.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Random,
    /// Around a few centres, as the faces of one person do.
    Clustered,
    /// Few different ones, so that many scores are equal.
    Duplicate,
    /// Around the query, closer to each other than codes can tell apart.
    NearTheQuery,
    /// One component of 1, or components that are all as large: the longest and the shortest scales.
    Extreme,
    /// Each nearer to the query than the one before, so that every row is looked at.
    Rising,
}

/// xorshift32 (Marsaglia 2003).
struct Random(u32);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % n
    }

    fn vector(&mut self, dimension: usize) -> Vec<f32> {
        (0..dimension).map(|_| (0..4).map(|_| self.below(10_001) as f32 / 5_000.0 - 1.0).sum()).collect()
    }

    /// `centre` with noise of `spread` a component.
    fn near(&mut self, centre: &[f32], spread: f32) -> Vec<f32> {
        self.vector(centre.len()).iter().zip(centre).map(|(v, c)| c + spread * v).collect()
    }
}

fn unit(mut values: Vec<f32>) -> Embedding {
    if values.iter().all(|v| *v == 0.0) {
        values[0] = 1.0;
    }
    Embedding::normalised(values).unwrap()
}

/// As a pipeline with that metric makes them: far from zero, and of their own lengths, where these are compared.
fn made(metric: Metric, values: Vec<f32>) -> Embedding {
    match metric {
        Metric::Cosine => unit(values),
        Metric::Euclidean => Embedding::as_given(values.into_iter().map(|v| 3.0 * v + 40.0).collect()).unwrap(),
    }
}

fn vectors(metric: Metric, lie: Lie, count: usize, query: &[f32], random: &mut Random) -> Vec<Embedding> {
    let dimension = query.len();
    let centres: Vec<_> = (0..5).map(|_| random.vector(dimension)).collect();
    let vector = |n: usize| match lie {
        Lie::Random => random.vector(dimension),
        Lie::Clustered => {
            let centre = random.below(5);
            random.near(&centres[centre], 0.3)
        }
        Lie::Duplicate => centres[random.below(5)].clone(),
        Lie::NearTheQuery => random.near(query, 1e-5),
        Lie::Extreme if n.is_multiple_of(2) => {
            let one = random.below(dimension);
            (0..dimension).map(|i| if i == one { 1.0 } else { 0.0 }).collect()
        }
        Lie::Extreme => (0..dimension).map(|_| if random.below(2) == 0 { 1.0 } else { -1.0 }).collect(),
        Lie::Rising => random.near(query, 2.0 - 2.0 * n as f32 / count as f32),
    };
    (0..count).map(vector).map(|values| made(metric, values)).collect()
}

/// What the search promises, worked out plainly.
fn scan(faces: &[(FaceId, PersonId, Embedding)], score: impl Fn(&Embedding) -> f32, k: usize) -> Vec<Hit> {
    let mut hits: Vec<_> =
        faces.iter().map(|(face, person, v)| Hit { person: *person, face: *face, score: score(v) }).collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.face.cmp(&b.face)));
    let mut seen = std::collections::HashSet::new();
    hits.retain(|hit| seen.insert(hit.person));
    hits.truncate(k);
    hits
}

/// A score in f64, worked out plainly.
fn plain_score(a: &Embedding, b: &Embedding, metric: Metric) -> f64 {
    let pairs = a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    match metric {
        Metric::Cosine => pairs.map(|(a, b)| a * b).sum(),
        Metric::Euclidean => 1.0 - pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt(),
    }
}

/// How far each row's bound lies above its score.
fn excess(rows: &Rows, kernel: Kernel, query: &[f32]) -> Vec<f32> {
    let search = rows.search(query, 1);
    let mut excess = Vec::new();
    for (n, vectors) in rows.vectors.chunks(BLOCK_ROWS * query.len()).enumerate() {
        let (first, count) = (n * BLOCK_ROWS, vectors.len() / query.len());
        let mut upper = vec![f32::NAN; count];
        rows.upper_bounds(kernel, &search, first..first + count, &mut upper);
        let scores = vectors.chunks(query.len()).map(|vector| rows.score(kernel, query, vector));
        excess.extend(upper.iter().zip(scores).map(|(upper, score)| upper - score));
    }
    excess
}

fn lie() -> impl Strategy<Value = Lie> {
    use Lie::{Clustered, Duplicate, Extreme, NearTheQuery, Random, Rising};
    prop::sample::select(vec![Random, Clustered, Duplicate, NearTheQuery, Extreme, Rising])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn finds_what_a_plain_scan_finds(
        metric in prop::sample::select(vec![Metric::Cosine, Metric::Euclidean]),
        lie in lie(),
        dimension in prop_oneof![Just(1usize), Just(2), Just(64), Just(100), Just(128), Just(512), 1usize..200],
        count in 0usize..700,
        persons in prop_oneof![1usize..8, 300usize..800],
        removed in prop_oneof![Just(0usize), 1usize..40, Just(700)],
        k in 0usize..25,
        seed in 1u32..,
    ) {
        let random = &mut Random(seed);
        let query = random.vector(dimension);
        let persons: Vec<_> = (0..persons).map(|_| PersonId::new()).collect();
        let mut rows = Rows::new(metric);
        let mut faces = Vec::new();
        for vector in vectors(metric, lie, count, &query, random) {
            let (face, person) = (FaceId::new(), persons[random.below(persons.len())]);
            rows.add(face, person, &vector).unwrap();
            faces.push((face, person, vector));
        }
        for _ in 0..removed.min(count) {
            let (face, ..) = faces.swap_remove(random.below(faces.len()));
            rows.remove(face);
        }
        let mut faces_of: HashMap<PersonId, usize> = HashMap::new();
        for (_, person, _) in &faces {
            *faces_of.entry(*person).or_default() += 1;
        }
        let means = faces_of.values().filter(|faces| **faces >= template::FEWEST).count();
        prop_assert_eq!(rows.size(), GallerySize { persons: faces_of.len(), faces: faces.len(), means });
        let stored = faces.first().map(|(.., vector)| vector.clone());
        let queries = [Some(made(metric, query)), stored].into_iter().flatten().collect::<Vec<_>>();
        for kernel in Kernel::all() {
            let score = |query: &Embedding, vector: &Embedding| rows.score(kernel, query.as_slice(), vector.as_slice());
            let plain: Vec<_> = queries.iter().map(|query| scan(&faces, |vector| score(query, vector), k)).collect();
            let found = rows.best(kernel, &queries, k).unwrap();
            prop_assert_eq!(&found, &plain, "{:?}", kernel);
            for (query, hits) in queries.iter().zip(&found) {
                #[expect(clippy::cast_possible_truncation, reason = "compared within a bound")]
                let exact = scan(&faces, |vector| plain_score(query, vector, metric) as f32, k);
                for (hit, exact) in hits.iter().zip(&exact) {
                    let near = 1e-5 * (1.0 - exact.score).max(1.0);
                    prop_assert!((hit.score - exact.score).abs() < near, "{metric}: {hit:?} beside {exact:?}");
                }
            }
            for query in &queries {
                let excess = excess(&rows, kernel, query.as_slice());
                prop_assert!(excess.iter().all(|excess| *excess >= 0.0), "{kernel:?}: a score is above its bound");
            }
        }
    }
}

#[test]
fn bounds_are_close() {
    let random = &mut Random(7);
    let query = random.vector(128);
    for (metric, wide) in [(Metric::Cosine, 0.025), (Metric::Euclidean, 1.5)] {
        let mut rows = Rows::new(metric);
        for vector in vectors(metric, Lie::Random, 2_000, &query, random) {
            rows.add(FaceId::new(), PersonId::new(), &vector).unwrap();
        }
        let query = made(metric, query.clone());
        let widest = excess(&rows, Kernel::new(), query.as_slice()).into_iter().fold(0.0, f32::max);
        assert!(widest < wide, "{metric}: a bound is {widest} above its score");
    }
}

#[test]
fn refuses_another_dimension_until_it_is_empty() {
    let mut rows = Rows::default();
    let face = FaceId::new();
    rows.add(face, PersonId::new(), &unit(vec![1.0, 2.0])).unwrap();
    let other = unit(vec![1.0; 200]);
    assert!(rows.add(FaceId::new(), PersonId::new(), &other).is_err());
    assert!(rows.best(Kernel::new(), std::slice::from_ref(&other), 1).is_err());
    rows.remove(face);
    rows.add(face, PersonId::new(), &other).unwrap();
    assert_eq!(rows.best(Kernel::new(), &[other], 1).unwrap()[0][0].face, face);
}
