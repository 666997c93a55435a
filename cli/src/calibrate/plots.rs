//! The two charts of a calibration, as SVG.

use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use super::bounds::{CONFIDENCE, Point};
use super::comparisons::Comparisons;
use crate::eval::plots::{BARS, FONT, GENUINE, IMPOSTOR, TITLE_FONT, canvas, scores};

/// Thresholds between two points of the curve, and points at most: distances may be long.
const STEP: f64 = 0.002;
const MOST_STEPS: f64 = 1000.0;
/// Dashes and gaps of what is extrapolated, in pixels.
const DASH: (i32, i32) = (6, 5);

/// Writes `far.svg` and `scores.svg` into a folder, which is made.
pub(super) fn draw(folder: &Path, title: &str, compared: &Comparisons, points: &[Point]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let [curve, distributions] = ["far.svg", "scores.svg"].map(|name| folder.join(name));
    far(&curve, title, compared, points).with_context(|| format!("draw {}", curve.display()))?;
    // The threshold of one comparison, as a verify has it by default.
    let threshold = points.iter().rfind(|point| point.far >= 1e-3).map_or(1.0, |point| point.cosine);
    let at = (threshold, compared.metric);
    scores(&distributions, &format!("{title}: scores"), &compared.distributions(BARS), at)
        .with_context(|| format!("draw {}", distributions.display()))
}

/// The rate against the threshold.
fn far(file: &Path, title: &str, compared: &Comparisons, points: &[Point]) -> anyhow::Result<()> {
    let area = canvas(file)?;
    let (first, last) = (points[0], points[points.len() - 1]);
    let measured = points.iter().rposition(|point| !point.extrapolated).unwrap_or_default();
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{title}: false accepts"), TITLE_FONT)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(
            first.cosine - 0.02..last.cosine + 0.02,
            (last.lower.max(last.far / 10.0)..1.0).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(format!("threshold ({})", compared.metric.score_name()))
        .y_desc("false accept rate, two people (log)")
        .y_label_formatter(&|far| format!("{far:.0e}"))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()?;
    let curve = curve(compared, first.cosine, points[measured].cosine);
    let beyond: Vec<(f64, f64)> = points[measured..].iter().map(|point| (point.cosine, point.far)).collect();
    for (part, strength) in [(&curve, 0.3), (&beyond, 0.12)] {
        let style = IMPOSTOR.mix(strength).filled();
        let band = chart.draw_series([Polygon::new(band(points, part), style)])?;
        if strength > 0.2 {
            band.label(format!("bounds at {:.0} %", CONFIDENCE * 100.0))
                .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 14, y + 6)], style));
        }
    }
    chart
        .draw_series(LineSeries::new(curve, IMPOSTOR.stroke_width(2)))?
        .label("measured")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 14, y)], IMPOSTOR.stroke_width(2)));
    if last.extrapolated {
        chart
            .draw_series(DashedLineSeries::new(beyond, DASH.0, DASH.1, IMPOSTOR.stroke_width(2)))?
            .label("extrapolated")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 6, y)], IMPOSTOR.stroke_width(2)));
    }
    chart.draw_series(points.iter().map(|point| Circle::new((point.cosine, point.far), 4, GENUINE.filled())))?;
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

/// Around a line of rates: between two points its bounds are as far from it as theirs, in parts of the rate.
fn band(points: &[Point], line: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let bound = |(cosine, far): &(f64, f64), of: fn(&Point) -> f64| {
        let next = points.partition_point(|point| point.cosine <= *cosine).clamp(1, points.len() - 1);
        let (a, b) = (&points[next - 1], &points[next]);
        let way = (cosine - a.cosine) / (b.cosine - a.cosine);
        (*cosine, far * (of(a) / a.far).powf(1.0 - way) * (of(b) / b.far).powf(way))
    };
    let lower = line.iter().map(|at| bound(at, |point| point.lower));
    let upper = line.iter().rev().map(|at| bound(at, |point| point.upper));
    lower.chain(upper).collect()
}

fn curve(compared: &Comparisons, from: f64, to: f64) -> Vec<(f64, f64)> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "there are few")]
    let steps = ((to - from) / STEP).ceil().clamp(1.0, MOST_STEPS) as u32;
    let at = |n: u32| from + (to - from) * f64::from(n) / f64::from(steps);
    (0..=steps).map(at).map(|cosine| (cosine, compared.far_at(cosine))).filter(|(_, far)| *far > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::super::bounds::{RATES, points};
    use super::super::comparisons::tests::crowd;
    use super::*;

    #[test]
    fn a_band_is_as_far_from_its_line_as_the_points_bounds() {
        let point = |far: f64, cosine, part: f64| Point {
            far,
            cosine,
            lower: far / part,
            upper: far * part,
            extrapolated: false,
        };
        let points = [point(1e-1, 0.1, 1.1), point(1e-2, 0.2, 1.4)];
        let found = band(&points, &[(0.1, 1e-1), (0.15, 5e-2), (0.2, 1e-2)]);
        let wanted = [
            1e-1 / 1.1,
            5e-2 / (1.1_f64 * 1.4).sqrt(),
            1e-2 / 1.4,
            1e-2 * 1.4,
            5e-2 * (1.1_f64 * 1.4).sqrt(),
            1e-1 * 1.1,
        ];
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found.1 / wanted - 1.0).abs() < 1e-9, "{found:?} beside {wanted}");
        }
    }

    #[test]
    fn both_charts_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let compared = Comparisons::of(&crowd(150, 2), RATES[0]);
        let found = points(&compared, &RATES, 1).unwrap();
        let plots = folder.path().join("plots");
        draw(&plots, "a-pipeline on a crowd", &compared, &found).unwrap();
        let read = |name: &str| std::fs::read_to_string(plots.join(name)).unwrap();
        let far = read("far.svg");
        assert!(["extrapolated", "measured", "bounds at 99 %"].iter().all(|label| far.contains(label)));
        assert!(read("scores.svg").contains("a-pipeline on a crowd"));
        let measured: Vec<Point> = found.into_iter().filter(|point| !point.extrapolated).collect();
        draw(&plots, "a-pipeline", &compared, &measured).unwrap();
        assert!(!read("far.svg").contains("extrapolated"));
    }
}
