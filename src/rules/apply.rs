//! The seam to the machine: reading and restoring rules through the `iptables` programs of either back end.

use std::fmt;
use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// One of the two kernel interfaces behind the `iptables` programs. A node may have rules in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Backend {
    /// Both, nft first.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// `nft` or `legacy`, as in the programs' names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `ipv4` or `ipv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// `ip` or `ip6`, as `nft` has it.
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// A system tool could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The program is not installed.
    #[error("the program `{program}` is not installed; install the package `{package}`")]
    Missing {
        /// The program.
        program: String,
        /// The distribution's package that has it.
        package: &'static str,
    },
    /// It did not end in time.
    #[error("`{program}` did not end within {seconds} s; something else may hold the xtables lock")]
    TimedOut {
        /// The program with its arguments.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It ended with an error.
    #[error("`{program}` failed ({status}): {stderr}")]
    Failed {
        /// The program with its arguments.
        program: String,
        /// Its exit status.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// It could not be started or talked to.
    #[error("`{program}` could not be run: {source}")]
    Io {
        /// The program with its arguments.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl ToolError {
    /// Someone else held the lock, or the tool took too long: worth another try as it is.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            // `RESOURCE_PROBLEM` of `xtables.h`: the lock was not to be had.
            Self::Failed { status, stderr, .. } => status == "exit status: 4" && stderr.contains("lock"),
            Self::Missing { .. } | Self::Io { .. } => false,
        }
    }

    /// The kernel has no such back end or family, and so no such rules. The programs say it in several ways.
    pub fn is_unsupported(&self) -> bool {
        let Self::Failed { stderr, .. } = self else { return false };
        // Without rights nothing can be told.
        let unknown = stderr.contains("ermission denied") || stderr.contains("not permitted");
        let absent = [
            "Failed to initialize nft",
            "Could not fetch rule set generation id",
            "Protocol not supported",
            "Address family not supported",
            "Table does not exist",
        ];
        !unknown && absent.iter().any(|text| stderr.contains(text))
    }
}

/// The packet filter of one network namespace.
pub trait Firewall: Send + Sync {
    /// The text of `iptables-save -c`, all tables. `Ok(None)` if that back end's programs are not installed.
    fn save(
        &self,
        backend: Backend,
        family: Family,
    ) -> impl Future<Output = Result<Option<String>, ToolError>> + Send;

    /// Feeds `script` to `iptables-restore --noflush --wait`, atomic per table.
    fn restore(
        &self,
        backend: Backend,
        family: Family,
        script: &str,
    ) -> impl Future<Output = Result<(), ToolError>> + Send;

    /// Runs `iptables` itself with `args`, for one question or one rule, and returns what it printed. For tables that
    /// [`save`](Self::save) cannot print, whose single chains can still be asked for.
    fn command(
        &self,
        backend: Backend,
        family: Family,
        args: &[&str],
    ) -> impl Future<Output = Result<String, ToolError>> + Send;

    /// Feeds `script` to `ipset restore`.
    fn ipset_restore(&self, script: &str) -> impl Future<Output = Result<(), ToolError>> + Send;

    /// The text of `ipset save`, or `Ok(None)` if the tool or the kernel has no sets.
    fn ipset_save(&self) -> impl Future<Output = Result<Option<String>, ToolError>> + Send;
}

/// The machine's own tools, run in the caller's network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostTools;

/// Longest wait for the xtables lock, in seconds, passed to `--wait`.
const LOCK_WAIT_SECONDS: u64 = 5;
/// Longest run of one tool: the lock's wait and the work.
const TOOL_SECONDS: u64 = LOCK_WAIT_SECONDS + 5;

/// The program of a back end and family: `program_name(Nft, V6, "save")` is `ip6tables-nft-save`.
pub fn program_name(backend: Backend, family: Family, suffix: &str) -> String {
    let base = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    if suffix.is_empty() {
        format!("{base}-{}", backend.as_str())
    } else {
        format!("{base}-{}-{suffix}", backend.as_str())
    }
}

impl Firewall for HostTools {
    async fn save(&self, backend: Backend, family: Family) -> Result<Option<String>, ToolError> {
        let program = program_name(backend, family, "save");
        if backend == Backend::Legacy && has_no_legacy_table(family) && is_installed(&program) {
            return Ok(Some(String::new()));
        }
        match run_tool(&program, &["-c"], None, "iptables").await {
            Ok(text) => Ok(Some(text)),
            Err(ToolError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn restore(&self, backend: Backend, family: Family, script: &str) -> Result<(), ToolError> {
        let program = program_name(backend, family, "restore");
        let wait = LOCK_WAIT_SECONDS.to_string();
        run_tool(&program, &["--noflush", "--wait", &wait], Some(script), "iptables").await.map(drop)
    }

    async fn command(&self, backend: Backend, family: Family, args: &[&str]) -> Result<String, ToolError> {
        let program = program_name(backend, family, "");
        let wait = LOCK_WAIT_SECONDS.to_string();
        let args: Vec<&str> = ["--wait", &wait].into_iter().chain(args.iter().copied()).collect();
        run_tool(&program, &args, None, "iptables").await
    }

    async fn ipset_restore(&self, script: &str) -> Result<(), ToolError> {
        run_tool("ipset", &["restore"], Some(script), "ipset").await.map(drop)
    }

    async fn ipset_save(&self) -> Result<Option<String>, ToolError> {
        match run_tool("ipset", &["save"], None, "ipset").await {
            Ok(text) => Ok(Some(text)),
            Err(ToolError::Missing { .. } | ToolError::Failed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the kernel has no legacy table of that family in this namespace. The program asks the same file, and prints
/// nothing then; most nodes have none, and to start it takes five milliseconds each time.
fn has_no_legacy_table(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match std::fs::read(file) {
        Ok(names) => names.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs `program` with `args`, feeding it `input`, and returns its standard output. `package` names where it comes
/// from, for the message when it is missing.
pub async fn run_tool(
    program: &str,
    args: &[&str],
    input: Option<&str>,
    package: &'static str,
) -> Result<String, ToolError> {
    let shown = CommandLine(program, args).to_string();
    let io = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::NotFound {
            ToolError::Missing { program: program.to_owned(), package }
        } else {
            ToolError::Io { program: shown.clone(), source }
        }
    };
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(io)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that ends early closes its input; its exit status says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let limit = Duration::from_secs(TOOL_SECONDS);
    let run = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match tokio::time::timeout(limit, run).await {
        Ok(output) => output.map_err(io)?,
        Err(_) => return Err(ToolError::TimedOut { program: shown, seconds: TOOL_SECONDS }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(ToolError::Failed { program: shown, status: output.status.to_string(), stderr })
}

/// A program with its arguments, for messages.
struct CommandLine<'a>(&'a str, &'a [&'a str]);

impl fmt::Display for CommandLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        self.1.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_that_the_kernel_lacks_is_no_failure() {
        for (stderr, unsupported) in [
            ("iptables-nft-save: Could not fetch rule set generation id: Invalid argument", true),
            ("iptables-nft-save: Failed to initialize nft: Protocol not supported", true),
            ("Could not fetch rule set generation id: Permission denied (you must be root)", false),
            ("something else", false),
        ] {
            let error = ToolError::Failed {
                program: "iptables-nft-save -c".to_owned(),
                status: "exit status: 1".to_owned(),
                stderr: stderr.to_owned(),
            };
            assert_eq!(error.is_unsupported(), unsupported, "{stderr}");
        }
    }
}
