//! The parts of a whole run: each measures, and tells the report.

use std::path::Path;

use anyhow::Context as _;

use super::all::{AllArgs, Part, Run};
use super::bare::BareLoop;
use super::interactive::{self, Interactive};
use super::library::{Library, pictures};
use super::memory::Memory;
use super::overhead::Overhead;
use super::report::markdown_table;
use super::setting::say;
use super::site::Site;
use super::throughput::{Throughput, Way};
use super::{charts, face_index, memory, overhead, search, throughput};

/// Queries of each gallery of pgvector's.
const QUERIES: usize = 200;

impl Run<'_> {
    pub(super) async fn small(&mut self) -> anyhow::Result<()> {
        let measured = throughput::measure(&self.setting, small(self.args)?, self.counts.small).await?;
        let (default, fastest) = (self.setting.default_pipeline.as_str(), self.setting.fastest.as_str());
        let peer = (Way::Peer, default);
        for (key, this, other) in [
            ("index_vs_runtime", (Way::Embedded, default), (Way::Bare, default)),
            ("index_vs_peer_small", (Way::Embedded, fastest), peer),
            ("index_vs_peer_small_fp32", (Way::Embedded, default), peer),
            ("index_vs_runtime_services", (Way::Services, default), (Way::Bare, default)),
            ("index_vs_peer_small_services", (Way::Services, fastest), peer),
        ] {
            self.report.ratio(key, measured.ratio(this, other));
        }
        self.throughput(Part::Small, "small.svg", &measured)
    }

    pub(super) async fn photos(&mut self) -> anyhow::Result<()> {
        let folder = self.args.photos.as_deref().context("--photos names no folder of 12-megapixel photographs")?;
        let measured = throughput::measure(&self.setting, folder, self.counts.photos).await?;
        let (default, fastest) = (self.setting.default_pipeline.as_str(), self.setting.fastest.as_str());
        let peer = (Way::Peer, default);
        for (key, this, other) in [
            ("index_vs_peer_12mp", (Way::Embedded, fastest), peer),
            ("index_vs_peer_12mp_fp32", (Way::Embedded, default), peer),
            ("index_vs_peer_12mp_services", (Way::Services, fastest), peer),
            ("index_vs_runtime_12mp", (Way::Embedded, default), (Way::Bare, default)),
        ] {
            self.report.ratio(key, measured.ratio(this, other));
        }
        self.throughput(Part::Photos, "photos.svg", &measured)
    }

    fn throughput(&mut self, part: Part, chart: &str, measured: &Throughput) -> anyhow::Result<()> {
        let mut table = markdown_table(&["who", "pipeline", "images/s", "ms of processor an image", "faces"]);
        for line in &measured.lines {
            let figures = match &line.best {
                Ok(took) => [format!("{:.1}", took.rate()), format!("{:.2}", took.cpu_ms()), took.faces.to_string()],
                Err(why) => ["-".to_owned(), "-".to_owned(), format!("missing: {why}")],
            };
            table.add_row([line.way.name().to_owned(), line.pipeline.clone()].into_iter().chain(figures));
        }
        charts::throughput(&self.args.out.join(chart), part.name(), measured)?;
        self.report.section(part.name(), &format!("{} pictures; the best of the rounds.\n\n{table}", measured.images));
        Ok(())
    }

    pub(super) async fn overhead(&mut self) -> anyhow::Result<()> {
        let embedded = overhead::measure(&self.setting, &self.setting.embedded, self.counts.overhead).await;
        let services = match self.setting.services() {
            Ok(config) => overhead::measure(&self.setting, config, self.counts.overhead).await,
            Err(error) => Err(error),
        };
        let mut table = markdown_table(&["mode", "who", "ms of processor a job"]);
        let own = |found: &anyhow::Result<Overhead>| found.as_ref().map(|o| o.own_ms).map_err(|e| format!("{e:#}"));
        self.report.ratio("overhead_ms_per_job", own(&services));
        self.report.ratio("overhead_ms_per_job_embedded", own(&embedded));
        let servers = services.as_ref().map_err(|e| format!("{e:#}")).and_then(|o| {
            let each = o.servers_ms.as_ref().ok_or("the servers are not processes of this machine")?;
            Ok(each.iter().map(|(_, ms)| ms).sum())
        });
        self.report.ratio("servers_ms_per_job", servers);
        for found in [&embedded, &services].into_iter().flatten() {
            let mut row = |who: &str, ms: f64| {
                table.add_row([found.mode.to_owned(), who.to_owned(), format!("{ms:.3}")]);
            };
            row("our own processes, without the analysis", found.own_ms);
            row("our own processes, a picture that is known", found.known_ms);
            found.servers_ms.iter().flatten().for_each(|(name, ms)| row(name, *ms));
        }
        let what =
            "models/tiny, a face a picture; a job's processor time less that of the bare loop; median of the rounds";
        let images = self.counts.overhead;
        self.report.section(Part::Overhead.name(), &format!("{images} pictures; {what}.\n\n{table}"));
        Ok(())
    }

    pub(super) async fn identify(&mut self) -> anyhow::Result<()> {
        let mut table = markdown_table(&["mode", "what", "p50 / p99"]);
        for (mode, suffix) in [("embedded", ""), ("services", "_services")] {
            let found = self.identify_on(mode).await;
            let ratio = |of: fn(&Interactive) -> f64| found.as_ref().map(of).map_err(|e| format!("{e:#}"));
            let [flood, idle] = ratio_keys(suffix);
            self.report.ratio(flood, ratio(Interactive::flood_vs_idle));
            self.report.ratio(idle, ratio(Interactive::idle_vs_bare));
            let Ok(found) = found else { continue };
            for (what, times) in [
                ("the analysis alone, in the bare loop", found.bare),
                ("identify, idle", found.idle),
                ("identify beside a batch", found.flood),
            ] {
                table.add_row([mode.to_owned(), what.to_owned(), times.shown()]);
            }
        }
        let (times, pipeline) = (self.counts.identifies, &self.setting.default_pipeline);
        let text = format!("{times} requests each, one after the other, {pipeline}.\n\n{table}");
        self.report.section(Part::Identify.name(), &text);
        Ok(())
    }

    async fn identify_on(&self, mode: &str) -> anyhow::Result<Interactive> {
        let setting = &self.setting;
        let config = if mode == "embedded" { &setting.embedded } else { setting.services()? };
        let pipeline = &setting.default_pipeline;
        let bare = BareLoop::load(config, &setting.catalogue, &setting.assets, pipeline).await?;
        let library = Library::open(config, small(self.args)?, self.counts.small).await?;
        let site = Site::open(config, library, &[]).await?;
        say(&format!("identify, {mode}"));
        let measured = async {
            site.warm_up(pipeline).await?;
            interactive::measure(&site, &bare, pipeline, self.counts.identifies).await
        }
        .await;
        site.close(measured).await
    }

    pub(super) async fn memory(&mut self) -> anyhow::Result<()> {
        let photographs = pictures(small(self.args)?, usize::MAX)?;
        let measured = memory::measure(&self.setting, &photographs, self.counts.memory).await?;
        self.report.ratio("rss_last_vs_second_quarter", measured.last_vs_second_quarter());
        charts::memory(&self.args.out.join("memory.svg"), &measured)?;
        self.report.section(Part::Memory.name(), &told(&measured, &self.setting.default_pipeline));
        Ok(())
    }

    pub(super) async fn search(&mut self) -> anyhow::Result<()> {
        let scripts = self.setting.repository.join("scripts/bench");
        let measured = search::measure(self.counts.search, &scripts).await?;
        self.report.section(Part::Search.name(), &search::table(&measured).to_string());
        match search::ratio_of_a_million(&measured)? {
            Some(ratio) => self.report.ratio("search_1m_vs_faiss_flat", Ok(ratio)),
            None => self.report.left_out("search_1m_vs_faiss_flat", "not with so few vectors"),
        }
        Ok(())
    }

    pub(super) async fn pgvector(&mut self) -> anyhow::Result<()> {
        self.setting.services()?;
        let mut sections = Vec::new();
        for faces in self.counts.pgvector {
            say(&format!("pgvector with {faces} vectors"));
            let measured = face_index::measure(self.config, *faces, QUERIES).await?;
            self.report.ratio("pgvector_vs_exact", Ok(measured.pgvector_vs_exact));
            sections.push(measured.told());
        }
        self.report.section(Part::Pgvector.name(), &sections.join("\n\n"));
        Ok(())
    }
}

fn ratio_keys(suffix: &str) -> [&'static str; 2] {
    if suffix.is_empty() {
        ["identify_p99_flood_vs_idle", "identify_idle_p50_vs_runtime"]
    } else {
        ["identify_p99_flood_vs_idle_services", "identify_idle_p50_vs_runtime_services"]
    }
}

fn small(args: &AllArgs) -> anyhow::Result<&Path> {
    args.small.as_deref().context("--small names no folder of photographs")
}

fn told(measured: &Memory, pipeline: &str) -> String {
    let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
    let quarters = measured.quarters().map_or_else(Vec::new, |quarters| quarters.map(mib).to_vec()).join(", ");
    let peak = measured.samples.iter().map(|sample| sample.resident).max().unwrap_or_default();
    format!(
        "{} pictures, no two alike, made of {} photographs; {pipeline}, embedded. Mean of each quarter of the looks: \
         {quarters} MiB; at most {} MiB. The face index held {} bytes: only faces with a name are in it.",
        measured.images,
        measured.photographs,
        mib(peak as f64),
        measured.index_bytes,
    )
}
