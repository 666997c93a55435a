//! The hands that break the rig.

use std::time::Duration;

use rustix::process::Signal;
use services::s3::Fault;
use tokio::time::Instant;

use super::load::{Batch, Kind, Load};
use super::rig::{DATABASE, LEASE, Rig, START_TIMEOUT, next_log, signal, start};

/// A leader keeps its role for ten seconds.
const LEADERSHIP: Duration = Duration::from_secs(13);

impl Rig {
    /// Replaces the workers by one that dies at a point of its work, and waits until it has.
    pub(crate) async fn worker_that_dies_at(&mut self, point: &str) {
        for worker in &self.workers {
            signal(&worker.child, Signal::TERM);
        }
        for worker in &mut self.workers {
            tokio::time::timeout(START_TIMEOUT, worker.child.wait()).await.unwrap().unwrap();
        }
        let log = next_log(&self.folder, &mut self.logs);
        let crash = [("FACE_ID_CRASH_AT", point)];
        let mut doomed = start(&self.settings, &["worker"], &crash, "probes on ", log).await;
        // The others may have left nothing of the load.
        let more = Load::begin(self, 100 + self.logs, 8, &[Kind::Enroll]);
        let died = tokio::time::timeout(START_TIMEOUT, doomed.child.wait()).await;
        let status = died.unwrap_or_else(|_| panic!("the worker never reached {point}")).unwrap();
        assert!(!status.success());
        self.more.extend(more.end().await);
    }

    pub(crate) async fn kill_worker(&mut self) {
        self.workers[0].child.kill().await.unwrap();
    }

    /// Stops a worker in the middle of its jobs until others have taken them, and lets it go on.
    pub(crate) async fn zombie(&mut self) {
        // Pictures come slowly, so that it has jobs in its hands when it is stopped.
        self.s3.faults().set(Fault::Slow(Duration::from_millis(400)));
        tokio::time::sleep(Duration::from_millis(800)).await;
        signal(&self.workers[0].child, Signal::STOP);
        let before = self.metric(1, "face_id_leases_expired_total{became=\"queued\"}").await;
        tokio::time::sleep(LEASE + Duration::from_secs(4)).await;
        self.s3.faults().set(Fault::None);
        // If the stopped one led the reapers, the other has to take that over first.
        let began = Instant::now();
        while self.metric(1, "face_id_leases_expired_total{became=\"queued\"}").await <= before {
            assert!(began.elapsed() < LEADERSHIP + LEASE * 3, "nobody missed the stopped worker's jobs");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        signal(&self.workers[0].child, Signal::CONT);
        let began = Instant::now();
        while self.metric(0, "face_id_stale_writes_refused_total").await < 1.0 {
            assert!(began.elapsed() < Duration::from_secs(30), "the zombie never met the fence");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Replaces the api by one that dies at a point of its work, and that by an ordinary one.
    pub(crate) async fn api_that_dies_at(&mut self, point: &str) {
        self.replace_api(&[("FACE_ID_CRASH_AT", point)]).await;
        let died = tokio::time::timeout(START_TIMEOUT, self.api.child.wait()).await;
        let status = died.unwrap_or_else(|_| panic!("the api never reached {point}")).unwrap();
        assert!(!status.success());
        self.replace_api(&[]).await;
    }

    async fn replace_api(&mut self, variables: &[(&str, &str)]) {
        let _ = self.api.child.kill().await;
        let bind = self.address.strip_prefix("http://").unwrap().to_owned();
        let log = next_log(&self.folder, &mut self.logs);
        self.api = start(&self.settings, &["api", "--bind", &bind], variables, "listening on ", log).await;
    }

    pub(crate) async fn memory_alarm(&mut self, lasts: Duration) {
        self.rabbitmq.set_memory_alarm(true).await.unwrap();
        tokio::time::sleep(lasts).await;
        self.rabbitmq.set_memory_alarm(false).await.unwrap();
    }

    pub(crate) async fn terminate_sessions(&mut self) {
        for _ in 0..3 {
            let sql =
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'face-id'";
            self.postgres.psql(DATABASE, sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub(crate) async fn s3_for(&mut self, fault: Fault, lasts: Duration) {
        self.s3.faults().set(fault);
        tokio::time::sleep(lasts).await;
        self.s3.faults().set(Fault::None);
    }

    /// Takes the roles away from their holders, who trust in them for a while longer, so that two lead at once.
    pub(crate) async fn two_leaders(&mut self) {
        for _ in 0..8 {
            self.postgres.psql(DATABASE, "DELETE FROM leaders").await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Stops the process that leads the dispatchers, lets another take over, and lets it go on.
    pub(crate) async fn stop_the_leader(&mut self) {
        let role = "face_id_leader{role=\"dispatcher\"}";
        let began = Instant::now();
        let (leader, other) = loop {
            match (self.metric(0, role).await > 0.0, self.metric(1, role).await > 0.0) {
                (true, false) => break (0, 1),
                (false, true) => break (1, 0),
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
            assert!(began.elapsed() < LEADERSHIP * 2, "there is never just one leader");
        };
        signal(&self.workers[leader].child, Signal::STOP);
        let began = Instant::now();
        while self.metric(other, role).await < 1.0 {
            assert!(began.elapsed() < LEADERSHIP * 2, "nobody took the role over");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        signal(&self.workers[leader].child, Signal::CONT);
    }

    /// Lets the database refuse every fourth result, and all that are written together, as a constraint would; until a
    /// batch of its own has met that.
    pub(crate) async fn results_refused(&mut self) {
        let refuse = "
            CREATE SEQUENCE refusals;
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF (SELECT count(*) > 1 OR count(*) = 1 AND nextval('refusals') % 4 = 0 FROM written WHERE result IS NOT NULL)
                THEN RAISE EXCEPTION 'a fault that a test asked for' USING ERRCODE = '23514'; END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER refuse AFTER UPDATE ON job_payloads REFERENCING NEW TABLE AS written
                FOR EACH STATEMENT EXECUTE FUNCTION refuse()";
        let batch = Batch::put(self, 99, 8).await;
        self.postgres.psql(DATABASE, refuse).await.unwrap();
        batch.post(self).await;
        let began = Instant::now();
        while !self.have_said("each is recorded by itself") {
            assert!(began.elapsed() < START_TIMEOUT, "no results are recorded together");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.postgres.psql(DATABASE, "DROP FUNCTION refuse CASCADE; DROP SEQUENCE refusals").await.unwrap();
    }
}
