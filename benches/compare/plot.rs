//! The rates as bars, a group for each measure, as an SVG that needs nothing but a browser.

use std::fmt::Write as _;

/// Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
const COLOURS: [&str; 6] = ["#999999", "#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7"];
const BAR: usize = 16;
const LEFT: usize = 220;
const WIDTH: usize = 420;

/// Bars of each measure's share of the anchor: `groups` are titles with one value for each of `names`.
pub(crate) fn svg(names: &[&str], groups: &[(String, Vec<f64>)]) -> String {
    let most =
        groups.iter().flat_map(|(_, values)| values).copied().filter(|v| v.is_finite()).fold(1.0, f64::max);
    let group = names.len() * BAR + 14;
    let height = groups.len() * group + 40;
    let total = LEFT + WIDTH + 70;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"20\" font-weight=\"bold\">rate as a share of kernel DNAT, same run</text>\n"
    );
    for (row, (title, values)) in groups.iter().enumerate() {
        let top = 34 + row * group;
        let _ = writeln!(text, "<text x=\"10\" y=\"{}\">{title}</text>", top + 12);
        for (place, (name, value)) in names.iter().zip(values).enumerate().filter(|(_, (_, v))| v.is_finite())
        {
            let (y, length) = (top + place * BAR, value / most * WIDTH as f64);
            let colour = COLOURS[place % COLOURS.len()];
            let _ = writeln!(
                text,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.0}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.0}\" y=\"{}\">{value:.2} {name}</text>",
                BAR - 3,
                LEFT as f64 + length + 5.0,
                y + 11
            );
        }
    }
    text.push_str("</svg>\n");
    text
}
