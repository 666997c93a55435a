//! The two charts of an evaluation, as SVG.

use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::protocol::{Kinds, Rates};

const SIZE: (u32, u32) = (800, 560);
pub(crate) const FONT: (&str, u32) = ("sans-serif", 16);
pub(crate) const TITLE_FONT: (&str, u32) = ("sans-serif", 20);
/// Bins of the score histograms over a span of one.
const BINS_PER_ONE: f64 = 50.0;
/// The same over -1..1.
pub(crate) const BARS: usize = 100;
/// Of blue and orange, seen apart by colour-blind readers too (Okabe and Ito 2008).
pub(crate) const GENUINE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const IMPOSTOR: RGBColor = RGBColor(213, 94, 0);

/// Writes `roc.svg` and `scores.svg` into a folder that exists.
pub(super) fn draw(folder: &Path, pipeline: &str, kinds: &Kinds, threshold: f32) -> anyhow::Result<()> {
    let [curve, histograms] = ["roc.svg", "scores.svg"].map(|name| folder.join(name));
    roc(&curve, pipeline, kinds).with_context(|| format!("draw {}", curve.display()))?;
    let caption = format!("LFW, {pipeline}: scores of the pairs");
    let of = [shares(&kinds.impostor), shares(&kinds.genuine)];
    scores(&histograms, &caption, &of, f64::from(threshold)).with_context(|| format!("draw {}", histograms.display()))
}

fn roc(file: &Path, pipeline: &str, kinds: &Kinds) -> anyhow::Result<()> {
    let area = canvas(file)?;
    let curve = kinds.curve();
    let lowest_far = 1.0 / kinds.impostor.len() as f64;
    // A logarithm has no place for the corner without false accepts. Between corners the curve goes right, then up.
    let corners = curve.iter().filter(|corner| corner.far > 0.0);
    let steps: Vec<(f64, f64)> = corners
        .clone()
        .zip(corners.clone().skip(1))
        .flat_map(|(this, next)| [(this.far, this.tar), (next.far, this.tar)])
        .chain([(1.0, 1.0)])
        .collect();
    let lowest_tar = steps[0].1;
    // Room below the curve, in whole steps of a hundredth.
    let floor = (((lowest_tar - 0.005) * 100.0).floor() / 100.0).max(0.0);
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("LFW, {pipeline}: rates of acceptance"), TITLE_FONT)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d((lowest_far..1.0).log_scale(), floor..1.0 + (1.0 - floor) * 0.02)?;
    chart
        .configure_mesh()
        .x_desc("false accept rate, two people (log)")
        .y_desc("true accept rate, one person")
        .x_label_formatter(&|far| format!("{far:.0e}"))
        .y_label_formatter(&|tar| format!("{tar:.3}"))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new(steps, GENUINE.stroke_width(2)))?;
    for far in [1e-2, 1e-3] {
        let Rates { tar, threshold, .. } = kinds.at_far(far);
        chart.draw_series([Circle::new((far, tar), 4, IMPOSTOR.filled())])?;
        let text = format!("{:.2} % at {far:.0e} (cosine {threshold:.3})", tar * 100.0);
        // Below and right of its point: the curve only rises.
        let label = EmptyElement::at((far, tar)) + Text::new(text, (8, 10), FONT);
        chart.draw_series([label])?;
    }
    area.present()?;
    Ok(())
}

/// One pipeline's curve of [`curves`].
pub(super) struct Curve {
    /// What the legend says.
    pub(super) name: String,
    pub(super) accuracy: f64,
    /// False and true accept rates, rising.
    pub(super) points: Vec<(f64, f64)>,
}

/// Seen apart by colour-blind readers too (Okabe and Ito 2008); each of them comes solid first, then thin.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

/// Draws the curves of several pipelines, the best first, from one false accept in a thousand on.
pub(super) fn curves(file: &Path, curves: &[Curve]) -> anyhow::Result<()> {
    const LOWEST_FAR: f64 = 1e-3;
    let area = canvas(file)?;
    let lowest = curves.iter().flat_map(|curve| &curve.points).filter(|(far, _)| *far >= LOWEST_FAR);
    let lowest = lowest.map(|(_, tar)| *tar).fold(1.0, f64::min);
    let floor = ((lowest * 20.0).floor() / 20.0).clamp(0.0, 0.95);
    let mut chart = ChartBuilder::on(&area)
        .caption("LFW: rates of acceptance", TITLE_FONT)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d((LOWEST_FAR..1.0).log_scale(), floor..1.0 + (1.0 - floor) * 0.02)?;
    chart
        .configure_mesh()
        .x_desc("false accept rate, two people (log)")
        .y_desc("true accept rate, one person")
        .x_label_formatter(&|far| format!("{far:.0e}"))
        .y_label_formatter(&|tar| format!("{tar:.3}"))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()?;
    for (n, curve) in curves.iter().enumerate() {
        let width = if n < COLOURS.len() { 2 } else { 1 };
        let style = COLOURS[n % COLOURS.len()].stroke_width(width);
        let shown = curve.points.iter().copied().filter(|(far, _)| *far >= LOWEST_FAR);
        chart
            .draw_series(LineSeries::new(shown, style))?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()?;
    area.present()?;
    Ok(())
}

/// Draws what part of two people's scores, and of one person's, lies where: percent in each of [`BARS`] bins of -1..1.
pub(crate) fn scores(
    file: &Path,
    caption: &str,
    [impostor, genuine]: &[Vec<f64>; 2],
    threshold: f64,
) -> anyhow::Result<()> {
    let area = canvas(file)?;
    let used = |n: &usize| genuine[*n] > 0.0 || impostor[*n] > 0.0;
    let (first, last) =
        ((0..genuine.len()).find(used).unwrap_or(0), (0..genuine.len()).rfind(used).unwrap_or(genuine.len() - 1));
    let top = genuine.iter().chain(impostor).copied().fold(0.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, TITLE_FONT)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(edge(first)..edge(last + 1), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("cosine")
        .y_desc("share of pairs (%)")
        // Adding zero turns a rounded -0.0 into 0.0.
        .x_label_formatter(&|cosine| format!("{:.1}", (cosine * 10.0).round() / 10.0 + 0.0))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()?;
    for (shares, colour, name) in [(impostor, IMPOSTOR, "two people"), (genuine, GENUINE, "one person")] {
        let bars = shares.iter().enumerate().filter(|(_, share)| **share > 0.0);
        let style = colour.mix(0.55).filled();
        chart
            .draw_series(bars.map(|(n, share)| Rectangle::new([(edge(n), 0.0), (edge(n + 1), *share)], style)))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 14, y + 6)], style));
    }
    chart
        .draw_series(LineSeries::new([(threshold, 0.0), (threshold, top)], BLACK.stroke_width(2)))?
        .label(format!("threshold {threshold:.3}"))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 14, y)], BLACK.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()?;
    area.present()?;
    Ok(())
}

/// A white picture.
pub(crate) fn canvas(file: &Path) -> anyhow::Result<DrawingArea<SVGBackend<'_>, Shift>> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    Ok(area)
}

/// Percent of the scores in each bin of -1..1.
fn shares(scores: &[f32]) -> Vec<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let bin = |score: f64| ((score + 1.0) * BINS_PER_ONE) as usize;
    let mut shares = vec![0.0; BARS];
    let last = shares.len() - 1;
    for score in scores {
        shares[bin(f64::from(*score)).min(last)] += 100.0 / scores.len() as f64;
    }
    shares
}

fn edge(bin: usize) -> f64 {
    bin as f64 / BINS_PER_ONE - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_lie_in_their_bins() {
        let found = shares(&[-1.0, 1.0, 0.011, 0.019]);
        assert!((found.iter().sum::<f64>() - 100.0).abs() < 1e-9);
        assert!((found[50] - 50.0).abs() < 1e-9 && (found[99] - 25.0).abs() < 1e-9 && (found[0] - 25.0).abs() < 1e-9);
        assert!((edge(50)).abs() < 1e-12);
    }

    #[test]
    fn both_charts_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let kinds = Kinds { genuine: vec![0.9, 0.7, 0.3], impostor: vec![0.4, 0.1, -0.1] };
        draw(folder.path(), "a-pipeline", &kinds, 0.35).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("roc.svg").contains("false accept rate, two people"));
        assert!(read("scores.svg").contains("threshold 0.350"));
        assert!(draw(&folder.path().join("nowhere"), "a-pipeline", &kinds, 0.35).is_err());
    }
}
