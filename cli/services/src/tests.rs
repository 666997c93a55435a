//! Each service started, used, ended and started again.

use std::process::Stdio;
use std::time::Duration;

use crate::postgres::Postgres;
use crate::rabbitmq::RabbitMq;

#[tokio::test]
async fn postgres_keeps_its_data() {
    let folder = crate::process_folder("postgres-test");
    let server = Postgres::start(&folder, false).await.unwrap();
    let url = server.create_database("kept").await.unwrap();
    assert_eq!(server.create_database("kept").await.unwrap(), url, "a second time nothing is to do");
    server.psql("kept", "CREATE EXTENSION vector; CREATE TABLE t (v vector(3))").await.unwrap();
    server.psql("kept", "INSERT INTO t VALUES ('[1,2,3]')").await.unwrap();
    server.crash().await.unwrap();
    assert!(server.psql("kept", "SELECT 1").await.is_err(), "it is down");
    server.restart().await.unwrap();
    assert_eq!(server.psql("kept", "SELECT v <-> '[1,2,4]' FROM t").await.unwrap().trim(), "1");
    assert!(server.psql("kept", "SELECT nonsense").await.is_err());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn rabbitmq_keeps_its_data_until_it_is_wiped() {
    let folder = crate::process_folder("rabbitmq-test");
    let node = RabbitMq::start(&folder).await.unwrap();
    let vhosts = async || node.ctl(&["-q", "list_vhosts", "--no-table-headers"]).await.unwrap();
    node.ctl(&["add_vhost", "kept"]).await.unwrap();
    node.kill().await.unwrap();
    node.restart().await.unwrap();
    assert!(vhosts().await.contains("kept"));
    node.wipe().await.unwrap();
    assert!(!vhosts().await.contains("kept"));
    node.stop().await.unwrap();
}

/// Ends a process that owns a service with SIGKILL: nothing of the service may be left.
#[tokio::test]
async fn a_killed_owner_takes_its_services_along() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // The owner's part is played by a shell that runs the guard's script with a pipe of its own.
    let script = format!(
        "exec 4> >(exec bash -c \"$0\" guard {} sleep 4217 >{}); exec sleep 60",
        log.display(),
        folder.path().join("pid").display()
    );
    let mut owner = tokio::process::Command::new("bash")
        .args(["-c", &script, crate::guard::SCRIPT])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = loop {
        let text = std::fs::read_to_string(folder.path().join("pid")).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<u32>() {
            break pid;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let alive = || std::path::Path::new(&format!("/proc/{pid}")).is_dir();
    assert!(alive());
    owner.kill().await.unwrap();
    for _ in 0..200 {
        if !alive() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the service outlived its owner");
}
