//! Operation ids: utoipa takes the name of the function, of which there are many `get`s.

use std::collections::BTreeSet;

use serde_json::Value;

use super::each_operation;

/// Puts an operation's tag before its name.
pub(super) fn add(document: &mut Value) {
    let mut known = BTreeSet::new();
    each_operation(document, |method, path, operation| {
        let tag = operation["tags"][0].as_str().unwrap_or_default().replace('-', "_");
        let name = format!("{tag}_{}", operation["operationId"].as_str().unwrap_or_default());
        operation.insert("operationId".to_owned(), name.clone().into());
        assert!(known.insert(name), "{method} {path} needs an operation_id of its own; this is a bug");
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    /// utoipa knows schemas by their names: of two types of one name it keeps one, in silence.
    #[test]
    fn no_two_schemas_share_a_name() {
        let mut known: BTreeMap<String, PathBuf> = BTreeMap::new();
        for folder in ["src", "../shared/src"] {
            for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) {
                for name in schemas(&std::fs::read_to_string(&file).unwrap()) {
                    let other = known.insert(name.clone(), file.clone());
                    assert_eq!(other, None, "{name} stands in {} too", file.display());
                }
            }
        }
        assert!(known.len() > 70, "{}", known.len());
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
        files.filter(|path| path.extension().is_some_and(|ending| ending == "rs")).collect()
    }

    /// The types of a file that derive one.
    fn schemas(text: &str) -> Vec<String> {
        let (mut found, mut derives) = (Vec::new(), false);
        for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("use ")) {
            if let Some(rest) = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum ")) {
                let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
                if std::mem::take(&mut derives) && !name.is_empty() {
                    found.push(name);
                }
            }
            derives |= line.contains("ToSchema");
        }
        found
    }
}
