//! Input that cannot work: each has a stable code, and nothing of it is left behind.

use std::io::Cursor;

use image::{ExtendedColorType, ImageEncoder as _, codecs::jpeg::JpegEncoder};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use worker::testing::synthetic_picture;

use crate::server::{SIDE, Server, Site, inline, on_both, photo, read};

on_both!(a_bad_request_has_a_code, a_bad_picture_is_rejected, unusual_pictures_work);

async fn a_bad_request_has_a_code(site: Site) {
    let server = Server::start_with(&site, &[("FACE_ID_SERVER__MAX_BODY_BYTES", "100000")]).await;
    server.make_collection("c").await;
    let post = |path: &str| server.request(Method::POST, path);
    let (uploads, identify, enroll) =
        ("/v1/collections/c/uploads", "/v1/collections/c/identify", "/v1/collections/c/enroll");
    let none = "00000000-0000-7000-8000-000000000000";
    let some = inline(&photo(&[1]));
    let json_text = |text: &'static str| post(identify).header("content-type", "application/json").body(text);
    let cases: Vec<(u16, &str, RequestBuilder)> = vec![
        (400, "empty_body", post(uploads)),
        (415, "image_unsupported_format", post(uploads).body("some text")),
        (415, "image_unsupported_format", post(identify).json(&json!({ "image": inline(b"some text") }))),
        (413, "body_too_large", post(uploads).body(vec![0xff; 100_001])),
        (413, "body_too_large", post(identify).json(&json!({ "image": { "base64": "A".repeat(100_001) } }))),
        (400, "malformed_multipart", post(uploads).header("content-type", "multipart/form-data").body("x")),
        (404, "upload_not_found", post(identify).json(&json!({ "image": { "upload_id": none } }))),
        (404, "person_not_found", post(enroll).json(&json!({ "image": some, "person": { "id": none } }))),
        (404, "collection_not_found", post("/v1/collections/x/identify").json(&json!({ "image": some }))),
        (404, "job_not_found", server.request(Method::GET, &format!("/v1/jobs/{none}"))),
        (404, "not_found", server.request(Method::GET, "/v1/jobs/7")),
        (404, "no_such_route", server.request(Method::GET, "/v2/jobs")),
        (400, "bad_request", server.request(Method::GET, "/v1/jobs?cursor=%00")),
        (405, "method_not_allowed", server.request(Method::PUT, "/v1/jobs")),
        (409, "collection_exists", post("/v1/collections").json(&json!({ "name": "c" }))),
        (422, "invalid_request", post("/v1/collections").json(&json!({ "name": "a b" }))),
        (422, "invalid_request", post("/v1/collections").json(&json!({ "name": "d", "pipeline": "vgg" }))),
        (
            422,
            "invalid_request",
            post("/v1/collections").json(&json!({ "name": "d", "settings": { "target_fpir": 7 } })),
        ),
        (422, "invalid_request", post(identify).json(&json!({ "image": { "base64": "%%%" } }))),
        (422, "invalid_request", post(identify).json(&json!({ "image": {} }))),
        (422, "invalid_request", post(identify).json(&json!({ "image": some, "max_matches": 0 }))),
        (422, "invalid_request", post(identify).json(&json!({ "picture": some }))),
        (422, "invalid_request", post(identify).json(&json!([some, null]))),
        (
            404,
            "collection_not_found",
            post("/v1/api-keys").json(&json!({ "name": "x", "scopes": ["read"], "collections": ["\0"] })),
        ),
        (422, "invalid_request", post(enroll).json(&json!({ "image": some, "person": { "external_id": " " } }))),
        (422, "invalid_request", server.request(Method::GET, "/v1/jobs?limit=0")),
        (400, "bad_cursor", server.request(Method::GET, "/v1/jobs?cursor=x")),
        (400, "malformed_json", json_text("{")),
        (400, "empty_body", json_text("")),
        (415, "unsupported_media_type", post(identify).body("{}")),
        (400, "bad_idempotency_key", post(identify).header("idempotency-key", "").json(&json!({ "image": some }))),
    ];
    for (n, (status, code, request)) in cases.into_iter().enumerate() {
        is_refused(n, request, status, code).await;
    }
    let collection = server.get("/v1/collections/c").await;
    assert_eq!((&collection["persons"], &collection["images"]), (&json!(0), &json!(0)));
    assert_eq!(server.get("/v1/jobs").await["items"], json!([]));
    assert_eq!(server.objects().len(), 0, "nothing is left behind");
    server.stop().await;
}

async fn is_refused(n: usize, request: RequestBuilder, status: u16, code: &str) {
    let answer = request.send().await.unwrap();
    let (found, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((found, body["code"].as_str()), (status, Some(code)), "case {n}: {body}");
    assert_eq!(headers["content-type"], "application/problem+json");
    assert_eq!(body["request_id"].as_str().unwrap(), headers["x-request-id"].to_str().unwrap());
    assert_eq!(body["status"], status);
}

async fn a_bad_picture_is_rejected(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    let jpeg = jpeg();
    let mut cases = vec![(png_header(100_000, 100_000), "image_too_large"), (png_header(30, 30), "image_truncated")];
    for tenth in 1..10 {
        cases.push((jpeg[..jpeg.len() * tenth / 10].to_vec(), "image_truncated"));
    }
    for (n, (picture, code)) in cases.into_iter().enumerate() {
        for kind in ["index", "enroll", "identify"] {
            let mut body = json!({ "image": inline(&picture) });
            if kind == "enroll" {
                body["person"] = json!({ "external_id": "x" });
            }
            let job = server.run("c", kind, &body).await;
            assert_eq!(job["state"], "rejected", "case {n}: {job}");
            let found = job["problem"]["code"].as_str().unwrap();
            assert!(found == code || (code == "image_truncated" && found == "image_unreadable"), "case {n}: {job}");
            assert_eq!(job["attempt"], 1, "a true negative answer is not tried again");
        }
    }
    let collection = server.get("/v1/collections/c").await;
    assert_eq!(
        (&collection["persons"], &collection["images"], &collection["faces"]),
        (&json!(0), &json!(0), &json!(0))
    );
    server.wait_for_objects(0).await;
    server.stop().await;
}

async fn unusual_pictures_work(site: Site) {
    let server = Server::start(&site).await;
    server.make_collection("c").await;
    server.enroll("c", 1).await;
    let identified = async |picture: &[u8]| {
        let (_, job) =
            read(server.request(Method::POST, "/v1/collections/c/identify").json(&json!({ "image": inline(picture) })))
                .await;
        server.ended(&job).await
    };
    let deep = image::load_from_memory(&photo(&[1])).unwrap().into_rgb16();
    let mut png16 = Cursor::new(Vec::new());
    deep.write_to(&mut png16, image::ImageFormat::Png).unwrap();
    let mut webp = Cursor::new(Vec::new());
    image::load_from_memory(&photo(&[1])).unwrap().write_to(&mut webp, image::ImageFormat::WebP).unwrap();
    for picture in [jpeg(), png16.into_inner(), webp.into_inner()] {
        let job = identified(&picture).await;
        assert_eq!(job["result"]["faces"][0]["matches"][0]["external_id"], "person-1", "{job}");
        assert_eq!(job["result"]["faces"][0]["decision"], "match");
    }
    let mut boxes = Vec::new();
    for orientation in 1..=8 {
        let job = identified(&oriented_jpeg(orientation)).await;
        let b = &job["result"]["faces"][0]["box"];
        boxes.push(["x", "y", "width", "height"].map(|f| b[f].as_f64().unwrap()));
        assert_eq!(job["result"]["faces"][0]["decision"], "match", "orientation {orientation}: {job}");
    }
    for (n, found) in boxes.iter().enumerate() {
        let apart = found.iter().zip(&boxes[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 3.0, "orientation {} gives {found:?}, not {:?}", n + 1, boxes[0]);
    }
    server.stop().await;
}

/// A PNG that ends after its header.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let crc = header[12..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    });
    header.extend((!crc).to_be_bytes());
    header
}

fn jpeg() -> Vec<u8> {
    let picture = synthetic_picture(&[1], SIDE, SIDE);
    encode(&picture.rgb, SIDE, SIDE)
}

fn encode(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).write_image(rgb, width, height, ExtendedColorType::Rgb8).unwrap();
    bytes
}

/// The same upright picture, stored turned or mirrored, with the EXIF orientation (TIFF 6.0, tag 274) that says so.
fn oriented_jpeg(orientation: u8) -> Vec<u8> {
    use image::DynamicImage;
    let upright = synthetic_picture(&[1], SIDE, SIDE * 3 / 4);
    let upright: DynamicImage = image::RgbImage::from_raw(upright.width, upright.height, upright.rgb).unwrap().into();
    // What is stored is what the viewer's correction turns back.
    let stored = match orientation {
        2 => upright.fliph(),
        3 => upright.rotate180(),
        4 => upright.flipv(),
        5 => upright.rotate90().fliph(),
        6 => upright.rotate270(),
        7 => upright.rotate270().fliph(),
        8 => upright.rotate90(),
        _ => upright,
    }
    .into_rgb8();
    let plain = encode(stored.as_raw(), stored.width(), stored.height());
    let mut tiff = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut bytes = plain[..2].to_vec();
    bytes.extend([0xff, 0xe1]);
    bytes.extend(u16::try_from(tiff.len() + 2).unwrap().to_be_bytes());
    bytes.extend(tiff);
    bytes.extend(&plain[2..]);
    bytes
}
