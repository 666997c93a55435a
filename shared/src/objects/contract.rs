//! What every [`ObjectStore`] promises, as a suite that each implementation runs.

use std::sync::Arc;
use std::time::Duration;

use super::{ObjectError, ObjectStore};

/// Runs the suite on an empty store and leaves it empty.
///
/// # Panics
/// The store breaks a promise.
pub async fn run(store: Arc<dyn ObjectStore>) {
    gives_back_what_was_put(&*store).await;
    tells_what_is_not_there(&*store).await;
    refuses_bad_keys(&*store).await;
    takes_odd_keys(&*store).await;
    lists_in_order(&*store).await;
    survives_concurrent_writers(Arc::clone(&store)).await;
}

async fn gives_back_what_was_put(store: &dyn ObjectStore) {
    store.put("a/b/c", b"first").await.expect("put");
    store.put("a/b/c", b"second!").await.expect("put replaces");
    assert_eq!(store.get("a/b/c", 7).await.expect("get"), b"second!");
    assert!(matches!(store.get("a/b/c", 6).await, Err(ObjectError::TooLarge { max_bytes: 6, .. })));
    let meta = store.head("a/b/c").await.expect("head");
    assert_eq!((meta.key.as_str(), meta.size_bytes), ("a/b/c", 7));
    store.put("empty", b"").await.expect("put");
    assert_eq!(store.get("empty", 10).await.expect("get"), b"");
    for key in ["a/b/c", "empty"] {
        store.delete(key).await.expect("delete");
        store.delete(key).await.expect("delete again");
    }
    store.clean(Duration::ZERO).await.expect("clean");
}

async fn tells_what_is_not_there(store: &dyn ObjectStore) {
    assert!(matches!(store.get("a/missing", 10).await, Err(ObjectError::NotFound(_))));
    let error = store.head("a/missing").await.expect_err("head of nothing");
    assert!(matches!(error, ObjectError::NotFound(_)) && !error.is_transient());
}

async fn refuses_bad_keys(store: &dyn ObjectStore) {
    for key in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/", "a\\b", "a\0b"] {
        assert!(matches!(store.put(key, b"x").await, Err(ObjectError::BadKey(_))), "put {key:?}");
        assert!(matches!(store.get(key, 1).await, Err(ObjectError::BadKey(_))), "get {key:?}");
        assert!(matches!(store.delete(key).await, Err(ObjectError::BadKey(_))), "delete {key:?}");
    }
}

async fn takes_odd_keys(store: &dyn ObjectStore) {
    // In ascending order of their bytes.
    let keys = ["100%", "a b", "a%2Fb", "a&b=c?d#e", "a+b", "q\"'<>", "~tilde(1)*!@$:;,[]{}|^`", "ünï/çødé ✓"];
    for key in keys {
        store.put(key, key.as_bytes()).await.expect("put");
    }
    for key in keys {
        assert_eq!(store.get(key, 100).await.expect("get"), key.as_bytes(), "{key}");
        assert_eq!(store.head(key).await.expect("head").key, key);
        assert_eq!(store.list(key, None, 1).await.expect("list")[0].key, key);
    }
    let listed = store.list("", None, 100).await.expect("list");
    assert_eq!(listed.into_iter().map(|o| o.key).collect::<Vec<_>>(), keys);
    for key in keys {
        store.delete(key).await.expect("delete");
        assert!(matches!(store.head(key).await, Err(ObjectError::NotFound(_))), "{key}");
    }
}

async fn lists_in_order(store: &dyn ObjectStore) {
    let keys = ["l/a", "l/a/x/1", "l/b", "l2/c"].map(|k| k.replace("l/a/x", "l/ax"));
    for key in keys.iter().rev() {
        store.put(key, b"x").await.expect("put");
    }
    let names = async |prefix: &str, after: Option<&str>, limit| {
        let found = store.list(prefix, after, limit).await.expect("list");
        found.into_iter().map(|o| o.key).collect::<Vec<_>>()
    };
    assert_eq!(names("l", None, 10).await, ["l/a", "l/ax/1", "l/b", "l2/c"]);
    assert_eq!(names("l/", None, 10).await, ["l/a", "l/ax/1", "l/b"]);
    assert_eq!(names("l/", Some("l/a"), 1).await, ["l/ax/1"]);
    assert_eq!(names("nothing/", None, 10).await, Vec::<String>::new());
    for key in &keys {
        store.delete(key).await.expect("delete");
    }
}

async fn survives_concurrent_writers(store: Arc<dyn ObjectStore>) {
    let writers: Vec<_> = (0..16_u8)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let key = format!("busy/{n}/object");
                store.put(&key, &[n; 1000]).await.expect("put");
                assert_eq!(store.get(&key, 1000).await.expect("get"), [n; 1000]);
                store.put("busy/same", &[n; 1000]).await.expect("put");
                let same = store.get("busy/same", 1000).await.expect("get");
                assert!(same.iter().all(|b| *b == same[0]), "a reader sees one writer's bytes only");
                store.delete(&key).await.expect("delete");
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer failed");
    }
    store.delete("busy/same").await.expect("delete");
}
