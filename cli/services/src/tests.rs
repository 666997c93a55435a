//! Each service started, used, ended and started again; and none outlives its owner.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::ports::{Protocol, answers};
use crate::postgres::Postgres;
use crate::rabbitmq::RabbitMq;

#[tokio::test]
async fn postgres_keeps_its_data() {
    let folder = crate::process_folder("postgres-test");
    let server = Postgres::start(&folder, false).await.unwrap();
    let url = server.create_database("kept").await.unwrap();
    assert_eq!(server.create_database("kept").await.unwrap(), url, "a second time nothing is to do");
    server.psql("kept", "CREATE TABLE t (v vector(3)); INSERT INTO t VALUES ('[1,2,3]')").await.unwrap();
    for ended in [Ended::Crashed, Ended::Killed, Ended::Stopped] {
        match ended {
            Ended::Crashed => server.crash().await.unwrap(),
            Ended::Killed => server.kill().await.unwrap(),
            Ended::Stopped => server.stop().await.unwrap(),
        }
        assert!(server.psql("kept", "SELECT 1").await.is_err(), "it is down");
        server.restart().await.unwrap();
        assert_eq!(server.psql("kept", "SELECT v <-> '[1,2,4]' FROM t").await.unwrap().trim(), "1", "{ended:?}");
    }
    assert!(server.psql("kept", "SELECT nonsense").await.is_err());
    let first = server.port();
    drop(server);
    let again = Postgres::start(&folder, false).await.unwrap();
    assert_ne!(again.port(), first);
    assert_eq!(again.psql("kept", "SELECT count(*) FROM t").await.unwrap().trim(), "1", "on another port, at once");
    again.stop().await.unwrap();
}

#[derive(Debug)]
enum Ended {
    Crashed,
    Killed,
    Stopped,
}

#[tokio::test]
async fn postgres_can_be_paused() {
    let folder = crate::process_folder("postgres-pause-test");
    let server = Postgres::start(&folder, false).await.unwrap();
    let busy = server.psql("postgres", "SELECT pg_sleep(1), 'done'");
    let paused = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.pause().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.resume().await.unwrap();
    };
    let began = Instant::now();
    let (answer, ()) = tokio::join!(busy, paused);
    assert!(answer.unwrap().contains("done"));
    assert!(began.elapsed() >= Duration::from_millis(2300), "a connection that was open hung as well");
    server.pause().await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn rabbitmq_keeps_its_data_until_it_is_wiped() {
    let folder = crate::process_folder("rabbitmq-test");
    let node = RabbitMq::start(&folder).await.unwrap();
    let vhosts = async || node.ctl(&["-q", "list_vhosts", "--no-table-headers"]).await.unwrap();
    node.ctl(&["add_vhost", "kept"]).await.unwrap();
    node.pause().await.unwrap();
    assert!(answers(node.port(), Protocol::Amqp).await.is_err(), "it is silent");
    node.resume().await.unwrap();
    answers(node.port(), Protocol::Amqp).await.unwrap();
    node.kill().await.unwrap();
    assert!(answers(node.port(), Protocol::Amqp).await.is_err(), "it is down");
    node.restart().await.unwrap();
    assert!(vhosts().await.contains("kept"));
    node.wipe().await.unwrap();
    assert!(!vhosts().await.contains("kept"));
    node.stop().await.unwrap();
}

#[tokio::test]
async fn two_nodes_run_at_once() {
    let folders = ["rabbitmq-one-test", "rabbitmq-two-test"].map(crate::process_folder);
    let (one, two) = tokio::try_join!(RabbitMq::start(&folders[0]), RabbitMq::start(&folders[1])).unwrap();
    assert_ne!(one.url(), two.url());
    one.ctl(&["add_vhost", "one"]).await.unwrap();
    assert!(!two.ctl(&["-q", "list_vhosts", "--no-table-headers"]).await.unwrap().contains("one"));
    tokio::try_join!(one.stop(), two.stop()).unwrap();
}

/// Set for the process that [`killed_owners_take_their_services_along`] starts and kills: the folder to work in.
const OWNED: &str = "FACE_ID_SERVICES_TEST_OWNER";

/// No test by itself: the owner that is killed.
#[tokio::test]
async fn owner() {
    let Some(folder) = std::env::var_os(OWNED) else { return };
    let folder = Path::new(&folder);
    let (postgres, rabbitmq) = (folder.join("postgres"), folder.join("rabbitmq"));
    let (_postgres, _rabbitmq) =
        tokio::try_join!(Postgres::start(&postgres, false), RabbitMq::start(&rabbitmq)).unwrap();
    std::fs::write(folder.join("started"), "").unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
}

/// Another process of this program owns services and is killed, once alone and once with its whole process group.
#[tokio::test]
async fn killed_owners_take_their_services_along() {
    for group in [false, true] {
        let folder = crate::process_folder(if group { "owner-group-test" } else { "owner-test" });
        std::fs::create_dir_all(&folder).unwrap();
        let mut owner = Command::new("setsid")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "tests::owner"])
            .env(OWNED, &folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !folder.join("started").is_file() {
            assert!(owner.try_wait().unwrap().is_none(), "the owner could not start its services");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mark = folder.to_string_lossy().into_owned();
        let before = mentioning(&mark, owner.id());
        for name in ["postgres", "beam.smp", "epmd", "erl_child_setup"] {
            assert!(before.iter().any(|(_, command)| command.contains(name)), "{name} runs: {before:?}");
        }
        let pid = i32::try_from(owner.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let kill = if group { rustix::process::kill_process_group } else { rustix::process::kill_process };
        kill(pid, rustix::process::Signal::KILL).unwrap();
        owner.wait().unwrap();
        let began = Instant::now();
        loop {
            let left = mentioning(&mark, 0);
            if left.is_empty() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "these outlived their owner: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Processes that have the text in their command or their environment, without this one.
fn mentioning(mark: &str, except: u32) -> Vec<(u32, String)> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| ![except, std::process::id()].contains(pid))
        .filter_map(|pid: u32| {
            let read =
                |file| std::fs::read(format!("/proc/{pid}/{file}")).map(|b| String::from_utf8_lossy(&b).into_owned());
            let command = read("cmdline").ok()?.replace('\0', " ");
            let found = command.contains(mark) || read("environ").unwrap_or_default().contains(mark);
            found.then_some((pid, command))
        })
        .collect()
}
