//! stub
#[derive(clap::Args)]
pub(crate) struct DemoArgs {}
pub(crate) async fn run(_: &shared::config::Config, _: DemoArgs) -> anyhow::Result<()> { Ok(()) }
