//! Faults under load, and a checker of the history: what was acknowledged ends, once, whatever fails meanwhile.
//!
//! Every job stores the one face of a picture of its own, some under a person of their own, some in a batch, so that effects
//! can be counted. `make faults` runs it with more jobs and shows the table.

mod checker;
mod hands;
pub(crate) mod history;
pub(crate) mod load;
pub(crate) mod rig;
pub(crate) mod tally;

use std::time::{Duration, Instant};

use services::s3::Fault;

use self::load::{Batch, Kind, Load};
use self::rig::Rig;
use self::tally::Report;

/// Jobs of each fault in an ordinary run; a third of them are a batch's.
const JOBS: usize = 24;
/// Longest wait for the jobs of one fault to end.
const PATIENCE: Duration = Duration::from_secs(180);

/// The same load under one fault after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_ends_once() {
    let jobs = jobs_of_each_fault();
    let mut report = Report::begin(FAULTS.len());
    let mut rig = Rig::start(&[]).await;
    for (number, fault) in FAULTS.iter().enumerate() {
        let began = Instant::now();
        let batch = Batch::put(&rig, number, jobs / 3).await;
        let singles = jobs - batch.pictures;
        let load = Load::begin(&rig, number, singles, &[Kind::Enroll, Kind::Index]);
        load.reached(singles / 2).await;
        let batch = (batch.post(&rig).await, batch.pictures);
        (fault.happen)(&mut rig).await;
        let taken = load.end().await;
        rig.heal().await;
        let tally = rig.check(jobs, &taken, Some(batch), PATIENCE).await;
        report.add(fault.name, &tally, began.elapsed().as_secs_f64());
    }
    let total = report.total;
    let bad = (total.lost, total.found.doubled, total.unfinished, total.found.stale_writes);
    let text = report.save(false);
    assert_eq!(bad, (0, 0, 0, 0), "\n{text}{}", rig.logs());
    assert_eq!(total.completed, total.acknowledged, "\n{text}");
    assert!(total.acknowledged >= FAULTS.len() * jobs * 9 / 10, "hardly anything was acknowledged\n{text}");
    assert_eq!(rig.open(PATIENCE).await, 0, "what was never acknowledged has ended too\n{text}");
    assert_eq!(rig.wrong_accounts().await, "", "each batch knows what became of its jobs\n{text}");
    rig.stop().await;
    report.save(true);
}

#[expect(clippy::disallowed_methods, reason = "it is no setting of the program")]
fn jobs_of_each_fault() -> usize {
    std::env::var("FAULT_JOBS").map_or(JOBS, |n| n.parse().unwrap())
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
    "database refuses results now and then" => |rig| rig.results_refused().await,
    "S3 answers 500 now and then" => |rig| rig.s3_for(Fault::Status { code: 500, every: 2 }, Duration::from_secs(4)).await,
    "S3 slow" => |rig| rig.s3_for(Fault::Slow(Duration::from_secs(1)), Duration::from_secs(4)).await,
    "S3 bodies cut short" => |rig| rig.s3_for(Fault::Truncate(100), Duration::from_secs(3)).await,
    "S3 gone" => |rig| rig.s3_for(Fault::Gone, Duration::from_secs(4)).await,
    "two dispatchers, two reapers" => |rig| rig.two_leaders().await,
    "leader stopped" => |rig| rig.stop_the_leader().await,
];
