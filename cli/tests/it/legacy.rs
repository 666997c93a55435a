//! The requests of the 2018 demo, as its front end sends them, on real photographs and with the default pipeline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::catalogue::Catalogue;
use worker::testing::{real_assets, real_data};

use crate::keys::{keyed, token};
use crate::server::{Server, Site, http, inline, on_both, photo};

on_both!(a_front_end_goes_on_working, a_folder_is_registered, who_may_not_is_refused, what_is_off_is_not_there,);

const PIPELINE: &str = "yunet-mobilefacenet";
/// Of `cli/tests/it/legacy.rs`'s own servers.
const ON: (&str, &str) = ("FACE_ID_SERVER__LEGACY_API", "true");
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where real photographs and weights are.
struct Photographs {
    assets: String,
    data: PathBuf,
}

impl Photographs {
    fn find() -> Option<Self> {
        let pipeline = Catalogue::load(None).unwrap().pipeline(PIPELINE).unwrap().clone();
        real_assets(&pipeline)?;
        let (faces, _) = (real_data("faces")?, real_data("lfw")?);
        let data = faces.parent().unwrap().to_owned();
        Some(Self { assets: data.parent().unwrap().to_str().unwrap().to_owned(), data })
    }

    fn face(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.data.join("faces").join(name)).unwrap()
    }

    /// The n-th photograph of somebody in Labeled Faces in the Wild, from 0.
    fn lfw(&self, person: &str, n: usize) -> Vec<u8> {
        let folder = self.data.join("lfw/lfw-deepfunneled").join(person);
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        std::fs::read(&files[n]).unwrap()
    }

    /// Starts a server with the real pipeline and these settings.
    async fn serve(&self, site: &Site, settings: &[(&str, &str)]) -> Server {
        let own = [
            ON,
            ("FACE_ID_ASSETS_DIR", self.assets.as_str()),
            ("FACE_ID_MODELS__DEFAULT_PIPELINE", PIPELINE),
            ("FACE_ID_WORKER__PIPELINES", PIPELINE),
        ];
        Server::start_with(site, &[&own, settings].concat()).await
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn is(&self, status: StatusCode, detail: &str) -> &Self {
        assert_eq!((self.status, &self.body["detail"]), (status, &json!(detail)), "{}", self.body);
        self
    }

    fn ok(&self, detail: &str) -> &Self {
        self.is(StatusCode::OK, detail)
    }

    /// A problem with that code that says something of the field.
    fn is_problem(&self, status: StatusCode, code: &str, pointer: Option<&str>) {
        assert_eq!((self.status, &self.body["code"]), (status, &json!(code)), "{}", self.body);
        assert_eq!(self.body["errors"][0]["pointer"].as_str(), pointer, "{}", self.body);
        assert!(!self.body["detail"].as_str().unwrap().is_empty());
    }
}

async fn post(server: &Server, path: &str, body: Option<&Value>) -> Answer {
    let request = server.request(Method::POST, path);
    let request = match body {
        Some(body) => request.json(body),
        None => request,
    };
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    Answer { status, headers, body: answer.json().await.unwrap() }
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The boxes of the faces on a picture, the largest first.
async fn boxes(server: &Server, picture: &[u8]) -> Vec<Value> {
    let job = server.run("legacy", "identify", &json!({ "image": inline(picture) })).await;
    let mut boxes: Vec<Value> =
        job["result"]["faces"].as_array().unwrap().iter().map(|face| face["box"].clone()).collect();
    boxes.sort_by(|a, b| b["width"].as_f64().unwrap().total_cmp(&a["width"].as_f64().unwrap()));
    boxes
}

/// A box in the forms that the front end has for it.
fn forms(found: &Value) -> [Value; 4] {
    let at = |name: &str| found[name].as_f64().unwrap();
    let [left, top] = [at("x"), at("y")];
    let [right, bottom] = [left + at("width"), top + at("height")];
    let object = json!({ "left": left, "top": top, "right": right, "bottom": bottom });
    let array = json!([left, top, right, bottom]);
    [object.clone(), array.clone(), json!(object.to_string()), json!(array.to_string())]
}

async fn a_front_end_goes_on_working(site: Site) {
    let Some(photos) = Photographs::find() else { return };
    let server = photos.serve(&site, &[]).await;
    let (obama, obama2, biden) = (photos.face("obama.jpg"), photos.face("obama2.jpg"), photos.face("biden.jpg"));

    let asked = json!({ "picture": base64(&obama2), "threshold": 0.6 });
    let nobody = post(&server, "/api/recognition/", Some(&asked)).await;
    nobody.ok("No face in database!");
    assert_eq!(nobody.headers["x-face-id-ignored"], "threshold");
    let absent = post(&server, "/api/delete/", Some(&json!({ "delete_ID": "44" }))).await;
    absent.is_problem(StatusCode::NOT_FOUND, "person_not_found", None);

    let registration = json!({
        "picture": format!("data:image/jpeg;base64,{}", base64(&obama)),
        "ID": 44, "name": "Barack Obama", "description": "the 44th", "boundingbox": null,
    });
    let saved = post(&server, "/api/register/", Some(&registration)).await;
    saved.ok("new face has been saved!");
    assert!(!saved.headers.contains_key("x-face-id-ignored"));
    let persons = server.get("/v1/collections/legacy/persons?external_id=44").await;
    let person = &persons["items"][0];
    assert_eq!((&person["name"], &person["description"]), (&json!("Barack Obama"), &json!("the 44th")));

    // What cannot be kept keeps nobody from being registered.
    let again = json!({ "picture": base64(&obama), "ID": 44, "description": { "nested": true } });
    let saved = post(&server, "/api/register/", Some(&again)).await;
    saved.ok("new face has been saved!");
    assert_eq!(saved.headers["x-face-id-ignored"], "description");

    let found = post(&server, "/api/recognition", Some(&asked)).await;
    found.ok("find result!");
    assert_eq!((&found.body["ID"], &found.body["name"]), (&json!("44"), &json!("Barack Obama")));
    assert_eq!(found.body["picture"], base64(&obama), "the picture that was registered");
    assert!((0.3..1.0).contains(&found.body["similarity"].as_f64().unwrap()), "{}", found.body["similarity"]);
    post(&server, "/api/recognition/", Some(&json!({ "picture": base64(&biden) }))).await.ok("no result!");
    let nothing = post(&server, "/api/recognition/", Some(&json!({ "picture": base64(&photo(&[])) }))).await;
    nothing.is(StatusCode::UNPROCESSABLE_ENTITY, "recognition failed!");
    assert_eq!(nothing.body["code"], "no_face");
    let cut = json!({ "picture": base64(&obama[..obama.len() / 50]) });
    let broken = post(&server, "/api/recognition/", Some(&cut)).await;
    broken.is(StatusCode::UNPROCESSABLE_ENTITY, "recognition failed!");
    assert!(broken.body["code"].as_str().unwrap().starts_with("image_"), "{}", broken.body);
    let empty = json!({ "picture": base64(&photo(&[])), "ID": "1", "name": "Nobody" });
    let not_saved = post(&server, "/api/register/", Some(&empty)).await;
    not_saved.is(StatusCode::UNPROCESSABLE_ENTITY, "Database Info saved Error!");
    assert_eq!(not_saved.body["code"], "no_face");

    of_two_faces_the_one_in_the_box(&server, &photos).await;
    what_is_wrong_is_told(&server, &obama).await;

    post(&server, "/api/delete", Some(&json!({ "delete_ID": 44 }))).await.ok("delete success!");
    post(&server, "/api/recognition/", Some(&asked)).await.ok("no result!");
    let (path, settings) = ("/v1/collections/legacy", json!({ "settings": { "max_matches": 7 } }));
    let (status, before) = server.patch(path, "*", &settings).await;
    assert_eq!(status, StatusCode::OK, "{before}");
    post(&server, "/api/clear/", None).await.ok("all data has been cleaned!");
    let after = server.get(path).await;
    assert_eq!((&after["settings"], &after["pipeline"]), (&before["settings"], &before["pipeline"]));
    assert_ne!(after["id"], before["id"]);
    post(&server, "/api/recognition/", Some(&asked)).await.ok("No face in database!");
    server.wait_for_objects(0).await;
    post(&server, "/api/register/", Some(&registration)).await.ok("new face has been saved!");
    server.stop().await;
}

/// On a picture of two people that are both registered, each box finds its person.
async fn of_two_faces_the_one_in_the_box(server: &Server, photos: &Photographs) {
    let (both, biden) = (photos.face("obama_and_biden.jpg"), photos.face("biden2.jpg"));
    let registration = json!({ "picture": base64(&biden), "ID": "46", "name": "Joe Biden", "boundingbox": "" });
    post(server, "/api/register/", Some(&registration)).await.ok("new face has been saved!");
    let mut names = Vec::new();
    for (n, found) in boxes(server, &both).await.iter().take(2).enumerate() {
        let mut answers = Vec::new();
        for form in forms(found) {
            let asked = json!({ "picture": base64(&both), "boundingbox": form });
            let answer = post(server, "/api/recognition/", Some(&asked)).await;
            answer.ok("find result!");
            answers.push(answer.body["name"].as_str().unwrap().to_owned());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "the form makes no difference");
        if n == 0 {
            let largest = post(server, "/api/recognition/", Some(&json!({ "picture": base64(&both) }))).await;
            assert_eq!(largest.body["name"], answers[0].as_str(), "without a box it is the largest");
        }
        names.extend(answers);
    }
    names.sort();
    assert_eq!(names, ["Barack Obama", "Joe Biden"]);
    let nowhere = json!({ "picture": base64(&both), "boundingbox": [0, 0, 5, 5], "ID": "9" });
    for (path, detail) in [("recognition", "recognition failed!"), ("register", "Database Info saved Error!")] {
        let answer = post(server, &format!("/api/{path}/"), Some(&nowhere)).await;
        answer.is(StatusCode::UNPROCESSABLE_ENTITY, detail);
        assert_eq!(answer.body["code"], "no_such_face");
    }
}

async fn what_is_wrong_is_told(server: &Server, picture: &[u8]) {
    let picture = base64(picture);
    let cases = [
        ("recognition", json!({ "picture": "?" }), "invalid_request", Some("#/picture")),
        ("recognition", json!({ "picture": picture, "boundingbox": [1, 2] }), "invalid_request", Some("#/boundingbox")),
        ("recognition", json!({}), "invalid_request", Some("#")),
        ("register", json!({ "picture": picture, "ID": "" }), "invalid_request", Some("#/ID")),
        ("register", json!({ "picture": picture, "ID": [1] }), "invalid_request", Some("#/ID")),
        ("delete", json!({ "delete_ID": "nobody" }), "person_not_found", None),
        ("register_batch", json!({}), "no_legacy_pictures", None),
    ];
    for (path, body, code, pointer) in cases {
        let answer = post(server, &format!("/api/{path}/"), Some(&body)).await;
        let status = if code == "person_not_found" { StatusCode::NOT_FOUND } else { StatusCode::UNPROCESSABLE_ENTITY };
        answer.is_problem(status, code, pointer);
    }
    let text = json!({ "picture": base64(b"no picture") });
    let answer = post(server, "/api/recognition/", Some(&text)).await;
    answer.is_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "image_unsupported_format", None);
    let got = server.request(Method::GET, "/api/recognition/").send().await.unwrap();
    assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
}

/// Puts the pictures where the server reads them, and names the place.
async fn put(site: &Site, pictures: &[(&str, Vec<u8>)]) -> (String, [(&'static str, String); 2]) {
    if site.has_services() {
        let bucket = site.another_bucket().await;
        for (name, bytes) in pictures {
            bucket.put(&format!("people/{name}"), bytes).await;
        }
        let place = format!("s3://{}/people/", bucket.name);
        let allowed = ("FACE_ID_OBJECTS__ALLOWED_BUCKETS", bucket.name.clone());
        return (place.clone(), [("FACE_ID_SERVER__LEGACY_PICTURES", place), allowed]);
    }
    let folder = site.folder().join("people");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in pictures {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let place = folder.to_str().unwrap().to_owned();
    (place.clone(), [("FACE_ID_SERVER__LEGACY_PICTURES", place.clone()), ("FACE_ID_IMPORT__ROOTS", place)])
}

async fn a_folder_is_registered(site: Site) {
    let Some(photos) = Photographs::find() else { return };
    let people = ["George_W_Bush", "Colin_Powell", "Tony_Blair"];
    let files: Vec<(String, Vec<u8>)> = people
        .iter()
        .enumerate()
        .map(|(n, person)| (format!("{n} {}.jpg", person.replace('_', " ")), photos.lfw(person, 0)))
        .collect();
    let mut pictures: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    pictures.push(("notes.txt", b"no picture".to_vec()));
    let (_, settings) = put(&site, &pictures).await;
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = photos.serve(&site, &settings).await;
    post(&server, "/api/register_batch/", None).await.ok("all face has been saved!");
    let jobs = async || server.get("/v1/jobs?collection=legacy&kind=enroll").await["items"].as_array().unwrap().len();
    assert_eq!(jobs().await, 3);
    for (n, person) in people.iter().enumerate() {
        let answer =
            post(&server, "/api/recognition/", Some(&json!({ "picture": base64(&photos.lfw(person, 1)) }))).await;
        answer.ok("find result!");
        assert_eq!(answer.body["ID"], n.to_string());
        assert_eq!(answer.body["name"], person.replace('_', " "));
        assert_eq!(answer.body["picture"], base64(&files[n].1), "the file itself");
    }
    let stranger = json!({ "picture": base64(&photos.face("astronaut.png")) });
    post(&server, "/api/recognition/", Some(&stranger)).await.ok("no result!");
    post(&server, "/api/register_batch", Some(&json!({}))).await.ok("all face has been saved!");
    assert_eq!(jobs().await, 3, "what is registered makes no job");
    post(&server, "/api/delete/", Some(&json!({ "delete_ID": "1" }))).await.ok("delete success!");
    post(&server, "/api/register_batch/", None).await.ok("all face has been saved!");
    assert_eq!(jobs().await, 4, "who was deleted is registered again");
    server.stop().await;
    what_is_wrong_with_files_is_told(&site, &photos).await;
}

async fn what_is_wrong_with_files_is_told(site: &Site, photos: &Photographs) {
    let pictures = [
        ("8 Laura Bush.jpg", photos.lfw("Laura_Bush", 0)),
        ("9 Nobody.png", photo(&[])),
        ("nameless.jpg", photos.lfw("Laura_Bush", 1)),
    ];
    let (place, settings) = put(site, &pictures).await;
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = photos.serve(site, &settings).await;
    let answer = post(&server, "/api/register_batch/", None).await;
    answer.is(StatusCode::UNPROCESSABLE_ENTITY, "Database Info saved Error!");
    let troubles: Vec<(&str, &str)> = answer.body["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trouble| (trouble["file"].as_str().unwrap(), trouble["code"].as_str().unwrap()))
        .collect();
    assert_eq!(troubles, [("9 Nobody.png", "no_face"), ("nameless.jpg", "bad_name")]);
    let asked = json!({ "picture": base64(&photos.lfw("Laura_Bush", 2)) });
    assert_eq!(post(&server, "/api/recognition/", Some(&asked)).await.body["ID"], "8", "the good one is saved");
    server.stop().await;
    let elsewhere = if site.has_services() { format!("{place}nothing/") } else { empty_folder(Path::new(&place)) };
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| {
            (*name, if *value == place && name.ends_with("PICTURES") { elsewhere.as_str() } else { value })
        })
        .collect();
    let server = photos.serve(site, &settings).await;
    let answer = post(&server, "/api/register_batch/", None).await;
    answer.is(StatusCode::UNPROCESSABLE_ENTITY, "Database Info saved Error!");
    assert_eq!(answer.body["code"], "source_empty");
    server.stop().await;
}

fn empty_folder(below: &Path) -> String {
    let folder = below.join("nothing");
    std::fs::create_dir_all(&folder).unwrap();
    folder.to_str().unwrap().to_owned()
}

async fn who_may_not_is_refused(site: Site) {
    let site = keyed(site).await;
    let server = Server::start_with(&site, &[ON]).await;
    let picture = base64(&photo(&[1]));
    let bodies = [
        ("recognition", json!({ "picture": picture }), "identify"),
        ("register", json!({ "picture": picture, "ID": "1", "name": "One" }), "write"),
        ("delete", json!({ "delete_ID": "1" }), "write"),
        ("register_batch", json!({}), "write"),
        ("clear", json!({}), "admin"),
    ];
    let ask = async |path: &str, body: &Value, key: Option<&Value>, site: Option<&str>| {
        let mut request = http(key.map(token), TIMEOUT).post(format!("{}/api/{path}/", server.address)).json(body);
        if let Some(site) = site {
            request = request.header("sec-fetch-site", site);
        }
        request.send().await.unwrap().status()
    };
    let admin = site.make_key(&["--scope", "admin"]).await;
    for (path, body, _) in &bodies {
        assert_eq!(ask(path, body, None, None).await, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(ask(path, body, Some(&admin), Some("cross-site")).await, StatusCode::FORBIDDEN, "{path}");
    }
    for (scope, allowed) in [("read", &[][..]), ("identify", &["identify"]), ("write", &["identify", "write"])] {
        let key = site.make_key(&["--scope", scope]).await;
        for (path, body, needs) in &bodies {
            let status = ask(path, body, Some(&key), Some("same-origin")).await;
            assert_eq!(status == StatusCode::FORBIDDEN, !allowed.contains(needs), "{path} with {scope}: {status}");
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{path} with {scope}");
        }
    }
    let of_page = async |origin: &str| {
        let request = http(Some(token(&admin)), TIMEOUT).post(format!("{}/api/clear/", server.address));
        request.header("origin", origin).send().await.unwrap().status()
    };
    for origin in ["http://elsewhere.example", "null"] {
        assert_eq!(of_page(origin).await, StatusCode::FORBIDDEN, "{origin}");
    }
    assert_eq!(of_page(&server.address).await, StatusCode::OK, "its own");
    assert_eq!(ask("clear", &json!({}), Some(&admin), None).await, StatusCode::OK);
    // Another collection's key finds nobody, and makes no collection.
    server.make_collection("other").await;
    let other = site.make_key(&["--scope", "admin", "--collection", "other"]).await;
    let answer = http(Some(token(&other)), TIMEOUT)
        .post(format!("{}/api/recognition/", server.address))
        .json(&bodies[0].1)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["detail"], "No face in database!");
    for (path, body, _) in &bodies[1..] {
        let status = ask(path, body, Some(&other), None).await;
        let expected = match *path {
            "delete" => StatusCode::NOT_FOUND,
            "register_batch" => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::FORBIDDEN,
        };
        assert_eq!(status, expected, "{path}");
    }
    server.stop().await;
}

async fn what_is_off_is_not_there(site: Site) {
    let server = Server::start(&site).await;
    for path in ["recognition", "register", "delete", "register_batch", "clear"] {
        for end in ["", "/"] {
            let answer = post(&server, &format!("/api/{path}{end}"), Some(&json!({}))).await;
            answer.is_problem(StatusCode::NOT_FOUND, "no_such_route", None);
        }
    }
    server.stop().await;
}
