//! Several workers on one queue: they share it, one can be stopped at any time, and each tells how it is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use services::s3::Fault;

use crate::faults::history::Found;
use crate::faults::load::{Batch, Kind, Load};
use crate::faults::rig::Rig;
use crate::server::{Server, Site, until_ready_is};

const JOBS: usize = 120;
/// Three messages.
const BATCH_JOBS: usize = 160;
/// A stopping worker waits this long for its jobs, and `STOPPED_WITHIN` is far below what it waits by default.
const GRACE_S: &str = "0.5";
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// A worker whose consumer is dead must say so within this time.
const RED_WITHIN: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_queue_and_tell_how_they_are() {
    let mut rig = Rig::start(&[("FACE_ID_WORKER__GRACE_S", GRACE_S)]).await;
    one_of_two_is_stopped(&mut rig).await;
    rig.heal().await;
    one_of_two_is_stopped_in_mid_batch(&mut rig).await;
    rig.heal().await;
    a_lost_broker_is_told(&mut rig).await;
    rig.stop().await;
}

async fn one_of_two_is_stopped(rig: &mut Rig) {
    let ended = "face_id_jobs_ended_total{kind=\"enroll\",state=\"succeeded\"}";
    let load = Load::begin(rig, 0, JOBS, &[Kind::Enroll]);
    load.reached(JOBS / 2).await;
    let (one, two) = (rig.metric(0, ended).await, rig.metric(1, ended).await);
    assert!(one >= 5.0 && two >= 5.0, "both take part, not {one} and {two} jobs");
    rig.stop_worker(0).await;
    all_ended_at_once(rig, &load.end().await, None, JOBS).await;
}

/// Pictures come so slowly that the stopped worker can only give back what it holds.
async fn one_of_two_is_stopped_in_mid_batch(rig: &mut Rig) {
    let batch = Batch::put(rig, 1, BATCH_JOBS).await;
    let batch = (batch.post(rig).await, batch.pictures);
    rig.s3.faults().set(Fault::Slow(Duration::from_secs(1)));
    let (began, mut most) = (Instant::now(), 0);
    loop {
        let (one, two) = (rig.running(0).await, rig.running(1).await);
        most = most.max(one);
        if one < most && one >= 10 && two > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "never did both have a part of the batch: {one} of {most}, {two}");
    }
    let before = rig.given_back().await;
    let took = rig.stop_worker(0).await;
    assert!(took < STOPPED_WITHIN, "it has {GRACE_S} s to end, and took {took:?}");
    assert!(rig.given_back().await > before, "it gave jobs back");
    rig.s3.faults().set(Fault::None);
    all_ended_at_once(rig, &[], Some(batch), JOBS + BATCH_JOBS).await;
}

/// All of a load was done, and of all jobs so far, `jobs`, each in its first attempt: being stopped is none.
async fn all_ended_at_once(rig: &mut Rig, taken: &[String], batch: Option<(String, usize)>, jobs: usize) {
    let tally = rig.check(jobs, taken, batch, PATIENCE).await;
    assert_eq!((tally.completed, tally.found), (tally.acknowledged, Found::default()));
    assert_eq!(rig.jobs_by_attempt().await, HashMap::from([("succeeded 1".to_owned(), jobs)]));
}

async fn a_lost_broker_is_told(rig: &mut Rig) {
    rig.until_ready_is(1, true, Duration::from_secs(5)).await;
    rig.rabbitmq.kill().await.unwrap();
    rig.until_ready_is(1, false, RED_WITHIN).await;
    rig.rabbitmq.restart().await.unwrap();
    rig.until_ready_is(1, true, PATIENCE).await;
    let taken = Load::begin(rig, 2, 10, &[Kind::Enroll]).end().await;
    assert_eq!(rig.check(10, &taken, None, PATIENCE).await.completed, 10, "it works again");
    rig.heal().await;
}

#[tokio::test]
async fn a_consumer_that_stands_still_is_told() {
    let site = Site::services().await;
    let file = site.folder().join("stand-still");
    let variables = [("FACE_ID_STAND_STILL_AT", &*format!("consumer={}", file.display()))];
    let server = Server::start_with(&site, &variables).await;
    let probes = server.probes.as_deref().unwrap();
    until_ready_is(probes, true, PATIENCE).await;
    std::fs::write(&file, "").unwrap();
    let said = until_ready_is(probes, false, RED_WITHIN).await;
    assert!(said.contains("has not looked for work"), "{said}");
    let health = reqwest::Client::builder().no_proxy().build().unwrap().get(format!("{probes}/healthz")).send().await;
    assert!(health.unwrap().status().is_success(), "the process lives");
    std::fs::remove_file(&file).unwrap();
    until_ready_is(probes, true, PATIENCE).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    server.stop().await;
}
