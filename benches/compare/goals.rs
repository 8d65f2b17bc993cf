//! The goals of the design, each beside the figure of this run.

use std::fmt::Write as _;

/// One goal. All are upper or lower bounds of one figure.
pub(crate) struct Goal {
    /// What is measured.
    what: &'static str,
    /// The bound in words.
    bound: &'static str,
    /// The figure; NaN where it was not measured in this run.
    pub(crate) figure: f64,
    /// The bound.
    limit: f64,
    /// Whether more is better.
    more: bool,
}

impl Goal {
    /// A figure that is to be at least `limit`.
    pub(crate) fn at_least(what: &'static str, bound: &'static str, limit: f64, figure: f64) -> Self {
        Self { what, bound, figure, limit, more: true }
    }

    /// A figure that is to be at most `limit`.
    pub(crate) fn at_most(what: &'static str, bound: &'static str, limit: f64, figure: f64) -> Self {
        Self { what, bound, figure, limit, more: false }
    }

    fn verdict(&self) -> &'static str {
        match (self.figure.is_nan(), self.more) {
            (true, _) => "not measured",
            (_, true) if self.figure >= self.limit => "met",
            (_, false) if self.figure <= self.limit => "met",
            _ => "missed",
        }
    }
}

/// The goals as a Markdown table.
pub(crate) fn markdown(goals: &[Goal]) -> String {
    let mut text = String::from("| measure | goal | figure | |\n|---|---|---:|---|\n");
    for goal in goals {
        let figure = if goal.figure.is_nan() { "–".to_owned() } else { format!("{:.2}", goal.figure) };
        let _ = writeln!(text, "| {} | {} | {figure} | {} |", goal.what, goal.bound, goal.verdict());
    }
    text
}
