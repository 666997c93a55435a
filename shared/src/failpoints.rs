//! Named points at which a test lets the process die, as a crash would (no destructor runs, nothing is flushed), or lets a
//! part of it stand still.

/// Ends the process here if `FACE_ID_CRASH_AT` names this point: `point`, or `point:3` for the third time it is reached.
/// Without the cargo feature `failpoints`, which only tests switch on, this is nothing.
#[inline]
pub fn failpoint(point: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::reach(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

/// Stands still here while the file of `FACE_ID_STAND_STILL_AT=point=file` is there. Nothing without `failpoints`.
#[cfg_attr(not(feature = "failpoints"), expect(clippy::unused_async, reason = "the callers are the same either way"))]
pub async fn stand_still(point: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::stand_still(point).await;
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    static ARMED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static REACHED: AtomicU32 = AtomicU32::new(0);

    #[expect(clippy::disallowed_methods, reason = "it is no setting: only a test's build reads it")]
    pub(super) fn reach(point: &'static str) {
        let armed = ARMED.get_or_init(|| {
            let wanted = std::env::var("FACE_ID_CRASH_AT").ok()?;
            let (name, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
            Some((name.to_owned(), nth.parse().ok()?))
        });
        if let Some((name, nth)) = armed
            && name == point
            && REACHED.fetch_add(1, Ordering::SeqCst) + 1 == *nth
        {
            tracing::error!(point, "the process ends here, as FACE_ID_CRASH_AT asks");
            std::process::abort();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "it is no setting: only a test's build reads it")]
    pub(super) async fn stand_still(point: &'static str) {
        let Ok(wanted) = std::env::var("FACE_ID_STAND_STILL_AT") else { return };
        let Some((_, file)) = wanted.split_once('=').filter(|(name, _)| *name == point) else { return };
        while Path::new(file).is_file() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
