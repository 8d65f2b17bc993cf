//! Lines over time as an SVG that needs nothing but a browser.

use std::fmt::Write as _;

/// Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const LEFT: f64 = 70.0;
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 190.0;
const GAP: f64 = 60.0;

/// One chart: a title, and lines with a name each, all by seconds.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) lines: Vec<(&'a str, Vec<(f64, f64)>)>,
}

/// Charts one below the other, over the same seconds, with a mark at each of `marks`.
pub(crate) fn svg(charts: &[Chart<'_>], seconds: f64, marks: &[f64], mark: &str) -> String {
    let total = (HEIGHT + GAP) * charts.len() as f64 + 20.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{total:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        LEFT + WIDTH + 20.0
    );
    for (place, chart) in charts.iter().enumerate() {
        one(&mut text, chart, 30.0 + (HEIGHT + GAP) * place as f64, seconds, marks, mark);
    }
    text.push_str("</svg>\n");
    text
}

fn one(text: &mut String, chart: &Chart<'_>, top: f64, seconds: f64, marks: &[f64], mark: &str) {
    let values = chart.lines.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
    let most = round_up(values.fold(1.0, f64::max));
    let (x, bottom) = (|second: f64| LEFT + second / seconds * WIDTH, top + HEIGHT);
    let y = |value: f64| bottom - value / most * HEIGHT;
    let _ =
        writeln!(text, "<text x=\"10\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", top - 10.0, chart.title);
    for part in 0..=4 {
        let value = most * f64::from(part) / 4.0;
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2:.0}\" y=\"{3:.1}\" text-anchor=\"end\">{value:.0}</text>",
            LEFT + WIDTH,
            y(value),
            LEFT - 6.0,
            y(value) + 4.0
        );
        let second = seconds * f64::from(part) / 4.0;
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{second:.0} s</text>",
            x(second),
            bottom + 16.0
        );
    }
    for at in marks {
        let _ = writeln!(
            text,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top:.0}\" y2=\"{bottom:.0}\" stroke=\"#bbb\" stroke-width=\"0.5\"/>",
            x(*at)
        );
    }
    for (place, (name, points)) in chart.lines.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let path: Vec<String> = points.iter().map(|(at, v)| format!("{:.1},{:.1}", x(*at), y(*v))).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{name}</text>",
            path.join(" "),
            LEFT + 10.0 + 190.0 * place as f64,
            bottom + 34.0
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{:.0}\" y=\"{:.0}\" fill=\"#888\">grey: {mark}</text>",
        LEFT + 10.0 + 190.0 * chart.lines.len() as f64,
        bottom + 34.0
    );
}

/// The next number with one digit other than zero, or half of such.
fn round_up(value: f64) -> f64 {
    let step = 10_f64.powf(value.log10().floor()) / 2.0;
    (value / step).ceil() * step
}
