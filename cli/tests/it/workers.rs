//! Several workers on one queue: they share it, one can be stopped at any time, and each tells how it is.

use std::collections::HashMap;
use std::time::Duration;

use crate::faults::load::Load;
use crate::faults::rig::Rig;

const JOBS: usize = 120;
/// A worker whose consumer is dead must say so within this time.
const RED_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_queue_and_tell_how_they_are() {
    let mut rig = Rig::start().await;
    let ended = "face_id_jobs_ended_total{kind=\"enroll\",state=\"succeeded\"}";

    let load = Load::begin(&rig, 0, JOBS);
    load.reached(JOBS / 2).await;
    let (one, two) = (rig.metric(0, ended).await, rig.metric(1, ended).await);
    assert!(one >= 5.0 && two >= 5.0, "both take part, not {one} and {two} jobs");
    rig.stop_worker(0).await;
    let taken = load.end().await;
    let tally = rig.check(0, JOBS, &taken, Duration::from_secs(60)).await;
    assert_eq!((tally.acknowledged, tally.completed, tally.doubled), (JOBS, JOBS, 0));
    let attempts = rig.jobs_by_attempt().await;
    let expected = HashMap::from([("succeeded 1".to_owned(), JOBS.to_string())]);
    assert_eq!(attempts, expected, "being stopped is no attempt");

    rig.until_ready_is(1, true, Duration::from_secs(5)).await;
    rig.rabbitmq.kill().await.unwrap();
    rig.until_ready_is(1, false, RED_WITHIN).await;
    rig.rabbitmq.restart().await.unwrap();
    rig.until_ready_is(1, true, Duration::from_secs(60)).await;
    let taken = Load::begin(&rig, 1, 10).end().await;
    assert_eq!(rig.check(1, 10, &taken, Duration::from_secs(60)).await.completed, 10, "it works again");
    rig.heal().await;
    rig.stop().await;
}
