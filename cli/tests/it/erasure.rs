//! What is erased is gone from every table, object and file, while everything else goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::http::StatusCode as Status;
use axum::response::IntoResponse as _;
use reqwest::{Method, StatusCode};
use sea_orm::{ConnectionTrait as _, Database, DatabaseBackend, DatabaseConnection, Statement};
use serde_json::{Value, json};
use shared::digest::hex;
use uuid::Uuid;

use crate::library::index;
use crate::reprocess::Models;
use crate::server::{Server, Site, inline, on_both, photo, read};
use crate::webhooks::{Receiver, SETTINGS, make_endpoint};

on_both!(
    nothing_is_left_while_all_else_goes_on,
    an_erasure_survives_kills,
    a_collection_goes_as_a_whole,
    a_face_of_a_picture_that_stays_is_not_found_again,
);

const PATIENCE: Duration = Duration::from_secs(90);
/// Nobody else is called so.
const EXTERNAL_ID: &str = "ext-zzyzx-77";
const NAME: &str = "Annabelle Zzyzx";
/// Who that is on pictures.
const ANN: u32 = 7_001;

/// What must not be found any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Needle {
    Text(String),
    Id(Uuid),
    Bytes(Vec<u8>),
}

impl Needle {
    fn id(value: &Value) -> Self {
        Self::Id(value.as_str().unwrap().parse().unwrap())
    }

    /// The forms in which a file may hold it.
    fn in_files(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Text(text) => vec![text.clone().into_bytes()],
            Self::Id(id) => {
                vec![id.to_string().into_bytes(), id.simple().to_string().into_bytes(), id.as_bytes().to_vec()]
            }
            Self::Bytes(bytes) => vec![bytes.clone()],
        }
    }
}

/// The site's database, beside its servers.
struct Tables {
    db: DatabaseConnection,
}

impl Tables {
    async fn open(site: &Site) -> Self {
        let url = site.settings().into_iter().find(|(name, _)| *name == "FACE_ID_DATABASE__URL").map(|(_, url)| url);
        let file = site.folder().join("face-id.sqlite");
        let url = url.unwrap_or_else(|| format!("sqlite://{}?mode=ro", file.display()));
        Self { db: Database::connect(url).await.unwrap() }
    }

    fn is_postgres(&self) -> bool {
        self.db.get_database_backend() == DatabaseBackend::Postgres
    }

    async fn texts(&self, sql: String) -> Vec<String> {
        let rows = self.db.query_all_raw(Statement::from_string(self.db.get_database_backend(), sql)).await.unwrap();
        rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    /// Every column of every table, as `table.column`.
    async fn columns(&self) -> Vec<(String, String)> {
        let sql = if self.is_postgres() {
            "SELECT table_name || ' ' || column_name FROM information_schema.columns WHERE table_schema = 'public'"
        } else {
            "SELECT t.name || ' ' || c.name FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table'"
        };
        let columns = self.texts(sql.to_owned()).await;
        assert!(columns.len() > 150, "{}", columns.len());
        columns.iter().map(|named| named.split_once(' ').unwrap()).map(|(t, c)| (t.to_owned(), c.to_owned())).collect()
    }

    /// In which columns it is found.
    async fn holding(&self, columns: &[(String, String)], needle: &Needle) -> Vec<String> {
        let mut found = Vec::new();
        for (table, column) in columns {
            let is_there = if self.is_postgres() {
                let text = match needle {
                    Needle::Text(text) => text.clone(),
                    Needle::Id(id) => id.to_string(),
                    // There are no bytes in its tables.
                    Needle::Bytes(_) => continue,
                };
                format!("strpos(\"{column}\"::text, '{text}') > 0")
            } else {
                let any = needle
                    .in_files()
                    .iter()
                    .map(|form| format!("instr(CAST(\"{column}\" AS BLOB), x'{}') > 0", hex(form)))
                    .collect::<Vec<_>>();
                any.join(" OR ")
            };
            let sql = format!("SELECT CAST(count(*) AS text) FROM \"{table}\" WHERE {is_there}");
            if self.texts(sql).await != ["0"] {
                found.push(format!("{table}.{column}"));
            }
        }
        found
    }

    /// The vectors of a face, as the tables hold them, and the keys of its crops.
    async fn of_face(&self, face: &Value) -> (Vec<Needle>, Vec<String>) {
        let id: Uuid = face.as_str().unwrap().parse().unwrap();
        let (is, vector) = if self.is_postgres() {
            (format!("face_id = '{id}'"), "vector::text")
        } else {
            (format!("face_id = x'{}'", id.simple()), "lower(hex(vector))")
        };
        let vectors = self.texts(format!("SELECT {vector} FROM embeddings WHERE {is}")).await;
        let bytes =
            |hex: &str| (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let needle =
            |text: &String| if self.is_postgres() { Needle::Text(text.clone()) } else { Needle::Bytes(bytes(text)) };
        let crops = self.texts(format!("SELECT object_key FROM crops WHERE {is}")).await;
        (vectors.iter().map(needle).collect(), crops)
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    // By the first byte: a file of megabytes is looked through for hundreds of these.
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == first) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return true;
        }
        from = at + 1;
    }
    false
}

/// Where it is still found: in tables, in objects, and in embedded mode in every file of the data folder.
async fn found(site: &Site, server: &Server, needles: &[Needle]) -> Vec<String> {
    let tables = Tables::open(site).await;
    let columns = tables.columns().await;
    let mut found = Vec::new();
    for needle in needles {
        let shown: String = format!("{needle:?}").chars().take(80).collect();
        found.extend(tables.holding(&columns, needle).await.into_iter().map(|place| format!("{shown} in {place}")));
    }
    tables.db.close().await.unwrap();
    let folder = if site.has_services() { server.object_folder() } else { site.folder() };
    for path in files(folder) {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let named = path.display().to_string();
        for needle in needles {
            if needle.in_files().iter().any(|form| holds(&bytes, form) || holds(named.as_bytes(), form)) {
                let shown: String = format!("{needle:?}").chars().take(80).collect();
                found.push(format!("{shown} in {named}"));
            }
        }
    }
    found
}

/// Waits until it is found nowhere: what was on its way goes with the next sweep.
async fn until_nothing_is_left(site: &Site, server: &Server, needles: &[Needle], when: &str) {
    let began = Instant::now();
    loop {
        let left = found(site, server, needles).await;
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{when}: {left:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn erase(server: &Server, path: &str) -> Value {
    let (status, receipt) = read(server.request(Method::DELETE, path)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "DELETE {path}: {receipt}");
    receipt
}

async fn until_erased(server: &Server, receipt: &Value) -> Value {
    let began = Instant::now();
    loop {
        let seen = server.get(&format!("/v1/erasures/{}", receipt["id"].as_str().unwrap())).await;
        if seen["state"] == "erased" {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "{seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn ann() -> Value {
    json!({ "external_id": EXTERNAL_ID, "name": NAME, "description": "grows Zzyzx roses" })
}

fn person(id: &Value) -> String {
    format!("/v1/collections/c/persons/{}", id.as_str().unwrap())
}

async fn enroll_ann(server: &Server, picture: &[u8]) -> Value {
    let body = json!({ "image": inline(picture), "person": ann(), "tag": EXTERNAL_ID, "face": "largest" });
    let job = server.run("c", "enroll", &body).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job["result"].clone()
}

/// What must go with these faces: their ids, vectors and crops.
async fn of_faces(site: &Site, server: &Server, faces: &[Value]) -> Vec<Needle> {
    let tables = Tables::open(site).await;
    let mut needles = Vec::new();
    for face in faces {
        let (vectors, crops) = tables.of_face(face).await;
        assert!(!vectors.is_empty() && !crops.is_empty());
        needles.push(Needle::id(face));
        needles.extend(vectors);
        for key in crops {
            needles.push(Needle::Bytes(std::fs::read(server.object_folder().join(&key)).unwrap()));
            needles.push(Needle::Text(key));
        }
    }
    tables.db.close().await.unwrap();
    needles
}

/// What is to be erased, and all by which it would be found.
struct Doomed {
    picture: Vec<u8>,
    person: String,
    image: String,
    face: String,
    needles: Vec<Needle>,
}

impl Doomed {
    /// A person with an enrolled and a matched face, an image of two strangers, and the one face of another.
    async fn make(site: &Site, server: &Server) -> Self {
        let picture = photo(&[ANN]);
        let first = enroll_ann(server, &picture).await;
        index(server, &[ANN, 2]).await;
        let strangers =
            server.run("c", "index", &json!({ "image": inline(&photo(&[501, 502])) })).await["result"].clone();
        let lone = index(server, &[601]).await[0]["face_id"].clone();
        server.upload("c", picture.clone()).await;
        let named = server.run("c", "identify", &json!({ "image": inline(&picture) })).await;
        assert_eq!(named["result"]["faces"][0]["matches"][0]["external_id"], EXTERNAL_ID);
        let body = json!({ "image": inline(&picture), "other": { "person_id": first["person_id"] } });
        assert_eq!(server.run("c", "verify", &body).await["state"], "succeeded");
        let known = server.get(&format!("{}/faces", person(&first["person_id"]))).await;
        let mut faces: Vec<Value> = known["items"].as_array().unwrap().iter().map(|face| face["id"].clone()).collect();
        // A rematch may have found one of all the others like her by now.
        assert!(faces.len() >= 2, "enrolled and matched");
        faces.extend(strangers["faces"].as_array().unwrap().iter().map(|face| face["face_id"].clone()));
        faces.push(lone.clone());
        let mut needles = of_faces(site, server, &faces).await;
        needles.extend([Needle::Text(EXTERNAL_ID.to_owned()), Needle::Text("Zzyzx".to_owned())]);
        needles.extend([&first["person_id"], &first["image_id"], &strangers["image_id"]].map(Needle::id));
        needles.extend([&picture, &photo(&[501, 502]), &photo(&[601])].map(|bytes| Needle::Bytes(bytes.clone())));
        assert!(!found(site, server, &needles[..1]).await.is_empty(), "the search finds what is there");
        let path = |what: &str, id: &Value| format!("/v1/collections/c/{what}/{}", id.as_str().unwrap());
        Self {
            picture,
            person: person(&first["person_id"]),
            image: path("images", &strangers["image_id"]),
            face: path("faces", &lone),
            needles,
        }
    }
}

/// Jobs that wait and run for what is about to be erased.
async fn jobs_in_flight(server: &Server, doomed: &Doomed) -> Vec<Value> {
    let mut jobs = Vec::new();
    for n in 0..6 {
        let body = json!({ "image": inline(&photo(&[ANN, 300 + n])), "person": ann(), "face": "largest" });
        jobs.push(server.submit("c", "enroll", &body).await);
        jobs.push(server.submit("c", "identify", &json!({ "image": inline(&doomed.picture) })).await);
        jobs.push(server.submit("c", "index", &json!({ "image": inline(&photo(&[501, 502])) })).await);
    }
    jobs
}

async fn nothing_is_left_while_all_else_goes_on(site: Site) {
    let models = Models::of(&site).await;
    let server = Server::start_with(&site, &[&models.settings()[..], &SETTINGS].concat()).await;
    server.make_collection("c").await;
    for status in [Status::NO_CONTENT, Status::BAD_GATEWAY] {
        let receiver = Receiver::start(move |_| status.into_response()).await;
        make_endpoint(&server, json!({ "url": receiver.url })).await;
    }
    for seed in 1..=4 {
        server.enroll("c", seed).await;
    }
    for n in 0..40 {
        server.submit("c", "index", &json!({ "image": inline(&photo(&[100 + n, 200 + n])) })).await;
    }
    let doomed = Doomed::make(&site, &server).await;
    // A run that looks at every picture again.
    let run = server.reprocess("tiny-sure").await;
    let jobs = jobs_in_flight(&server, &doomed).await;
    let paths = [&doomed.person, &doomed.image, &doomed.face];
    let mut receipts = Vec::new();
    for path in paths {
        receipts.push(erase(&server, path).await);
    }
    assert_eq!(read(server.request(Method::GET, &doomed.person)).await.0, StatusCode::NOT_FOUND);
    for (path, receipt) in paths.iter().zip(&receipts) {
        assert_eq!(erase(&server, path).await["id"], receipt["id"], "erased twice, one receipt");
        let done = until_erased(&server, receipt).await;
        assert_eq!(done["removed"]["persons"], json!(i32::from(receipt["subject"] == "person")), "{done}");
    }
    for job in &jobs {
        let job = server.ended(job).await;
        assert!(["cancelled", "succeeded", "rejected"].contains(&job["state"].as_str().unwrap()), "{job}");
    }
    server.until_run_is(&run, "ready").await;
    until_nothing_is_left(&site, &server, &doomed.needles, "erased").await;
    // Everybody else is there, by both models.
    let persons = server.get("/v1/collections/c/persons").await;
    assert_eq!(persons["items"].as_array().unwrap().len(), 4);
    server.switch(&run, "activate").await;
    let two = server.run("c", "identify", &json!({ "image": inline(&photo(&[2])) })).await;
    assert_eq!(two["result"]["faces"][0]["matches"][0]["external_id"], "person-2");
    let nobody = server.run("c", "identify", &json!({ "image": inline(&doomed.picture) })).await;
    assert_eq!(nobody["result"]["faces"][0]["decision"], "unknown");
    assert_eq!(enroll_ann(&server, &doomed.picture).await["external_id"], EXTERNAL_ID, "on purpose she comes back");
    server.stop().await;
}

async fn an_erasure_survives_kills(site: Site) {
    for point in ["erasure_requested", "erasing_rows", "erasing_jobs", "erasing_objects", "erasing_end"] {
        let server = Server::start(&site).await;
        if point == "erasure_requested" {
            server.make_collection("c").await;
            server.enroll("c", 1).await;
        }
        let picture = photo(&[ANN]);
        let first = enroll_ann(&server, &picture).await;
        let mut needles = of_faces(&site, &server, &[first["face_id"].clone()]).await;
        needles.extend([Needle::Text(EXTERNAL_ID.to_owned()), Needle::Bytes(picture), Needle::id(&first["person_id"])]);
        server.stop().await;
        // Where the person is erased in one slice, there is none after it.
        let armed = if point == "erasing_rows" { "erasing_jobs:1" } else { point };
        let server = Server::start_with(&site, &[("FACE_ID_CRASH_AT", armed)]).await;
        // The answer may be lost with the process.
        let _ = server.request(Method::DELETE, &person(&first["person_id"])).send().await;
        server.wait_for_crash().await;
        let server = Server::start(&site).await;
        let receipt = erase(&server, &person(&first["person_id"])).await;
        let done = until_erased(&server, &receipt).await;
        assert_eq!((&done["removed"]["persons"], &done["removed"]["faces"]), (&json!(1), &json!(1)), "{point}: {done}");
        until_nothing_is_left(&site, &server, &needles, point).await;
        assert_eq!(server.get("/v1/collections/c").await["persons"], 1);
        server.stop().await;
    }
}

async fn a_collection_goes_as_a_whole(site: Site) {
    let models = Models::of(&site).await;
    let settings = [&models.settings()[..], &SETTINGS].concat();
    let server = Server::start_with(&site, &settings).await;
    server.make_collection("c").await;
    let bad = Receiver::start(|_| Status::BAD_GATEWAY.into_response()).await;
    make_endpoint(&server, json!({ "url": bad.url })).await;
    let picture = photo(&[ANN]);
    let first = enroll_ann(&server, &picture).await;
    server.upload("c", photo(&[700])).await;
    for n in 0..30 {
        server.submit("c", "index", &json!({ "image": inline(&photo(&[100 + n, ANN])) })).await;
    }
    let mut needles = of_faces(&site, &server, &[first["face_id"].clone()]).await;
    let collection = server.get("/v1/collections/c").await["id"].clone();
    needles.extend([Needle::Text(EXTERNAL_ID.to_owned()), Needle::Text("Zzyzx".to_owned()), Needle::Bytes(picture)]);
    needles.extend([Needle::Bytes(photo(&[700])), Needle::id(&first["person_id"]), Needle::id(&collection)]);
    server.reprocess("tiny-swapped").await;
    let receipt = erase(&server, "/v1/collections/c").await;
    assert_eq!(read(server.request(Method::GET, "/v1/collections/c")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/v1/jobs").await["items"], json!([]));
    assert_eq!(erase(&server, "/v1/collections/c").await["id"], receipt["id"]);
    // Its name is free.
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let done = until_erased(&server, &receipt).await;
    assert_eq!(done["removed"]["persons"], 1, "{done}");
    let by_id = format!("/v1/collections/{}", collection.as_str().unwrap());
    assert_eq!(erase(&server, &by_id).await["id"], receipt["id"]);
    until_nothing_is_left(&site, &server, &needles, "the collection").await;
    assert_eq!(server.get("/v1/collections/c").await["persons"], 1, "the new one has its own");
    server.stop().await;
}

async fn a_face_of_a_picture_that_stays_is_not_found_again(site: Site) {
    let models = Models::of(&site).await;
    let server = models.serve(&site).await;
    server.make_collection("c").await;
    let first = enroll_ann(&server, &photo(&[ANN])).await;
    let group = index(&server, &[ANN, 2]).await;
    let hers = group.iter().find(|face| face["decision"] == "match").unwrap();
    let body =
        json!({ "image": inline(&photo(&[ANN, 2])), "person": { "external_id": "x" }, "face": { "box": hers["box"] } });
    let receipt = erase(&server, &person(&first["person_id"])).await;
    until_erased(&server, &receipt).await;
    assert_eq!(server.get("/v1/collections/c").await["faces"], 1);
    let run = server.reprocess("tiny-sure").await;
    let ready = server.until_run_is(&run, "ready").await;
    assert_eq!(ready["faces_new"], 0, "{ready}");
    server.switch(&run, "activate").await;
    let again = server.run("c", "index", &json!({ "image": inline(&photo(&[ANN, 2])) })).await;
    assert_eq!(again["result"]["faces"].as_array().unwrap().len(), 1, "{again}");
    // Somebody says whose it is.
    let named = server.run("c", "enroll", &body).await;
    assert_eq!(named["state"], "succeeded", "{named}");
    assert_eq!(server.get("/v1/collections/c").await["faces"], 2);
    // With every picture that shows the person.
    let all = format!("{}?images=all", person(&named["result"]["person_id"]));
    let receipt = until_erased(&server, &erase(&server, &all).await).await;
    assert_eq!((&receipt["removed"]["images"], &receipt["removed"]["faces"]), (&json!(1), &json!(2)), "{receipt}");
    assert_eq!(server.get("/v1/collections/c").await["images"], 0);
    server.wait_for_objects(0).await;
    server.wait_for_crops(0).await;
    server.stop().await;
}
