//! Faults under load, and a checker of the history: what was acknowledged ends, once, whatever fails meanwhile.
//!
//! Every job enrolls a person of its own, so its effect can be counted: one person with one face. `make faults` runs it
//! with more jobs and shows the table.

pub(crate) mod load;
pub(crate) mod rig;

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;
use services::s3::Fault;

use self::load::Load;
use self::rig::Rig;

/// Jobs of each fault in an ordinary run.
const JOBS: usize = 24;
/// Longest wait for the jobs of one fault to end.
const PATIENCE: Duration = Duration::from_secs(180);

/// What became of the jobs of one fault.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) attempted: usize,
    pub(crate) acknowledged: usize,
    /// Succeeded, with its effect.
    pub(crate) completed: usize,
    /// Acknowledged, and then unknown, or ended otherwise than well.
    pub(crate) lost: usize,
    /// Effects beyond one a job.
    pub(crate) doubled: usize,
    /// Neither ended nor lost when patience was over.
    pub(crate) unfinished: usize,
    /// Answers that name what is not there: somebody wrote over somebody else's end.
    pub(crate) stale_writes: usize,
}

/// The same load under one fault after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_ends_once() {
    let jobs = jobs_of_each_fault();
    let mut rig = Rig::start().await;
    let mut report = String::new();
    let titles = [
        ("attempted", 10),
        ("acknowl.", 10),
        ("completed", 10),
        ("lost", 6),
        ("doubled", 9),
        ("unfinished", 12),
        ("stale", 7),
        ("seconds", 9),
    ];
    write!(report, "{:<40}", "fault").unwrap();
    for (title, width) in titles {
        write!(report, "{title:>width$}").unwrap();
    }
    report.push('\n');
    let mut total = Tally::default();
    for (number, fault) in FAULTS.iter().enumerate() {
        let began = std::time::Instant::now();
        let load = Load::begin(&rig, number, jobs);
        load.reached(jobs / 3).await;
        (fault.happen)(&mut rig).await;
        let acknowledged = load.end().await;
        rig.heal().await;
        let tally = rig.check(number, jobs, &acknowledged, PATIENCE).await;
        writeln!(
            report,
            "{:<40}{:>10}{:>10}{:>10}{:>6}{:>9}{:>12}{:>7}{:>9.1}",
            fault.name,
            tally.attempted,
            tally.acknowledged,
            tally.completed,
            tally.lost,
            tally.doubled,
            tally.unfinished,
            tally.stale_writes,
            began.elapsed().as_secs_f64()
        )
        .unwrap();
        total.add(&tally);
    }
    let summary = json!({
        "attempted": total.attempted, "acknowledged": total.acknowledged, "completed": total.completed,
        "lost": total.lost, "doubled": total.doubled, "unfinished": total.unfinished, "stale_writes": total.stale_writes,
    });
    writeln!(report, "{summary}").unwrap();
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/faults.txt"), &report).unwrap();
    let bad = (total.lost, total.doubled, total.unfinished, total.stale_writes);
    assert_eq!(bad, (0, 0, 0, 0), "\n{report}{}", rig.logs());
    assert_eq!(total.completed, total.acknowledged, "\n{report}");
    assert!(total.acknowledged >= FAULTS.len() * jobs * 9 / 10, "hardly anything was acknowledged\n{report}");
    rig.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "it is no setting of the program")]
fn jobs_of_each_fault() -> usize {
    std::env::var("FAULT_JOBS").map_or(JOBS, |n| n.parse().unwrap())
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.attempted += other.attempted;
        self.acknowledged += other.acknowledged;
        self.completed += other.completed;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.unfinished += other.unfinished;
        self.stale_writes += other.stale_writes;
    }
}

type Happening<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

struct FaultCase {
    name: &'static str,
    happen: for<'a> fn(&'a mut Rig) -> Happening<'a>,
}

macro_rules! faults {
    ($($name:literal => |$rig:ident| $happen:expr),* $(,)?) => {
        &[$(FaultCase { name: $name, happen: |$rig| Box::pin(async move { $happen; }) }),*]
    };
}

const FAULTS: &[FaultCase] = faults![
    "worker killed before claim" => |rig| rig.worker_that_dies_at("before_claim:2").await,
    "worker killed after claim" => |rig| rig.worker_that_dies_at("after_claim:2").await,
    "worker killed in mid inference" => |rig| rig.worker_that_dies_at("mid_inference:2").await,
    "worker killed before commit" => |rig| rig.worker_that_dies_at("before_commit:2").await,
    "worker killed after commit, before ack" => |rig| rig.worker_that_dies_at("after_commit:2").await,
    "worker killed from outside" => |rig| rig.kill_worker().await,
    "worker stopped past its lease, goes on" => |rig| rig.zombie().await,
    "api killed between commit and publish" => |rig| rig.api_that_dies_at("after_submit:2").await,
    "broker restarted" => |rig| rig.rabbitmq.restart().await.unwrap(),
    "broker killed, same data" => |rig| { rig.rabbitmq.kill().await.unwrap(); rig.rabbitmq.restart().await.unwrap() },
    "broker killed, data wiped" => |rig| rig.rabbitmq.wipe().await.unwrap(),
    "broker out of memory for 5 s" => |rig| rig.memory_alarm(Duration::from_secs(5)).await,
    "database crashed, restarted" => |rig| { rig.postgres.crash().await.unwrap(); rig.postgres.restart().await.unwrap() },
    "database sessions terminated" => |rig| rig.terminate_sessions().await,
    "S3 answers 500 now and then" => |rig| rig.s3_for(Fault::Status { code: 500, every: 2 }, Duration::from_secs(4)).await,
    "S3 slow" => |rig| rig.s3_for(Fault::Slow(Duration::from_secs(1)), Duration::from_secs(4)).await,
    "S3 bodies cut short" => |rig| rig.s3_for(Fault::Truncate(100), Duration::from_secs(3)).await,
    "S3 gone" => |rig| rig.s3_for(Fault::Gone, Duration::from_secs(4)).await,
    "two dispatchers, two reapers" => |rig| rig.two_leaders().await,
    "leader stopped" => |rig| rig.stop_the_leader().await,
];
