//! Pictures on two logarithmic axes as self-contained SVG, readable on light and on dark ground.

use std::fmt::Write;

use super::kernels::KernelResult;
use super::report::KernelReport;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
/// Left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (72.0, 232.0, 48.0, 60.0);

/// Hues that stay apart on light and dark ground, also for most colour-blind readers (after Okabe & Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c00", "#7a5fd0"];

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:16px;font-weight:600}.small{font-size:11px}\
.ground{fill:#fff}.grid{stroke:#8884;stroke-width:1}.axis{stroke:#666;stroke-width:1.2;fill:none}\
.ceiling{stroke:#333;stroke-width:1.6;fill:none}.fit{stroke-width:1.6;fill:none;stroke-dasharray:5 4}\
.dot{fill-opacity:.8;stroke:#fff;stroke-width:.7}\
@media(prefers-color-scheme:dark){text{fill:#ddd}.ground{fill:#14171a}.axis{stroke:#aaa}.ceiling{stroke:#ddd}\
.dot{stroke:#14171a}}";

/// Points of one colour.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name, for the legend.
    pub name: String,
    /// x, y and what the point is.
    pub points: Vec<(f64, f64, String)>,
    /// A dashed line through two points.
    pub line: Option<[(f64, f64); 2]>,
}

/// A line that nothing can be above.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Corners.
    pub points: Vec<(f64, f64)>,
    /// What it is.
    pub name: String,
}

/// A picture.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Title.
    pub title: String,
    /// What is along x and y, with units.
    pub axes: [String; 2],
    /// The points.
    pub series: Vec<Series>,
    /// The ceilings.
    pub limits: Vec<Limit>,
}

/// One logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Covers all positive values, with a little room.
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high == 0.0 {
            (low, high) = (1.0, 10.0);
        }
        Self { low: low / 1.4, high: high * 1.4, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln();
        self.from + share.clamp(-0.02, 1.02) * (self.to - self.from)
    }

    /// Round numbers within: powers of ten, with 2 and 5 between them where there is room.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let first = self.low.log10().floor() as i32;
        (first..=self.high.log10().ceil() as i32)
            .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
            .filter(|v| (self.low..=self.high).contains(v))
            .collect()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn number(value: f64) -> String {
    if (1e-3..1e5).contains(&value) { format!("{}", (value * 1e6).round() / 1e6) } else { format!("{value:.0e}") }
}

impl Chart {
    /// The picture as an SVG document.
    pub fn svg(&self) -> String {
        let (left, right, top, bottom) = MARGIN;
        let points = || {
            let dots = self.series.iter().flat_map(|s| s.points.iter().map(|p| (p.0, p.1)));
            dots.chain(self.limits.iter().flat_map(|l| l.points.iter().copied()))
        };
        let x = Axis::new(points().map(|p| p.0), left, WIDTH - right);
        let y = Axis::new(points().map(|p| p.1), HEIGHT - bottom, top);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
             <text class=\"title\" x=\"{left}\" y=\"28\">{0}</text>\n",
            escape(&self.title)
        );
        self.draw_axes(&mut out, &x, &y);
        for limit in &self.limits {
            let path: Vec<String> =
                limit.points.iter().map(|p| format!("{:.1},{:.1}", x.place(p.0), y.place(p.1))).collect();
            let _ = writeln!(out, "<polyline class=\"ceiling\" points=\"{}\"/>", path.join(" "));
            if let Some(end) = limit.points.last() {
                let (px, py) = (x.place(end.0) + 6.0, y.place(end.1) + 4.0);
                let _ =
                    writeln!(out, "<text class=\"small\" x=\"{px:.1}\" y=\"{py:.1}\">{}</text>", escape(&limit.name));
            }
        }
        for (i, series) in self.series.iter().enumerate() {
            self.draw_series(&mut out, (&x, &y), i, series);
        }
        out + "</svg>\n"
    }

    fn draw_axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        for tick in x.ticks() {
            let at = x.place(tick);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\"/><text class=\"small\" \
                 x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y.from,
                y.to,
                y.from + 18.0,
                number(tick)
            );
        }
        for tick in y.ticks() {
            let at = y.place(tick);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{:.1}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/><text class=\"small\" \
                 x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                x.from,
                x.to,
                x.from - 8.0,
                at + 4.0,
                number(tick)
            );
        }
        let middle = ((x.from + x.to) / 2.0, (y.from + y.to) / 2.0);
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{0:.1} {1:.1}V{2:.1}H{3:.1}\"/>\n<text x=\"{4:.1}\" y=\"{5:.1}\" \
             text-anchor=\"middle\">{6}</text>\n<text transform=\"translate(20 {7:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{8}</text>",
            x.from,
            y.to,
            y.from,
            x.to,
            middle.0,
            HEIGHT - 14.0,
            escape(&self.axes[0]),
            middle.1,
            escape(&self.axes[1])
        );
    }

    fn draw_series(&self, out: &mut String, (x, y): (&Axis, &Axis), i: usize, series: &Series) {
        let colour = COLOURS[i % COLOURS.len()];
        if let Some([a, b]) = series.line {
            let place = |p: (f64, f64)| (x.place(p.0), y.place(p.1));
            let ((x1, y1), (x2, y2)) = (place(a), place(b));
            let _ = writeln!(out, "<path class=\"fit\" stroke=\"{colour}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>");
        }
        for (px, py, what) in &series.points {
            let (cx, cy) = (x.place(*px), y.place(*py));
            let _ = writeln!(
                out,
                "<circle class=\"dot\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4.5\" fill=\"{colour}\"><title>{}</title></circle>",
                escape(what)
            );
        }
        let (lx, ly) = (WIDTH - MARGIN.1 + 56.0, MARGIN.2 + 8.0 + 20.0 * i as f64);
        let _ = writeln!(
            out,
            "<circle class=\"dot\" cx=\"{lx:.1}\" cy=\"{ly:.1}\" r=\"5\" fill=\"{colour}\"/><text class=\"small\" \
             x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            lx + 11.0,
            ly + 4.0,
            escape(&series.name)
        );
    }
}

/// The family that an op belongs to: forward and backward are of one.
fn family(op: &str) -> &str {
    let forward = op.strip_suffix("_backward").unwrap_or(op);
    match forward {
        "separable" | "dense" | "pool" | "reduce" | "mixture" | "layer" => forward,
        "sgd" | "adam" | "global_norm" | "unroll" | "perturb" | "hessian_term" => "optimisers",
        _ => "others",
    }
}

/// The roofline of a result of the kernels: one dot a case, coloured by family, under the machine's ceilings.
pub fn roofline(report: &KernelReport) -> Chart {
    let passed = |case: &&KernelResult| case.passed && case.flops > 0.0;
    let mut series: Vec<Series> = Vec::new();
    for case in report.cases.iter().filter(passed) {
        let name = family(case.op);
        let at = series.iter().position(|s| s.name == name).unwrap_or_else(|| {
            series.push(Series { name: name.into(), points: Vec::new(), line: None });
            series.len() - 1
        });
        let what = format!(
            "{}: {:.1} GFLOP/s, {:.0} % of its ceiling",
            case.measured.name,
            case.gflops,
            100.0 * case.roofline_share
        );
        series[at].points.push((case.intensity, case.gflops, what));
    }
    let ceilings = &report.details.ceilings;
    let intensities = || series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let lowest = intensities().fold(0.1, f64::min);
    let highest = intensities().fold(100.0, f64::max);
    let slope = |bandwidth: f64| {
        let end = ceilings.gflops.map_or(highest, |peak| peak / bandwidth);
        vec![(lowest, lowest * bandwidth), (end, end * bandwidth)]
    };
    let mut limits: Vec<Limit> = ceilings
        .copy
        .iter()
        .map(|b| Limit {
            points: slope(b.gigabytes_per_second).into_iter().rev().collect(),
            name: format!("{:.0} GB/s ({})", b.gigabytes_per_second, size(b.bytes)),
        })
        .collect();
    // Slopes are named at their lower end, where they lie apart; the names would leave the picture at the other.
    if let Some(peak) = ceilings.gflops {
        limits.push(Limit { points: vec![(lowest, peak), (highest, peak)], name: format!("{peak:.0} GFLOP/s") });
    }
    Chart {
        title: format!("Kernels against the ceilings: {}", report.machine.title()),
        axes: ["arithmetic intensity (operations a byte)".into(), "GFLOP/s".into()],
        series,
        limits,
    }
}

fn size(bytes: usize) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that tags nest and attributes are quoted; returns the names of the elements.
    fn elements(svg: &str) -> Vec<String> {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        for part in svg.split('<').skip(1) {
            let (tag, _) = part.split_once('>').expect("every tag ends");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            let name = tag.split([' ', '/']).next().unwrap().to_string();
            seen.push(name.clone());
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?} stay open");
        seen
    }

    #[test]
    fn pictures_are_well_formed_and_stand_alone() {
        let point = |x, y| (x, y, "<a> & \"b\"".to_string());
        let chart = Chart {
            title: "a < b & c".into(),
            axes: ["x (units)".into(), "y (units)".into()],
            series: vec![
                Series { name: "one".into(), points: vec![point(1.0, 2.0), point(8.0, 30.0)], line: None },
                Series { name: "two".into(), points: vec![point(3.0, 9.0)], line: Some([(1.0, 1.0), (8.0, 64.0)]) },
            ],
            limits: vec![Limit { points: vec![(1.0, 50.0), (10.0, 50.0)], name: "the ceiling".into() }],
        };
        let svg = chart.svg();
        let seen = elements(&svg);
        let count = |name: &str| seen.iter().filter(|n| *n == name).count();
        assert_eq!((count("svg"), count("polyline"), count("circle")), (1, 1, 3 + 2), "dots and their legend");
        for text in ["x (units)", "y (units)", "the ceiling", "prefers-color-scheme:dark", "a &lt; b &amp; c"] {
            assert!(svg.contains(text), "no `{text}`");
        }
        assert!(!svg.contains("href") && !svg.contains("url("), "nothing outside is needed");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        elements(&Chart::default().svg());
    }

    #[test]
    fn ticks_are_round_and_within() {
        let axis = Axis::new([1.0, 4.0].into_iter(), 0.0, 100.0);
        assert_eq!(axis.ticks(), [1.0, 2.0, 5.0]);
        assert!(axis.place(1.0) > 0.0 && axis.place(4.0) < 100.0 && axis.place(2.0) > axis.place(1.0));
        let wide = Axis::new([1e-3, 1e3].into_iter(), 0.0, 100.0);
        let names: Vec<String> = wide.ticks().into_iter().map(number).collect();
        assert_eq!(names, ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]);
    }
}
