//! The SVG chart of the cost of a response, by query and server.

use std::fmt::Write as _;

use super::measure::Load;
use super::paired::Ratio;
use super::peers::ECHO;
use super::queries::Kind;
use super::reading::Reading;
use super::report::Results;

/// The kinds of queries, from top to bottom.
const KINDS: [Kind; 5] = [Kind::A, Kind::Srv, Kind::NoData, Kind::NxDomain, Kind::Mixed];

const WIDTH: f64 = 860.0;
/// Left end of all bars, and right end of the longest.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 690.0;
const TOP: f64 = 74.0;
const BAR: f64 = 15.0;
const GAP: f64 = 5.0;
const BETWEEN: f64 = 34.0;

/// End of the axis, as a multiple of the echo's cost.
///
/// Longer bars are marked as cut.
const END: f64 = 4.0;

/// A light and a dark style.
///
/// Each has its own background, so that the chart is readable on any page.
const STYLE: &str = "
text { font: 13px system-ui, sans-serif; fill: #1f2328; stroke: #ffffff; stroke-width: 4px; \
paint-order: stroke; }
.title { font-size: 16px; font-weight: 600; } .kind { font-weight: 600; } \
.small { font-size: 12px; fill: #59636e; }
.ground { fill: #ffffff; } .line { stroke: #d1d9e0; } \
.echo { stroke: #59636e; stroke-dasharray: 4 3; }
.bar { fill: #8c959f; } .svcdns { fill: #0969da; } .ceiling { fill: #1a7f37; } \
.cut { stroke: #ffffff; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; stroke: #0d1117; } .small { fill: #9198a1; }
  .ground { fill: #0d1117; } .line { stroke: #30363d; } .echo { stroke: #9198a1; }
  .bar { fill: #6e7681; } .svcdns { fill: #4493f8; } .ceiling { fill: #3fb950; } \
.cut { stroke: #0d1117; }
}
";

/// Returns the chart of CPU time per response over the echo's.
///
/// `None` if the echo was not measured. `below` is the text under the chart.
pub(crate) fn svg(results: &Results, below: &str) -> Option<String> {
    let echo = results.row(ECHO)?;
    let mut body = String::new();
    let mut y = TOP;
    for kind in KINDS {
        let load = Load::Flood(kind);
        writeln!(
            body,
            r#"<text class="kind" x="20" y="{:.0}">{}</text>"#,
            y + BAR - 3.0,
            kind.name()
        )
        .unwrap();
        for row in &results.rows {
            let Some(Ratio { median, medians: [cost, _], .. }) =
                row.ratio(echo, load, |sample| Some(Reading::exact(sample.cost)))
            else {
                continue;
            };
            bar(&mut body, y, row.name, median.value, cost);
            y += BAR + GAP;
        }
        y += BETWEEN - GAP;
    }
    let bottom = y - BETWEEN + GAP + 4.0;
    let mut axis = String::new();
    for mark in 1..=END as u32 {
        let (x, class) = (across(f64::from(mark)), if mark == 1 { "echo" } else { "line" });
        writeln!(
            axis,
            r#"<line class="{class}" x1="{x:.1}" y1="{:.0}" x2="{x:.1}" y2="{bottom:.0}"/>"#,
            TOP - 6.0
        )
        .unwrap();
        writeln!(
            axis,
            r#"<text class="small" x="{x:.1}" y="{:.0}" text-anchor="middle">{mark}×</text>"#,
            TOP - 12.0
        )
        .unwrap();
    }
    let height = bottom + 34.0;
    Some(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {height:.0}"
 width="{WIDTH:.0}" height="{height:.0}" role="img">
<title>Processor time per response, by query and server</title>
<style>{STYLE}</style>
<rect class="ground" width="100%" height="100%"/>
<text class="title" x="20" y="30">Processor time per response, over that of a bare echo ({})</text>
{axis}{body}<text class="small" x="20" y="{:.0}">{below}</text>
</svg>
"#,
        results.describe(),
        height - 14.0
    ))
}

/// Returns the horizontal position of a multiple of the echo's cost.
fn across(ratio: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * ratio / END
}

fn bar(body: &mut String, y: f64, name: &str, ratio: f64, cost: f64) {
    let class = match name {
        "svcdns" => "svcdns",
        ECHO => "ceiling",
        _ => "bar",
    };
    let (end, base) = (across(ratio.min(END)), y + BAR - 3.0);
    writeln!(body, r#"<text x="{:.0}" y="{base:.0}" text-anchor="end">{name}</text>"#, LEFT - 8.0)
        .unwrap();
    writeln!(
        body,
        r#"<rect class="{class}" x="{LEFT:.0}" y="{y:.0}" width="{:.1}" height="{BAR:.0}"/>"#,
        end - LEFT
    )
    .unwrap();
    if ratio > END {
        let x = end - 18.0;
        writeln!(
            body,
            r#"<line class="cut" x1="{x:.1}" y1="{:.0}" x2="{:.1}" y2="{:.0}"/>"#,
            y + BAR + 2.0,
            x + 8.0,
            y - 2.0
        )
        .unwrap();
    }
    let digits = if ratio < 10.0 { 2 } else { 0 };
    writeln!(
        body,
        r#"<text x="{:.1}" y="{base:.0}">{ratio:.digits$}× · {cost:.2} µs</text>"#,
        end + 8.0
    )
    .unwrap();
}
