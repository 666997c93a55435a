//! How much waits for workers, and when that is too much to take more.
//!
//! Each pipeline has a backlog of its own: one that no worker takes must not close the others. It is counted once a second;
//! what this process accepts meanwhile is added, what others accept is seen a second later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shared::config::ServerConfig;
use shared::db::jobs::waiting::{Waiting, waiting};
use shared::job::Lane;
use shared::telemetry::metrics;
use tokio::time::MissedTickBehavior;

use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// How often it is counted.
const EVERY: Duration = Duration::from_secs(1);
/// A count is believed for this long: where the database does not answer, submissions fail of themselves.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
/// The longest that one count may take.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pace is that of so many last counts.
const PACE_OVER: usize = 10;
/// Bulk jobs are refused from this part of what may wait on, so that interactive ones find room.
const BULK_SHARE: u64 = 2;
/// What `Retry-After` says at least and at most.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(600)];

/// See the module.
#[derive(Debug)]
pub struct Backlog {
    most: Limits,
    counted: Mutex<Counted>,
}

/// What may wait; 0 is no limit.
#[derive(Clone, Copy, Debug)]
struct Limits {
    jobs: u64,
    age: Duration,
}

#[derive(Debug, Default)]
struct Counted {
    lines: HashMap<String, Line>,
    /// How many jobs ended before each of the last counts, and since the count before it.
    ended: VecDeque<(u64, Duration)>,
    at: Option<Instant>,
}

/// What waits of a pipeline.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    interactive: Waiting,
    bulk: Waiting,
    /// Jobs that this process is about to make.
    admitted: u64,
    /// Those that it has made since.
    made: u64,
}

impl Backlog {
    /// With the limits of the settings; nothing is refused before the first count.
    pub fn configured(server: &ServerConfig) -> Self {
        let most = Limits { jobs: server.max_queued_jobs, age: Duration::from_secs(server.max_queue_age_s) };
        Self { most, counted: Mutex::default() }
    }

    /// Has a job count that is about to be made, or refuses it.
    ///
    /// # Errors
    /// Too much waits of its pipeline.
    pub fn admit<'a>(&'a self, pipeline: &'a str, lane: Lane) -> ApiResult<Admission<'a>> {
        let mut counted = self.lock();
        self.judge(&counted, pipeline, lane)?;
        counted.change(pipeline, |line| line.admitted += 1);
        Ok(Admission { backlog: self, pipeline })
    }

    /// Refuses what would make bulk jobs of its own, as a batch does.
    ///
    /// # Errors
    /// Too much waits of its pipeline.
    pub fn check_bulk(&self, pipeline: &str) -> ApiResult<()> {
        self.judge(&self.lock(), pipeline, Lane::Bulk)
    }

    fn judge(&self, counted: &Counted, pipeline: &str, lane: Lane) -> ApiResult<()> {
        let is_believed = counted.at.is_some_and(|at| at.elapsed() < BELIEVED_FOR);
        let Some(line) = counted.lines.get(pipeline).filter(|_| is_believed) else { return Ok(()) };
        let Err(full) = self.most.judge(line, lane) else { return Ok(()) };
        metrics::job_refused(lane, full.code());
        Err(full.refusal(counted.until_done(line)))
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // Whoever panicked while holding it left whole numbers behind.
        self.counted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A job that may be made; it counts as waiting as long as this is there.
#[derive(Debug)]
pub struct Admission<'a> {
    backlog: &'a Backlog,
    pipeline: &'a str,
}

impl Admission<'_> {
    /// It was made.
    pub fn made(self) {
        self.backlog.lock().change(self.pipeline, |line| line.made += 1);
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.backlog.lock().change(self.pipeline, |line| line.admitted = line.admitted.saturating_sub(1));
    }
}

/// Why nothing more is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    /// Too much for bulk jobs.
    ForBulk,
    /// Too much for any.
    ForAll,
}

impl Full {
    fn code(self) -> &'static str {
        match self {
            Self::ForBulk => "bulk_queue_full",
            Self::ForAll => "queue_full",
        }
    }

    fn refusal(self, wait: Duration) -> ApiError {
        match self {
            Self::ForBulk => {
                let detail = "too many jobs wait, so that bulk work (index, batches) is not taken; send it again after Retry-After";
                ApiError::too_many(self.code(), detail, wait)
            }
            Self::ForAll => {
                let detail = "too many jobs wait, or have waited for too long; send it again after Retry-After";
                ApiError::overloaded(self.code(), detail, wait)
            }
        }
    }
}

impl Limits {
    fn judge(self, line: &Line, lane: Lane) -> Result<(), Full> {
        let depth = line.depth();
        // Bulk jobs may wait long while interactive ones do not.
        let any_age = line.interactive.oldest.max(line.bulk.oldest);
        if self.is_over(depth, line.interactive.oldest, 1) {
            return Err(Full::ForAll);
        }
        if lane == Lane::Bulk && self.is_over(depth, any_age, BULK_SHARE) {
            return Err(Full::ForBulk);
        }
        Ok(())
    }

    /// Whether that is at or over one part of so many of the limits.
    fn is_over(self, depth: u64, age: Duration, parts: u64) -> bool {
        let too_many = self.jobs > 0 && depth >= self.jobs / parts;
        too_many || (!self.age.is_zero() && age.as_secs() >= self.age.as_secs() / parts)
    }
}

impl Line {
    fn depth(&self) -> u64 {
        self.interactive.jobs + self.bulk.jobs + self.admitted + self.made
    }
}

impl Counted {
    /// How long it takes, at the pace of late, until what waits has ended.
    fn until_done(&self, line: &Line) -> Duration {
        let (ended, took) =
            self.ended.iter().fold((0, Duration::ZERO), |(n, time), (ended, took)| (n + ended, time + *took));
        let [least, most] = RETRY_AFTER;
        if ended == 0 {
            return most;
        }
        let seconds = line.depth() as f64 * took.as_secs_f64() / ended as f64;
        Duration::from_secs_f64(seconds.clamp(least.as_secs_f64(), most.as_secs_f64()))
    }

    fn change(&mut self, pipeline: &str, change: impl FnOnce(&mut Line)) {
        if let Some(line) = self.lines.get_mut(pipeline) {
            change(line);
        }
    }

    /// What was made of each pipeline until a count began: the count has it.
    fn made(&self) -> HashMap<String, u64> {
        self.lines.iter().map(|(pipeline, line)| (pipeline.clone(), line.made)).collect()
    }

    fn take(
        &mut self,
        pipelines: &[&str],
        found: &[Waiting],
        (ended, took): (u64, Duration),
        made: &HashMap<String, u64>,
    ) {
        for (pipeline, lanes) in pipelines.iter().zip(found.chunks_exact(LANES.len())) {
            let line = self.lines.entry((*pipeline).to_owned()).or_default();
            (line.interactive, line.bulk) = (lanes[0], lanes[1]);
            line.made -= made.get(*pipeline).copied().unwrap_or_default().min(line.made);
        }
        self.at = Some(Instant::now());
        self.ended.push_back((ended, took));
        if self.ended.len() > PACE_OVER {
            self.ended.pop_front();
        }
    }
}

const LANES: [Lane; 2] = [Lane::Interactive, Lane::Bulk];

/// Counts once a second, until the state's `stop`.
pub(crate) async fn watch(state: AppState) {
    let mut finished = state.finished.listen();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut ended, mut since) = (0, Instant::now());
    loop {
        tokio::select! {
            () = state.stop.cancelled() => break,
            more = finished.some() => ended += more,
            _ = every.tick() => match tokio::time::timeout(COUNT_TIMEOUT, count(&state, ended, since)).await {
                Ok(Ok(())) => (ended, since) = (0, Instant::now()),
                Ok(Err(error)) => tracing::warn!(%error, "count the jobs that wait"),
                Err(_) => tracing::warn!("counting the jobs that wait took too long"),
            },
        }
    }
}

async fn count(state: &AppState, ended: u64, since: Instant) -> Result<(), sea_orm::DbErr> {
    let catalogue = state.models.now();
    let pipelines: Vec<&str> = catalogue.pipelines().map(|pipeline| pipeline.name.as_str()).collect();
    let lines: Vec<(&str, Lane)> = pipelines.iter().flat_map(|pipeline| LANES.map(|lane| (*pipeline, lane))).collect();
    let most = state.backlog.most.jobs;
    let made = state.backlog.lock().made();
    let found = waiting(&state.db, &lines, if most == 0 { UNLIMITED } else { most }).await?;
    for ((pipeline, lane), Waiting { jobs, oldest }) in lines.iter().zip(&found) {
        metrics::waiting(pipeline, *lane, *jobs, *oldest);
    }
    state.backlog.lock().take(&pipelines, &found, (ended, since.elapsed()), &made);
    Ok(())
}

/// So many are counted at most where no limit asks for it: for the metrics.
const UNLIMITED: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(jobs: u64, age: u64) -> Waiting {
        Waiting { jobs, oldest: Duration::from_secs(age) }
    }

    #[test]
    fn bulk_jobs_are_refused_before_interactive_ones() {
        let most = Limits { jobs: 10, age: Duration::from_secs(60) };
        let judged = |interactive, bulk, made| {
            let line = Line { interactive, bulk, made, admitted: 0 };
            (most.judge(&line, Lane::Interactive), most.judge(&line, Lane::Bulk))
        };
        let (free, half, full) =
            ((Ok(()), Ok(())), (Ok(()), Err(Full::ForBulk)), (Err(Full::ForAll), Err(Full::ForAll)));
        assert_eq!(judged(waits(2, 29), waits(2, 29), 0), free);
        assert_eq!(judged(waits(2, 0), waits(2, 0), 1), half, "what was accepted since counts");
        assert_eq!(judged(waits(0, 30), waits(0, 0), 0), half);
        assert_eq!(judged(waits(0, 0), waits(1, 1000), 0), half, "bulk jobs may wait while nobody else does");
        assert_eq!(judged(waits(5, 0), waits(5, 0), 0), full);
        assert_eq!(judged(waits(1, 60), waits(0, 0), 0), full);
        let unlimited = Limits { jobs: 0, age: Duration::ZERO };
        let line = Line { interactive: waits(1_000_000, 1_000_000), ..Line::default() };
        assert_eq!(unlimited.judge(&line, Lane::Bulk), Ok(()));
    }

    #[test]
    fn what_is_made_while_it_is_counted_is_not_forgotten() {
        let backlog = Backlog { most: Limits { jobs: 3, age: Duration::ZERO }, counted: Mutex::default() };
        let count = |jobs, made: &HashMap<String, u64>| {
            backlog.lock().take(&["tiny"], &[waits(jobs, 0), waits(0, 0)], (0, Duration::from_secs(1)), made);
        };
        let depth = || backlog.lock().lines["tiny"].depth();
        count(0, &HashMap::new());
        backlog.admit("tiny", Lane::Interactive).unwrap().made();
        let before = backlog.lock().made();
        let admitted = backlog.admit("tiny", Lane::Interactive).unwrap();
        backlog.admit("tiny", Lane::Interactive).unwrap().made();
        assert!(backlog.admit("tiny", Lane::Interactive).is_err(), "three are there or about to be");
        count(1, &before);
        assert_eq!(depth(), 3, "one counted, one made since, one about to be");
        drop(admitted);
        assert_eq!(depth(), 2, "it was not made");
    }

    #[test]
    fn the_wait_follows_from_depth_and_pace() {
        let mut counted = Counted::default();
        let line = Line { interactive: waits(300, 0), ..Line::default() };
        assert_eq!(counted.until_done(&line), RETRY_AFTER[1], "nothing ends");
        for _ in 0..3 {
            counted.take(&["tiny"], &[waits(300, 0), waits(0, 0)], (10, Duration::from_secs(1)), &HashMap::new());
        }
        assert_eq!(counted.until_done(&line), Duration::from_secs(30));
        assert_eq!(counted.until_done(&Line::default()), RETRY_AFTER[0]);
        for _ in 0..PACE_OVER {
            counted.take(&["tiny"], &[waits(300, 0), waits(0, 0)], (100, Duration::from_secs(1)), &HashMap::new());
        }
        assert_eq!(counted.until_done(&line), Duration::from_secs(3), "of late it went faster");
        let endless = Line { interactive: waits(1_000_000, 0), ..Line::default() };
        assert_eq!(counted.until_done(&endless), RETRY_AFTER[1]);
    }
}
