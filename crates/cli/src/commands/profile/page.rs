//! The page: the roofline plot, what it says, and the tables. It needs nothing but itself.
use super::plot::{escape, svg};
use super::{HEADINGS, LAYER_HEADINGS, Layer, Report, Row};

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1f2328;--paper:#fff;--line:#d1d9e0;--faint:#59636e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#3d444d;--faint:#9198a1}}
body{margin:2rem auto;max-width:64rem;padding:0 1rem;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}p.faint{color:var(--faint)}
svg{width:100%;height:auto}.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{font-weight:600;font-size:.8rem;color:var(--faint)}th:first-child,td:first-child{text-align:left}
tr:last-child td{font-weight:600}table.layers tr:last-child td{font-weight:inherit}
";

/// The page of a report.
pub(super) fn html(report: &Report) -> String {
    let rows = report.operations.iter().chain([&report.total]).map(Row::cells);
    let mut tables = format!("<h2>Operations</h2>\n{}", table("", HEADINGS, rows));
    if let Some(layers) = &report.layers {
        let rows = layers.iter().map(Layer::cells);
        tables += &format!("<h2>Layers</h2>\n{}", table("layers", LAYER_HEADINGS, rows));
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{heading}</title>\n\
         <style>{STYLE}</style>\n<h1>Where the time goes</h1>\n<p>{summary}</p>\n\
         <p class=\"faint\">This machine: {machine}.</p>\n{plot}{tables}</html>\n",
        heading = escape(&report.heading()),
        summary = escape(&report.summary),
        machine = escape(&report.machine()),
        plot = svg(report),
    )
}

fn table<const N: usize>(
    class: &str,
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.map(|cells| line("td", &cells)).collect();
    let head = line("th", &headings.map(String::from));
    format!("<div class=\"wide\"><table class=\"{class}\">\n{head}{body}</table></div>\n")
}
