//! Logging: to standard error, one event a line, as text or JSON.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Checks a level (`info`) or filter (`info,edgesplice::dns=debug`); the error says what to give instead.
pub fn check_filter(text: &str) -> Result<(), String> {
    let way_out = || {
        "give a level (error, warn, info, debug, trace, off) or a filter such as info,edgesplice::dns=debug"
            .to_owned()
    };
    for directive in text.split(',') {
        // `EnvFilter` takes a bare word for a module's name, so that a level with a typing error would show nothing.
        let directive = directive.trim();
        let level = !directive.is_empty() && directive.parse::<LevelFilter>().is_ok();
        if !level && !directive.contains('=') {
            return Err(way_out());
        }
    }
    EnvFilter::builder().parse(text).map(|_| ()).map_err(|_| way_out())
}

/// Starts logging with a level or filter that [`check_filter`] has passed, and logs panics from here on.
/// A second start in one process is an error.
pub fn start(filter: &str, json: bool) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse(filter)?)
        .with_writer(OneLine)
        .with_ansi(!json && io::stderr().is_terminal());
    let started = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    started.map_err(|e| anyhow::anyhow!("logging cannot be started: {e}"))?;
    std::panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("(no message)");
        tracing::error!(location, thread = std::thread::current().name(), "panic: {message}");
    }));
    Ok(())
}

/// Standard error, one event a line even when a value holds a line break. A log that cannot be written is given up:
/// a full disk behind it must not stop the node's network.
#[derive(Clone, Copy, Debug)]
struct OneLine;

impl MakeWriter<'_> for OneLine {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl Write for OneLine {
    /// The formatter hands over each event as a whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(&on_one_line(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn on_one_line(event: &[u8]) -> Vec<u8> {
    let mut line: Vec<u8> = event.strip_suffix(b"\n").unwrap_or(event).to_vec();
    for byte in &mut line {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_known_from_typing_errors() {
        for good in ["info", "WARN", "off", "info,edgesplice::dns=debug", "edgesplice=trace"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "verbose", "inof", "info,", "edgesplice=loud", "info;debug"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_stays_on_one_line() {
        assert_eq!(on_one_line(b"a\nb\r\nc\n"), b"a b  c\n");
        assert_eq!(on_one_line(b"a"), b"a\n");
    }
}
