//! Pictures of a library that are deleted, moved and copied, and what a batch says of them that lists it again.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::batches::{Library, ended, pictures, post, post_manifest};
use crate::library::changed;
use crate::server::{Server, Site, command, inline, on_both, photo};

on_both!(
    deleted_moved_and_copied_pictures_are_told,
    what_is_gone_is_deleted_where_that_is_wanted,
    a_crash_in_between_changes_no_count,
    an_empty_source_and_a_manifest_tell_nothing,
    what_was_sent_or_named_by_hand_is_kept,
);

/// Indexes the library and returns the batch when it has ended.
async fn index(server: &Server, library: &Library, on_gone: &str) -> Value {
    let body = json!({ "collection": "c", "kind": "index", "source": library.source(), "gone": on_gone });
    let (status, batch) = post(server, &body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{batch}");
    let batch = ended(server, &batch).await;
    assert_eq!((&batch["state"], &batch["on_gone"]), (&json!("completed"), &json!(on_gone)), "{batch}");
    batch
}

/// How many pictures the batch found moved, and how many gone.
fn told(batch: &Value) -> (i64, i64) {
    (batch["moved"].as_i64().unwrap(), batch["gone"].as_i64().unwrap())
}

/// How many images have faces, and how many of those images are marked.
async fn kept_and_marked(server: &Server) -> (usize, usize) {
    let faces = server.get("/v1/collections/c/faces?limit=500").await;
    let faces = faces["items"].as_array().unwrap();
    let of = |marked: bool| {
        let wanted = faces.iter().filter(|face| !marked || !face["gone_at"].is_null());
        wanted.map(|face| face["image_id"].to_string()).collect::<BTreeSet<_>>().len()
    };
    (of(false), of(true))
}

async fn deleted_moved_and_copied_pictures_are_told(site: Site) {
    let library = Library::new(&site, &pictures(0..6)).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 0));

    library.remove("0/0000.png").await;
    library.remove("1/0001.png").await;
    // Before all that was listed, and where `-` and `/` are sorted otherwise by a language's rules.
    library.write("0-new/0001.png", &photo(&[1])).await;
    library.write("2/copy.png", &photo(&[2])).await;
    let batch = index(&server, &library, "keep").await;
    assert_eq!((told(&batch), &batch["items"], &batch["unchanged"]), ((1, 1), &json!(6), &json!(4)), "{batch}");
    assert_eq!(kept_and_marked(&server).await, (6, 1), "what is gone is kept, and marked");
    let batch = index(&server, &library, "keep").await;
    assert_eq!((told(&batch), &batch["unchanged"]), ((0, 0), &json!(6)), "nothing is told twice");

    library.remove("2/0002.png").await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 0), "the copy of before is left");
    assert_eq!(kept_and_marked(&server).await, (6, 1));

    library.write("0/0000.png", &photo(&[0])).await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 0));
    assert_eq!(kept_and_marked(&server).await, (6, 0), "it came back");
    library.remove("0/0000.png").await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 1));
    library.write("elsewhere.png", &photo(&[0])).await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 0));
    assert_eq!(kept_and_marked(&server).await, (6, 0), "its bytes came back at another place");
    server.stop().await;
}

async fn what_is_gone_is_deleted_where_that_is_wanted(site: Site) {
    let library = Library::new(&site, &pictures(0..6)).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    index(&server, &library, "keep").await;
    library.remove("0/0000.png").await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 1));
    library.remove("1/0001.png").await;
    library.remove("2/0002.png").await;
    library.write("1/moved.png", &photo(&[2])).await;
    let batch = index(&server, &library, "delete").await;
    assert_eq!(told(&batch), (1, 2), "what was marked before is deleted too: {batch}");
    assert_eq!(kept_and_marked(&server).await, (4, 0));
    let collection = server.get("/v1/collections/c").await;
    assert_eq!((&collection["images"], &collection["faces"]), (&json!(4), &json!(4)));
    let again = index(&server, &library, "delete").await;
    assert_eq!((told(&again), &again["unchanged"]), ((0, 0), &json!(4)));

    // A picture that comes back is a new one.
    library.write("0/0000.png", &photo(&[0])).await;
    let batch = index(&server, &library, "delete").await;
    assert_eq!((told(&batch), &batch["faces"]), ((0, 0), &json!(1)));
    server.stop().await;
}

async fn a_crash_in_between_changes_no_count(site: Site) {
    for point in ["after_note", "before_sweep_commit", "after_sweep_slice"] {
        let library = Library::new(&site, &pictures(0..7)).await;
        let server = library.serve(&site, &[]).await;
        server.delete("/v1/collections/c").await;
        server.make_collection("c").await;
        index(&server, &library, "keep").await;
        server.stop().await;
        library.remove("0/0000.png").await;
        library.remove("0/0003.png").await;
        library.remove("1/0001.png").await;
        library.write("2/moved.png", &photo(&[1])).await;

        let server = library.serve(&site, &[("FACE_ID_CRASH_AT", point)]).await;
        let body = json!({ "collection": "c", "kind": "index", "source": library.source(), "gone": "delete" });
        let (status, batch) = post(&server, &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{batch}");
        server.wait_for_crash().await;
        let server = library.serve(&site, &[]).await;
        let batch = ended(&server, &batch).await;
        assert_eq!(told(&batch), (1, 2), "{point}: {batch}");
        assert_eq!(kept_and_marked(&server).await, (5, 0), "{point}");
        server.stop().await;
    }
}

async fn an_empty_source_and_a_manifest_tell_nothing(site: Site) {
    let all = pictures(0..4);
    let library = Library::new(&site, &all).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    index(&server, &library, "keep").await;

    let (_, batch) = post_manifest(&server, &[library.line("0/0000.png")], "k").await;
    assert_eq!(told(&ended(&server, &batch).await), (0, 0), "a manifest names what to do, not all that there is");
    for (name, _) in &all {
        library.remove(name).await;
    }
    let batch = index(&server, &library, "delete").await;
    assert_eq!((told(&batch), &batch["problem"]["code"]), ((0, 0), &json!("source_empty")), "{batch}");
    assert_eq!(kept_and_marked(&server).await, (4, 0));
    if !site.has_services() {
        std::fs::remove_dir_all(library.folder.path()).unwrap();
        let body = json!({ "collection": "c", "kind": "index", "source": library.source(), "gone": "delete" });
        assert_eq!(post(&server, &body).await.0, StatusCode::UNPROCESSABLE_ENTITY, "there is no folder");
        assert_eq!(kept_and_marked(&server).await, (4, 0));
    }
    server.stop().await;
}

async fn what_was_sent_or_named_by_hand_is_kept(site: Site) {
    let library = Library::new(&site, &pictures(0..9)).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    index(&server, &library, "keep").await;
    let send = async |seed| {
        let job = server.run("c", "index", &json!({ "image": inline(&photo(&[seed])) })).await;
        assert_eq!(job["result"]["already_indexed"], true, "{job}");
    };
    send(0).await;
    library.remove("0/0000.png").await;
    library.remove("1/0001.png").await;
    library.remove("2/0002.png").await;
    assert_eq!(told(&index(&server, &library, "keep").await), (0, 2), "one was sent too");
    assert_eq!(kept_and_marked(&server).await, (9, 2));
    send(1).await;
    assert_eq!(kept_and_marked(&server).await, (9, 1), "what was sent just now is there");
    let faces = server.get("/v1/collections/c/faces?limit=500").await;
    let gone = faces["items"].as_array().unwrap().iter().find(|face| !face["gone_at"].is_null()).unwrap();
    changed(&server, &gone["id"], &json!({ "locked": true })).await;
    let batch = index(&server, &library, "delete").await;
    assert_eq!((told(&batch), &batch["problem"]["code"]), ((0, 0), &json!("gone_named")), "{batch}");
    assert_eq!(kept_and_marked(&server).await, (9, 1));
    server.stop().await;
}

#[tokio::test]
async fn what_may_lie_on_a_disk_that_is_away_is_not_gone() {
    let site = Site::embedded();
    let library = Library::new(&site, &pictures(0..9)).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    index(&server, &library, "keep").await;
    let (folder, aside) = (library.folder.path(), site.folder().join("aside"));
    // A disk that is not mounted leaves the folder.
    std::fs::rename(folder.join("0"), &aside).unwrap();
    std::fs::create_dir(folder.join("0")).unwrap();
    library.remove("1/0001.png").await;
    let batch = index(&server, &library, "delete").await;
    assert_eq!((told(&batch), &batch["problem"]["code"]), ((0, 1), &json!("gone_kept")), "{batch}");
    assert_eq!(kept_and_marked(&server).await, (9, 1));
    // Without it the folder is deleted, for all that can be told.
    std::fs::remove_dir(folder.join("0")).unwrap();
    let batch = index(&server, &library, "keep").await;
    assert_eq!((told(&batch), kept_and_marked(&server).await), ((0, 3), (9, 4)), "{batch}");
    // The files are back where no listing meets them: they are looked for before anything is deleted.
    std::os::unix::fs::symlink(&aside, folder.join("0")).unwrap();
    let batch = index(&server, &library, "delete").await;
    assert_eq!((told(&batch), kept_and_marked(&server).await), ((0, 1), (8, 0)), "{batch}");
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_not_gone() {
    let site = Site::embedded();
    let library = Library::new(&site, &pictures(0..9)).await;
    let server = library.serve(&site, &[]).await;
    server.make_collection("c").await;
    index(&server, &library, "keep").await;
    let folder = library.folder.path();
    // A folder that goes round in a circle can be read by nobody, whatever their rights.
    std::fs::rename(folder.join("0"), site.folder().join("aside")).unwrap();
    std::os::unix::fs::symlink(folder.join("0"), folder.join("0")).unwrap();
    // One that lies elsewhere by now is still found by its old name.
    std::fs::rename(folder.join("1"), folder.join("3")).unwrap();
    std::os::unix::fs::symlink(folder.join("3"), folder.join("1")).unwrap();
    library.remove("2/0002.png").await;
    let batch = index(&server, &library, "keep").await;
    assert_eq!((told(&batch), kept_and_marked(&server).await), ((0, 1), (9, 1)), "{batch}");

    // Whoever wants to delete has to be sure.
    std::os::unix::fs::symlink(folder.join("nothing"), folder.join("dangling.png")).unwrap();
    let batch = index(&server, &library, "delete").await;
    assert_eq!((told(&batch), &batch["problem"]["code"]), ((0, 0), &json!("gone_kept")), "{batch}");
    assert_eq!(kept_and_marked(&server).await, (9, 1));
    std::fs::remove_file(folder.join("dangling.png")).unwrap();
    assert_eq!(told(&index(&server, &library, "delete").await), (0, 1));
    assert_eq!(kept_and_marked(&server).await, (8, 0));
    server.stop().await;
}

#[tokio::test]
async fn the_command_tells_and_deletes() {
    let site = Site::embedded();
    let library = Library::new(&site, &pictures(0..4)).await;
    let run = async |more: &[&str]| {
        let mut index = command();
        index.arg("index").arg(library.folder.path()).args(["--collection", "c", "--data-dir"]);
        let output = index.arg(site.folder().join("data")).args(more).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        (text, summary)
    };
    run(&[]).await;
    library.remove("0/0000.png").await;
    std::fs::remove_dir_all(library.folder.path().join("1")).unwrap();
    library.write("new.png", &photo(&[1])).await;
    let (text, summary) = run(&[]).await;
    assert_eq!((told(&summary), text.contains("kept and marked")), ((1, 1), true), "{text}");
    let (text, summary) = run(&["--delete-gone"]).await;
    assert_eq!((told(&summary), text.contains("deleted with their faces")), ((0, 1), true), "{text}");
    assert_eq!((&summary["unknown_faces"], &summary["pending"]), (&json!(3), &json!(0)), "{text}");
}
