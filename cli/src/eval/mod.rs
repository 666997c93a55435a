//! stub
#[derive(clap::Subcommand)]
pub(crate) enum EvalCommand { Lfw }
pub(crate) async fn run(_: &shared::config::Config, _: EvalCommand) -> anyhow::Result<()> { Ok(()) }
