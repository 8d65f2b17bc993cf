//! Reads the machine. Nothing here changes it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UdpSocket;

use super::facts::{Facts, FoundFile, Process, Resolver, Ruleset, Unreadable};
use super::items::RESOLVER;
use super::links::Netlink;
use super::netns;
use super::pattern::Clauses;
use super::plan::Options;
use super::scan::{AGENT, EDGECORE, K3S, KUBE_PROXY};
use super::shapes::{FILES, FOOTPRINTS, MESH_ADDRESS, Place};
use crate::net::listening;
use crate::rules::apply::{Backend, Family, Firewall};
use crate::rules::dump::Dump;
use crate::rules::peek;

/// Where the machine's files are found. Tests put another folder in front.
#[derive(Clone, Debug)]
pub struct Roots {
    /// In front of every absolute path of the table.
    pub files: PathBuf,
    /// The process list.
    pub processes: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { files: "/".into(), processes: "/proc".into() }
    }
}

impl Roots {
    /// An absolute path, behind the root.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.files.join(path.trim_start_matches('/'))
    }
}

/// Abstract socket that a running agent of this program holds, as `/proc/net/unix` shows it.
const OWN_SOCKET: &str = "@edgesplice";
/// How long one DNS question may stay without an answer, and how often it is asked.
const DNS_WAIT: Duration = Duration::from_millis(400);
const DNS_TRIES: usize = 2;

/// Reads everything that the judgement needs.
pub async fn facts<F: Firewall>(firewall: &F, roots: &Roots, options: &Options) -> anyhow::Result<Facts> {
    let mut facts = Facts { rulesets: rulesets(firewall).await?, ..Facts::default() };
    if options.pod {
        return Ok(facts);
    }
    let netlink = Netlink::open()?;
    facts.links = netlink.links().await?;
    facts.routes = netlink.routes(&facts.links).await?;
    facts.policy_rules = netlink.policy_rules().await?;
    let sets = firewall.ipset_save().await?.unwrap_or_default();
    let names = sets.lines().filter_map(|line| line.strip_prefix("create ")?.split(' ').next());
    facts.sets = names.map(str::to_owned).collect();
    facts.files = files(roots);
    facts.listeners = listening::listening();
    facts.processes = processes(roots);
    facts.own_agent = own_agent();
    facts.resolver = resolver(roots, &facts, options).await;
    Ok(facts)
}

/// The rules of both back ends and families, as far as their programs are installed.
pub(super) async fn rulesets<F: Firewall>(firewall: &F) -> anyhow::Result<Vec<Ruleset>> {
    let mut found = Vec::new();
    for backend in Backend::ALL {
        let texts = tokio::join!(firewall.save(backend, Family::V4), firewall.save(backend, Family::V6));
        for (family, text) in [(Family::V4, texts.0), (Family::V6, texts.1)] {
            let name = || format!("{} {}", backend.as_str(), family.as_str());
            let text = match text {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                Err(error) if error.is_unsupported() => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot read the {} rules", name())),
            };
            let dump =
                Dump::parse(&text).with_context(|| format!("cannot understand the {} rules", name()))?;
            let partial = dump.partial.iter();
            let mut unreadable: Vec<Unreadable> =
                partial.map(|table| Unreadable { table: table.clone(), chains: Vec::new() }).collect();
            for table in &dump.unreadable {
                let chains = peek::standing(firewall, backend, family, table, chains_of(table)).await;
                let chains =
                    chains.with_context(|| format!("cannot look into the {} table {table}", name()))?;
                unreadable.push(Unreadable { table: table.clone(), chains });
            }
            found.push(Ruleset { backend, family, text, dump, unreadable });
        }
    }
    Ok(found)
}

/// The names of the chains that EdgeMesh, of whatever version, had in a table.
fn chains_of(table: &str) -> BTreeSet<&'static str> {
    let theirs = FOOTPRINTS.iter().filter(|footprint| footprint.place != Place::Own);
    theirs.flat_map(|one| one.chains).filter(|chain| chain.table == table).map(|chain| chain.name).collect()
}

fn files(roots: &Roots) -> Vec<FoundFile> {
    let found = FILES.iter().filter_map(|&(path, folder, what)| {
        let meta = fs::symlink_metadata(roots.at(path)).ok()?;
        let as_expected = if folder { meta.is_dir() } else { meta.is_file() };
        Some(FoundFile { path, what, as_expected })
    });
    found.collect()
}

/// The processes of this network namespace whose names matter.
fn processes(roots: &Roots) -> Vec<Process> {
    let mut found = Vec::new();
    for (pid, folder) in netns::entries(&roots.processes) {
        let Ok(pid) = pid.parse() else { continue };
        let read = |file: &str| fs::read(folder.join(file)).unwrap_or_default();
        let comm = String::from_utf8_lossy(&read("comm")).trim_end().to_owned();
        let arguments = read("cmdline");
        let words: Vec<_> = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let argv0 = words.first().map(|word| word.rsplit('/').next().unwrap_or_default());
        let names = [AGENT, EDGECORE, KUBE_PROXY].into_iter().chain(K3S);
        let Some(name) = names.into_iter().find(|name| comm == *name || argv0 == Some(name)) else {
            continue;
        };
        // EdgeMesh serves the namespace it runs in. Where that cannot be told, assume this one.
        if netns::is_here(&folder).unwrap_or_else(|| !is_dead(&folder)) {
            found.push(Process { pid, name, command_line: words.join(" ") });
        }
    }
    found
}

/// Whether a process has ended, reaped or not: it has no namespace any more, and does nothing.
fn is_dead(folder: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(folder.join("stat")) else { return !folder.exists() };
    // The name stands in brackets and may hold anything; the state follows.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn own_agent() -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    text.lines().any(|line| line.split_ascii_whitespace().nth(7) == Some(OWN_SOCKET))
}

/// The resolver's file; those of its servers that may have been EdgeMesh are asked.
async fn resolver(roots: &Roots, facts: &Facts, options: &Options) -> Option<Resolver> {
    let path = roots.at(RESOLVER);
    let link_to = fs::read_link(&path).ok();
    let text = fs::read_to_string(&path).ok()?;
    let servers: Vec<IpAddr> = text.lines().filter_map(super::files::name_server).collect();
    let mut suspects = BTreeSet::from([IpAddr::V4(MESH_ADDRESS)]);
    suspects.extend(options.mesh_address);
    for table in facts.rulesets.iter().flat_map(|ruleset| &ruleset.dump.tables) {
        suspects.extend(table.rules.iter().filter_map(|rule| Some(Clauses::of(rule).dnat()?.0)));
    }
    let mut answering = BTreeSet::new();
    for server in servers.iter().copied() {
        let suspect = suspects.contains(&server) || facts.is_local(server);
        if suspect && (bound(server, facts) || answers(server).await) {
            answering.insert(server);
        }
    }
    Some(Resolver { link_to, servers, answering })
}

/// Whether a socket of this machine takes questions there, even if it is slow to answer.
fn bound(server: IpAddr, facts: &Facts) -> bool {
    facts.listeners.iter().any(|listener| {
        let ip = listener.address.ip();
        listener.udp
            && listener.address.port() == 53
            && (ip == server || ip.is_unspecified() && facts.is_local(server))
    })
}

/// Whether a name server answers anything at all.
async fn answers(server: IpAddr) -> bool {
    let ask = async {
        let any: SocketAddr = match server {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect((server, 53)).await?;
        // Header: id, recursion desired, one question. Question: kubernetes.default.svc.cluster.local, A, IN.
        let mut question = vec![0xed, 0x6e, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ["kubernetes", "default", "svc", "cluster", "local"] {
            question.extend(u8::try_from(label.len()));
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        let mut answer = [0; 512];
        for _ in 0..DNS_TRIES {
            socket.send(&question).await?;
            if let Ok(length) = tokio::time::timeout(DNS_WAIT, socket.recv(&mut answer)).await {
                return length.map(|length| length >= 12 && answer[..2] == question[..2]);
            }
        }
        std::io::Result::Ok(false)
    };
    // Refused or unreachable: nobody is there.
    ask.await.unwrap_or(false)
}

/// Whether a path exists, without following a link at its end.
pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
