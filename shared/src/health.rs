//! Readiness: what must work before a process should get work, each tried within a time.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

/// Longest time one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// What a check found: that it works, and perhaps something to be known, or what is wrong.
pub type CheckResult = Pin<Box<dyn Future<Output = Result<Option<String>, String>> + Send>>;

/// One thing that must work.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    run: Arc<dyn Fn() -> CheckResult + Send + Sync>,
}

/// How a process is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// What was tried.
    pub checks: Vec<CheckView>,
}

/// One thing that was tried.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckView {
    /// What.
    name: &'static str,
    /// Whether it works.
    ok: bool,
    /// What is wrong, or to be known.
    detail: Option<String>,
}

impl Check {
    /// A check of that name in `/readyz`.
    pub fn new<F, E>(name: &'static str, run: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let run = move || -> CheckResult {
            let tried = run();
            Box::pin(async move { tried.await.map(|()| None).map_err(|e| e.to_string()) })
        };
        Self { name, run: Arc::new(run) }
    }

    /// Something to be known of the process, as it is now, that does not keep it from getting work; nothing where empty.
    pub fn note(name: &'static str, detail: impl Fn() -> String + Send + Sync + 'static) -> Self {
        let run = move || -> CheckResult {
            let detail = Some(detail()).filter(|text| !text.is_empty());
            Box::pin(std::future::ready(Ok(detail)))
        };
        Self { name, run: Arc::new(run) }
    }
}

impl Health {
    /// A process that answers and has nothing to try.
    pub fn alive() -> Self {
        Self { status: "ok", checks: Vec::new() }
    }

    /// Tries everything at once.
    pub async fn of(checks: &[Check]) -> Self {
        let tried = checks.iter().map(|check| async move {
            let late = || format!("no answer within {} s", CHECK_TIMEOUT.as_secs());
            let found = tokio::time::timeout(CHECK_TIMEOUT, (check.run)()).await.unwrap_or_else(|_| Err(late()));
            let ok = found.is_ok();
            CheckView { name: check.name, ok, detail: found.unwrap_or_else(Some) }
        });
        let checks = futures_util::future::join_all(tried).await;
        let status = if checks.iter().all(|c| c.ok) { "ok" } else { "unavailable" };
        Self { status, checks }
    }

    /// Whether everything works.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}
