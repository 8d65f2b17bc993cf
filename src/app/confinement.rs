//! What the agent needs from its start on, for `confine` to take away the rest.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::config::{Credentials, Settings};
use crate::confine::{Needs, Report, confine};
use crate::keeper::Store;
use crate::net::sock;
use crate::obs::access;
use crate::obs::api::HardeningReport;
use crate::rules;

/// Where leftovers of EdgeMesh are removed at the start: `intercept.removeStale`.
const STALE: [&str; 3] = ["/etc", "/opt/cni", "/run"];

/// Gives up what is not needed, in this process and in its keeper; `None` where the user does not want that. Must be
/// called while there is one thread.
pub(super) fn enter(settings: &Settings, keeper: Option<&Store>) -> Option<HardeningReport> {
    if !settings.hardening.on {
        info!("hardening is off: all rights are kept");
        return None;
    }
    // What takes more rights than will be left, or what must be there to be named.
    if let Err(error) = sock::raise_nofile() {
        warn!(%error, "the limit of open descriptors could not be raised");
    }
    prepare(settings);
    let report = confine(&needs(settings), keeper.is_some_and(Store::is_confined));
    if let Some(Err(error)) = keeper.map(|keeper| keeper.confine(report.rights.bits())) {
        warn!(%error, "the keeper cannot be told to give up what is not needed");
    }
    info!(
        capabilities = %report.rights,
        system_calls_forbidden = report.calls,
        landlock = report.files,
        "what is not needed is given up"
    );
    for reason in &report.reasons {
        info!("{reason}");
    }
    if !report.faults.is_empty() {
        warn!("hardening is not complete: {}", report.faults.join("; "));
    }
    Some(told(report))
}

fn told(report: Report) -> HardeningReport {
    HardeningReport {
        capabilities: report.rights.names(),
        no_new_privileges: report.no_new_privileges,
        system_calls_forbidden: report.calls,
        landlock: report.files,
        notes: report.faults.into_iter().map(|fault| format!("hardening: {fault}")).collect(),
    }
}

/// Makes what the agent writes later: Landlock knows files, not names. Whatever cannot be made is missed, and said,
/// by whoever needs it.
fn prepare(settings: &Settings) {
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(&settings.state_dir);
    if let Some(log) = access_log(settings) {
        let _ = access::file(log);
    }
    // As iptables itself makes it.
    let _ = OpenOptions::new().create(true).append(true).mode(0o600).open(rules::lock_file());
}

fn access_log(settings: &Settings) -> Option<&Path> {
    settings.proxy.http.access_log.as_deref().filter(|path| path.as_os_str() != "-")
}

fn needs(settings: &Settings) -> Needs {
    let source = &settings.source;
    let Credentials { ca_file, cert_file, key_file, token_file } = &source.metaserver_credentials;
    let read = [&source.manifests, &source.kubeconfig, ca_file, cert_file, key_file, token_file];
    let mut write = vec![settings.state_dir.clone(), rules::lock_file()];
    write.extend(access_log(settings).map(Path::to_path_buf));
    if settings.intercept.remove_stale {
        write.extend(STALE.map(PathBuf::from));
    }
    Needs {
        read: read.into_iter().flatten().cloned().collect(),
        write: write.into_iter().map(real).collect(),
    }
}

/// Where links lead, so that the right place is named.
fn real(path: PathBuf) -> PathBuf {
    let resolved: io::Result<PathBuf> = fs::canonicalize(&path);
    resolved.unwrap_or(path)
}
