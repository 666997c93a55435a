//! The charts of a whole run, as SVG: how fast libraries are gone through, and what memory that takes.

use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::memory::Memory;
use super::throughput::{Throughput, Way};

const SIZE: (u32, u32) = (900, 420);
const FONT: (&str, u32) = ("sans-serif", 15);
const TITLE_FONT: (&str, u32) = ("sans-serif", 20);
/// Colours that colour-blind readers see apart too (Okabe and Ito 2008).
const PEER: RGBColor = RGBColor(213, 94, 0);
const BARE: RGBColor = RGBColor(153, 153, 153);
const EMBEDDED: RGBColor = RGBColor(0, 114, 178);
const SERVICES: RGBColor = RGBColor(86, 180, 233);

/// Images a second of every way that was measured, beside the slowest's.
pub(super) fn throughput(file: &Path, title: &str, measured: &Throughput) -> anyhow::Result<()> {
    let bars: Vec<(String, RGBColor, f64)> = measured
        .lines
        .iter()
        .filter_map(|line| {
            let took = line.best.as_ref().ok()?;
            Some((format!("{}, {}", line.way.name(), line.pipeline), colour(line.way), took.rate()))
        })
        .collect();
    draw_bars(file, title, &bars).with_context(|| format!("draw {}", file.display()))
}

fn colour(way: Way) -> RGBColor {
    match way {
        Way::Bare => BARE,
        Way::Embedded => EMBEDDED,
        Way::Services => SERVICES,
        Way::Peer => PEER,
    }
}

fn draw_bars(file: &Path, title: &str, bars: &[(String, RGBColor, f64)]) -> anyhow::Result<()> {
    let area = canvas(file)?;
    let most = bars.iter().map(|bar| bar.2).fold(0.0, f64::max);
    anyhow::ensure!(most > 0.0, "nothing was measured");
    let mut chart = ChartBuilder::on(&area)
        .caption(title, TITLE_FONT)
        .margin(16)
        .x_label_area_size(40)
        // Room for the bars' names, left of them.
        .margin_left(330)
        .build_cartesian_2d(0.0..most * 1.12, 0.0..bars.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("images/s")
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()?;
    for (n, (name, colour, rate)) in bars.iter().enumerate() {
        // The first on top.
        let low = (bars.len() - 1 - n) as f64;
        chart.draw_series([Rectangle::new([(0.0, low + 0.15), (*rate, low + 0.85)], colour.filled())])?;
        let label = EmptyElement::at((*rate, low + 0.62)) + Text::new(format!("{rate:.1}"), (6, 0), FONT);
        chart.draw_series([label])?;
        let name = EmptyElement::at((0.0, low + 0.62)) + Text::new(name.clone(), (-330, 0), FONT);
        chart.draw_series([name])?;
    }
    area.present()?;
    Ok(())
}

/// What a server held while it went through a library.
pub(super) fn memory(file: &Path, measured: &Memory) -> anyhow::Result<()> {
    draw_memory(file, measured).with_context(|| format!("draw {}", file.display()))
}

fn draw_memory(file: &Path, measured: &Memory) -> anyhow::Result<()> {
    let area = canvas(file)?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let points: Vec<(f64, f64)> = measured.samples.iter().map(|s| (s.images as f64, mib(s.resident))).collect();
    let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
    anyhow::ensure!(most > 0.0, "nothing was measured");
    let mut chart = ChartBuilder::on(&area)
        .caption("Memory of an embedded server that indexes different pictures", TITLE_FONT)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..measured.images as f64, 0.0..most * 1.15)?;
    chart
        .configure_mesh()
        .x_desc("pictures done")
        .y_desc("resident memory (MiB)")
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new(points, EMBEDDED.stroke_width(2)))?;
    area.present()?;
    Ok(())
}

fn canvas(file: &Path) -> anyhow::Result<DrawingArea<SVGBackend<'_>, Shift>> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    Ok(area)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::site::Sample;
    use super::super::throughput::Line;
    use super::super::usage::Took;
    use super::*;

    #[test]
    fn both_charts_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chart.svg");
        let took = Took { images: 50, faces: 50, elapsed: Duration::from_secs(2), cpu: Duration::from_secs(3) };
        let line = |way, best| Line { way, pipeline: "fast".to_owned(), best };
        let lines = vec![line(Way::Bare, Ok(took)), line(Way::Peer, Err("no Python".to_owned()))];
        throughput(&file, "Small photos", &Throughput { images: 50, lines }).unwrap();
        let drawn = std::fs::read_to_string(&file).unwrap();
        assert!(drawn.contains("bare loop, fast") && drawn.contains("25.0") && !drawn.contains("Python peer"));
        let samples = vec![Sample { images: 0, resident: 1 << 27 }, Sample { images: 50, resident: 1 << 28 }];
        memory(&file, &Memory { images: 50, photographs: 9, samples, index_bytes: 0 }).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("pictures done"));
        assert!(throughput(&file, "Nothing", &Throughput { images: 50, lines: Vec::new() }).is_err());
    }
}
