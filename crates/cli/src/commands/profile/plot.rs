//! The roofline plot: what each operation does with what memory and processor give, as an SVG.
//!
//! ```text
//! Gop/s │          ┌─────────── 8-bit products
//!       │      ┌──╱──────────── f32 products
//!       │    ╱  ●───────────── gate/up  20.1 GB/s   a dot's area is its share of the time
//!       │  ╱                   ...                  labels stand beside, one below the other
//!       └──────────────
//!          ops a byte (both axes logarithmic)
//! ```
//! Operations that read the same weights in the same way lie on one another; so each has a label of its
//! own at the right, with a line that leads to its dot.
use super::{Bound, Report, Row};
use std::fmt::Write as _;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 484.0;
/// Where the labels begin, and how far they are apart.
const LABELS: f64 = 676.0;
const LABEL_STEP: f64 = 22.0;

/// Colours for both kinds of background; other files embed the plot, so it brings them along.
const STYLE: &str = "\
.roofline{--paper:#fff;--ink:#1f2328;--faint:#6e7781;--grid:#e3e7eb;--memory:#0969da;--peak:#bc4c00;--dot:#8250df;\
font:13px system-ui,sans-serif}
@media(prefers-color-scheme:dark){.roofline{--paper:#0d1117;--ink:#e6edf3;--faint:#9198a1;--grid:#262c36;\
--memory:#58a6ff;--peak:#f0883e;--dot:#bc8cff}}
.roofline .paper{fill:var(--paper)}.roofline text{fill:var(--ink)}.roofline .faint{fill:var(--faint)}
.roofline .title{font-size:15px;font-weight:600}.roofline .grid{stroke:var(--grid)}
.roofline .lead{stroke:var(--faint);fill:none;opacity:.6}.roofline .dot{fill:var(--dot);fill-opacity:.55;stroke:var(--dot)}
.roofline .roof{fill:none;stroke-width:2}.roofline .memory{stroke:var(--memory)}.roofline .peak{stroke:var(--peak)}
.roofline text.memory{fill:var(--memory);stroke:none}.roofline text.peak{fill:var(--peak);stroke:none}
";

/// A logarithmic axis over whole decades.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// Exponents of ten at the ends.
    low: i32,
    high: i32,
    /// Coordinates of the ends.
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that holds all of `values`, which are above 0.
    fn new(values: &[f64], from: f64, to: f64) -> Self {
        // Measured numbers have exponents far within these bounds.
        let exponents = values.iter().map(|x| x.log10().clamp(-30.0, 30.0));
        let low = exponents.clone().fold(f64::INFINITY, f64::min).floor() as i32;
        let high = exponents.fold(f64::NEG_INFINITY, f64::max).ceil() as i32;
        Self { low, high: high.max(low + 1), from, to }
    }

    fn at(&self, x: f64) -> f64 {
        let part = (x.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.from + part * (self.to - self.from)
    }

    fn start(&self) -> f64 {
        10f64.powi(self.low)
    }

    fn end(&self) -> f64 {
        10f64.powi(self.high)
    }

    /// The powers of ten.
    fn ticks(&self) -> impl Iterator<Item = i32> {
        self.low..=self.high
    }
}

/// `text` as XML has it.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write these.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A power of ten as a person writes it.
fn power(exponent: i32) -> String {
    match exponent {
        0..=5 => 10u32.pow(exponent.unsigned_abs()).to_string(),
        -3..=-1 => format!("{:.*}", exponent.unsigned_abs() as usize, 10f64.powi(exponent)),
        _ => format!("1e{exponent}"),
    }
}

/// Operations a byte.
fn intensity(row: &Row) -> f64 {
    row.ops / row.bytes
}

/// The plot of a report.
pub(super) fn svg(report: &Report) -> String {
    let mut dots: Vec<&Row> = report
        .operations
        .iter()
        .filter(|row| row.bytes > 0.0 && row.ops_per_second > 0.0)
        .collect();
    dots.sort_by(|a, b| b.ops_per_second.total_cmp(&a.ops_per_second));
    let bandwidth = report.read_bytes_per_second / 1e9;
    let peaks = [
        ("8-bit products", report.integer_ops_per_second / 1e9),
        ("f32 products", report.float_ops_per_second / 1e9),
        ("attention", report.attention_ops_per_second / 1e9),
    ];
    let ridges = peaks.map(|(_, peak)| peak / bandwidth);
    let xs: Vec<f64> = dots.iter().map(|row| intensity(row)).chain(ridges).chain([1.0]).collect();
    let x = Axis::new(&xs, LEFT, RIGHT);
    let rates = dots.iter().map(|row| row.ops_per_second / 1e9);
    let ys: Vec<f64> =
        rates.chain(peaks.map(|(_, peak)| peak)).chain([bandwidth * x.start()]).collect();
    let y = Axis::new(&ys, BOTTOM, TOP);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"roofline\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"Roofline plot\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"26\">{}</text>\n",
        escape(&report.heading())
    );
    grid(&mut out, x, y);
    roofs(&mut out, x, y, bandwidth, peaks);
    labels(&mut out, x, y, &dots);
    out.push_str("</svg>\n");
    out
}

fn grid(out: &mut String, x: Axis, y: Axis) {
    for exponent in x.ticks() {
        let at = x.at(10f64.powi(exponent));
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>\
             <text class=\"faint\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 18.0,
            power(exponent)
        );
    }
    for exponent in y.ticks() {
        let at = y.at(10f64.powi(exponent));
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>\
             <text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            power(exponent)
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations a byte</text>\
         <text class=\"faint\" x=\"{LEFT}\" y=\"{:.1}\">Gop/s</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 40.0,
        TOP - 10.0
    );
}

/// What memory gives, rising with the operations a byte, and the peaks that end it.
fn roofs(out: &mut String, x: Axis, y: Axis, bandwidth: f64, peaks: [(&str, f64); 3]) {
    let highest = peaks.iter().fold(0.0, |highest, (_, peak)| f64::max(highest, *peak));
    let ridge = (highest / bandwidth).min(x.end());
    let (x0, y0) = (x.at(x.start()), y.at(bandwidth * x.start()));
    let (x1, y1) = (x.at(ridge), y.at(bandwidth * ridge));
    let angle = (y1 - y0).atan2(x1 - x0).to_degrees();
    let _ = writeln!(
        out,
        "<path class=\"roof memory\" d=\"M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}\"/>\
         <text class=\"memory\" transform=\"translate({:.1} {:.1}) rotate({angle:.1})\">memory {bandwidth:.1} GB/s</text>",
        x0 + 0.5 * (x1 - x0),
        y0 + 0.5 * (y1 - y0) - 8.0
    );
    for (name, peak) in peaks {
        let (from, at) = (x.at(peak / bandwidth), y.at(peak));
        let _ = writeln!(
            out,
            "<path class=\"roof peak\" d=\"M{from:.1} {at:.1}H{RIGHT}\"/>\
             <text class=\"peak\" x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">{name} {peak:.0} Gop/s</text>",
            at - 6.0
        );
    }
}

/// Each operation's dot, and its label at the right; `dots` from above.
fn labels(out: &mut String, x: Axis, y: Axis, dots: &[&Row]) {
    let heights: Vec<f64> = dots.iter().map(|row| y.at(row.ops_per_second / 1e9)).collect();
    let mut circles: Vec<(f64, String)> = Vec::new();
    for ((row, height), label) in dots.iter().zip(&heights).zip(spread(&heights)) {
        let at = x.at(intensity(row));
        let radius = 4.0 + 16.0 * row.share.clamp(0.0, 1.0).sqrt();
        let (part, of) = match row.bound {
            Some(Bound::Arithmetic) => (row.peak_fraction, "of peak"),
            _ => (row.read_fraction, "of reads"),
        };
        let name = escape(row.name);
        let _ = writeln!(
            out,
            "<path class=\"lead\" d=\"M{at:.1} {height:.1}L{:.1} {label:.1}H{:.1}\"/>\
             <text x=\"{LABELS}\" y=\"{:.1}\">{name} <tspan class=\"faint\">{:.0} % of time, {:.0} % {of}</tspan></text>",
            LABELS - 18.0,
            LABELS - 5.0,
            label + 4.0,
            100.0 * row.share,
            100.0 * part.unwrap_or_default(),
        );
        let circle = format!(
            "<circle class=\"dot\" cx=\"{at:.1}\" cy=\"{height:.1}\" r=\"{radius:.1}\"><title>{name}</title></circle>\n"
        );
        circles.push((radius, circle));
    }
    // Small dots on top of large ones.
    circles.sort_by(|a, b| b.0.total_cmp(&a.0));
    out.extend(circles.into_iter().map(|(_, circle)| circle));
}

/// Heights of labels that are far enough apart, as near to `heights` (ascending) as their number allows.
fn spread(heights: &[f64]) -> Vec<f64> {
    let mut labels: Vec<f64> = heights.to_vec();
    let mut least = TOP;
    for label in &mut labels {
        *label = label.max(least);
        least = *label + LABEL_STEP;
    }
    let mut most = BOTTOM;
    for label in labels.iter_mut().rev() {
        *label = label.min(most);
        most = *label - LABEL_STEP;
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_never_overlap() {
        let check = |heights: &[f64]| {
            let labels = spread(heights);
            assert_eq!(labels.len(), heights.len());
            for pair in labels.windows(2) {
                assert!(pair[1] - pair[0] >= LABEL_STEP - 1e-9, "{labels:?}");
            }
            assert!(labels.iter().all(|label| (TOP..=BOTTOM).contains(label)), "{labels:?}");
        };
        check(&[]);
        check(&[100.0]);
        check(&[100.0; 13]);
        check(&[0.0, 0.0, 480.0, 484.0, 600.0]);
        check(&[300.0, 301.0, 302.0, 303.0, 480.0, 481.0, 482.0, 483.0]);
        assert_eq!(spread(&[100.0, 200.0]), [100.0, 200.0]);
    }

    #[test]
    fn axes_hold_their_values() {
        let check = |values: &[f64], low, high| {
            let axis = Axis::new(values, 0.0, 100.0);
            assert_eq!((axis.low, axis.high), (low, high), "{values:?}");
            assert!(values.iter().all(|x| (-1e-9..=100.0 + 1e-9).contains(&axis.at(*x))));
        };
        check(&[1.0], 0, 1);
        check(&[0.5, 20.0], -1, 2);
        check(&[10.0, 1000.0], 1, 3);
        assert_eq!([-5, -2, 0, 3, 6].map(power), ["1e-5", "0.01", "1", "1000", "1e6"]);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("a<b>&\"\u{1b}"), "a&lt;b&gt;&amp;&quot;\u{fffd}");
    }

    /// Rooms for the numbers of every machine and model: nothing leaves the plot.
    #[test]
    fn every_dot_lies_in_the_plot_and_has_its_label() {
        use crate::args::Activations;
        use hurtle_model::profile::{Cost, Op};
        use std::time::Duration;
        let numbers = |attribute: &str, text: &str| -> Vec<f64> {
            let start = format!(" {attribute}=\"");
            let values = text.split(&start).skip(1).map(|rest| rest.split('"').next());
            values.map(|value| value.unwrap_or_default().parse().expect("a number")).collect()
        };
        for scale in [1, 1000, 1_000_000] {
            let cost = |i: usize| Cost {
                calls: 2,
                time: Duration::from_micros(40 * (i as u64 + 1)),
                wait: Duration::ZERO,
                bytes: 50_000 * scale,
                flops: 100_000 * scale * (1 + i as u64 % 3),
            };
            let costs: Vec<(Op, Cost)> =
                Op::ALL.iter().enumerate().map(|(i, op)| (*op, cost(i))).collect();
            let plot =
                svg(&crate::commands::profile::tests::report(&costs, 10, 4000, Activations::Q8));
            let (xs, ys) = (numbers("cx", &plot), numbers("cy", &plot));
            assert_eq!((xs.len(), ys.len()), (Op::ALL.len(), Op::ALL.len()));
            assert!(xs.iter().all(|x| (LEFT..=RIGHT).contains(x)), "{xs:?}");
            assert!(ys.iter().all(|y| (TOP..=BOTTOM).contains(y)), "{ys:?}");
            for op in Op::ALL {
                assert!(plot.contains(&format!(">{} <tspan", escape(op.name()))), "{}", op.name());
            }
            assert!(plot.contains("a &lt;model&gt;") && !plot.contains("NaN"), "{plot}");
        }
    }
}
