//! The snippets of docs/WEBHOOKS.md, each against a signature that fits and one that does not.

use std::path::Path;
use std::process::{Command, Stdio};

use shared::webhooks::secret::EndpointSecret;
use shared::webhooks::signature::sign;
use worker::testing::repository;

const ID: &str = "msg_1";
const TIMESTAMP: i64 = 1_764_150_000;
const BODY: &str = r#"{"type":"job.succeeded","text":"ä"}"#;

/// The block of code in that language which verifies.
fn snippet(language: &str) -> String {
    let text = std::fs::read_to_string(repository().join("docs/WEBHOOKS.md")).unwrap();
    let fence = format!("```{language}\n");
    let mut blocks = text.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```\n").next());
    blocks.find(|block| block.contains("does not fit") || block.contains("is_good")).unwrap().to_owned()
}

fn says_ok(folder: &Path, program: &[&str], code: &str, secret: &str, signature: &str) -> bool {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(code).current_dir(folder).stderr(Stdio::null());
    command.env("SECRET", secret).env("ID", ID).env("TIMESTAMP", TIMESTAMP.to_string()).env("SIGNATURE", signature);
    let output = command.output().unwrap();
    let ok = output.stdout == b"ok\n";
    assert_eq!(ok, output.status.success(), "{program:?} fails where it says no");
    ok
}

#[test]
fn the_snippets_of_the_manual_verify() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("body.json"), BODY).unwrap();
    let (old, new) = (EndpointSecret::random(), EndpointSecret::random());
    let both = sign(&[new.clone(), old.clone()], ID, TIMESTAMP, BODY.as_bytes());
    let other_body = sign(std::slice::from_ref(&new), ID, TIMESTAMP, b"{}");
    let languages = [("sh", &["sh", "-c"][..]), ("python", &["python3", "-c"]), ("js", &["node", "-e"])];
    for (language, program) in languages {
        let code = snippet(language);
        let judged = |secret: &str, signature: &str| says_ok(folder.path(), program, &code, secret, signature);
        assert!(judged(&new.reveal(), &both), "{language}: the first signature");
        assert!(judged(&old.reveal(), &both), "{language}: the second");
        assert!(!judged(&EndpointSecret::random().reveal(), &both), "{language}: another secret");
        assert!(!judged(&new.reveal(), &other_body), "{language}: another body");
    }
}

/// Every other test here asks it about each message that came.
#[test]
fn the_rust_snippet_is_the_one_that_the_tests_use() {
    assert_eq!(snippet("rust,ignore"), include_str!("verify.rs"));
}
