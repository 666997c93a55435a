//! Takes out of Swagger UI's release what `/docs` is made of, so that no page has to fetch it from elsewhere.

use std::error::Error;
use std::io::{Cursor, Read as _};
use std::path::Path;

use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

/// Of some 11 MB, most of them maps for its developers.
const FILES: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui.css"];

#[expect(clippy::disallowed_methods, reason = "it is no setting of the program: cargo says by it where to write")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let folder = std::env::var("OUT_DIR")?;
    let mut release = zip::ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for name in FILES {
        let wanted = format!("/dist/{name}");
        let inside = release.file_names().find(|path| path.ends_with(&wanted)).map(str::to_owned);
        let mut text = String::new();
        release.by_name(&inside.ok_or("Swagger UI's release has other files now")?)?.read_to_string(&mut text)?;
        // A map is looked for beside the file, where it is not.
        let text: Vec<&str> = text.lines().filter(|line| !line.contains("# sourceMappingURL=")).collect();
        std::fs::write(Path::new(&folder).join(name), text.join("\n"))?;
    }
    Ok(())
}
