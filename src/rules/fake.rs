//! A machine in memory, for tests: understands the restore scripts that this module writes, and fails on demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::apply::{Backend, Family, Firewall, ToolError};
use super::machine::{Lacks, Machine};
use super::names::CREATED_CHAIN;
use super::nft::Removal;
use super::routes::{Entry, Foreign, RouteError, Standing};
use super::scratch::Feature;
use crate::model::Frontend;

/// Chains in the order of their creation, each with its rules.
type Chains = Vec<(String, Vec<String>)>;

/// One set: its type and members.
type Set = (String, BTreeSet<String>);

#[derive(Debug, Default)]
pub(super) struct State {
    tables: BTreeMap<(Backend, Family, String), Chains>,
    sets: BTreeMap<String, Set>,
    entries: BTreeSet<Entry>,
    foreign: Vec<Foreign>,
    /// Raised by every change of the rules.
    generation: u32,
    /// What the next restores answer, one after another; empty: they work.
    faults: VecDeque<ToolError>,
    /// What was called, in order.
    calls: Vec<String>,
    /// How many operations there were.
    operations: usize,
    /// The operations that fail, by their number from 0, and how. Those that change several things do so halfway.
    failing: BTreeMap<usize, Failing>,
    /// The process whose machine this is has died: nothing that it does has an effect.
    dead: bool,
    /// What somebody does right before tables are removed, see [`Fake::tamper`].
    meanwhile: Option<String>,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    /// A tool says no.
    Broken,
    /// Somebody else holds the lock.
    Busy,
    /// The process dies on the way.
    Dies,
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub(super) state: Arc<Mutex<State>>,
    pub(crate) has_ipset: bool,
    pub(crate) has_ipv6: bool,
    pub(crate) permitted: bool,
    pub(crate) has_policy_routing: bool,
    /// Whether the process may make a network namespace, to try rules there.
    pub(crate) may_try: bool,
    /// Back ends whose programs are installed.
    pub(crate) backends: Vec<Backend>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            has_ipset: true,
            has_ipv6: true,
            permitted: true,
            has_policy_routing: true,
            may_try: true,
            backends: Backend::ALL.to_vec(),
        }
    }
}

/// A failure as a tool words it.
pub(crate) fn failure(status: i32, stderr: &str) -> ToolError {
    ToolError::Failed {
        program: "fake".to_owned(),
        status: format!("exit status: {status}"),
        stderr: stderr.to_owned(),
    }
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next restore (of rules or sets) fails like this.
    pub(crate) fn fail_next(&self, error: ToolError) {
        self.state().faults.push_back(error);
    }

    /// Has operations fail, counted from now on.
    pub(super) fn plan_failures(&self, failing: BTreeMap<usize, Failing>) {
        let mut state = self.state();
        (state.failing, state.operations, state.dead) = (failing, 0, false);
    }

    /// Has somebody [`tamper`](Self::tamper) right before tables are removed, once.
    pub(super) fn tamper_before_removal(&self, line: &str) {
        self.state().meanwhile = Some(line.to_owned());
    }

    /// How many operations there were since then.
    pub(super) fn operations(&self) -> usize {
        self.state().operations
    }

    /// Whether the process has died.
    pub(super) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// What was called since the last time.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Members of a set.
    pub(crate) fn members(&self, set: &str) -> Option<Vec<String>> {
        self.state().sets.get(set).map(|(_, members)| members.iter().cloned().collect())
    }

    /// Everything that stands.
    pub(crate) fn picture(&self) -> String {
        let state = self.state();
        format!("{:#?}\n{:#?}\n{:#?}", state.tables, state.sets, state.entries)
    }

    /// Everything that stands, in an order of its own: tables in which nothing is are something, too.
    pub(super) fn sorted_picture(&self) -> String {
        let state = self.state();
        let tables = state.tables.iter().map(|(key, chains)| (key, chains.iter().cloned().collect()));
        let tables: BTreeMap<_, BTreeMap<String, Vec<String>>> = tables.collect();
        format!("{tables:#?}\n{:#?}\n{:#?}", state.sets, state.entries)
    }

    /// Changes routes or sets behind the reconciler's back.
    pub(crate) fn tamper(&self, line: &str) {
        let mut state = self.state();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["ipset", "flush", name] => state.sets.get_mut(name).expect("the set").1.clear(),
            ["ipset", "lose", name] => drop(state.sets.remove(name)),
            ["route", "flush"] => state.entries.clear(),
            ["route", "add", net] => {
                let destination = net.parse().expect("a network");
                // Linux' number of the table `main`.
                state.foreign.push(Foreign { destination, table: 254, discards: None });
            }
            ["route", "gone"] => state.foreign.clear(),
            ["rules", "flush"] => {
                state.tables.clear();
                state.generation += 1;
            }
            ["first", table, chain] => {
                for ((_, _, name), chains) in &mut state.tables {
                    if name == table {
                        let rules = chains.iter_mut().find(|(name, _)| name == chain).expect("the chain");
                        rules.1.insert(0, "-j OTHER".to_owned());
                    }
                }
                state.generation += 1;
            }
            ["chain", table, chain] => {
                for ((_, _, name), chains) in &mut state.tables {
                    if name == table {
                        chains.push((chain.to_owned(), Vec::new()));
                    }
                }
                state.generation += 1;
            }
            _ => unreachable!("{line}"),
        }
    }
}

impl State {
    /// Counts an operation. An error says that it fails, after half of what it does if it does several things.
    fn operation(&mut self) -> Result<(), ToolError> {
        if self.dead {
            return Err(failure(137, "the process is dead"));
        }
        let number = self.operations;
        self.operations += 1;
        match self.failing.get(&number) {
            None => Ok(()),
            Some(Failing::Broken) => Err(failure(1, "broken")),
            Some(Failing::Busy) => Err(failure(4, "Another app is currently holding the xtables lock")),
            Some(Failing::Dies) => {
                self.dead = true;
                Err(failure(137, "it dies"))
            }
        }
    }
}

fn route_error(error: &ToolError) -> RouteError {
    RouteError { what: "a route".to_owned(), source: std::io::Error::other(error.to_string()) }
}

impl Firewall for Fake {
    async fn save(&self, backend: Backend, family: Family) -> Result<Option<String>, ToolError> {
        self.state().calls.push(format!("save {} {}", backend.as_str(), family.as_str()));
        self.state().operation()?;
        if !self.backends.contains(&backend) {
            return Ok(None);
        }
        let mut text = String::new();
        let state = self.state();
        for ((of, which, table), chains) in &state.tables {
            if (*of, *which) != (backend, family) {
                continue;
            }
            let _ = writeln!(text, "*{table}");
            for (chain, _) in chains {
                let policy = if is_user_defined(chain) { "-" } else { "ACCEPT" };
                let _ = writeln!(text, ":{chain} {policy} [0:0]");
            }
            for (chain, rules) in chains {
                for rule in rules {
                    let _ = writeln!(text, "[0:0] -A {chain} {rule}");
                }
            }
            text.push_str("COMMIT\n");
        }
        Ok(Some(text))
    }

    async fn restore(&self, backend: Backend, family: Family, script: &str) -> Result<(), ToolError> {
        let mut state = self.state();
        state.calls.push(format!("restore {} {}", backend.as_str(), family.as_str()));
        if let Some(error) = state.faults.pop_front() {
            return Err(error);
        }
        // Table by table, as the real one: each is written as a whole or not at all.
        let was_dead = state.dead;
        let fault = state.operation().err();
        let count = script.matches("COMMIT\n").count();
        let blocks = if fault.is_none() { count } else { count / 2 };
        for block in script.split_inclusive("COMMIT\n").take(if was_dead { 0 } else { blocks }) {
            let mut lines = block.lines().filter(|line| *line != "COMMIT");
            let table = lines.next().and_then(|line| line.strip_prefix('*')).expect("the table's name");
            let key = (backend, family, table.to_owned());
            let mut chains = state.tables.get(&key).cloned().unwrap_or_default();
            for line in lines {
                run(&mut chains, line).ok_or_else(|| failure(1, &format!("line failed: {line}")))?;
            }
            state.tables.insert(key, chains);
            state.generation += 1;
        }
        fault.map_or(Ok(()), Err)
    }

    async fn command(&self, _: Backend, _: Family, _: &[&str]) -> Result<String, ToolError> {
        Err(failure(1, "every table of this machine can be read"))
    }

    async fn ipset_restore(&self, script: &str) -> Result<(), ToolError> {
        let mut state = self.state();
        state.calls.push("ipset restore".to_owned());
        if let Some(error) = state.faults.pop_front() {
            return Err(error);
        }
        // Line by line, as the real one: what fails has done a part of it.
        let was_dead = state.dead;
        let fault = state.operation().err();
        let count = script.lines().count();
        let lines = if fault.is_none() { count } else { count / 2 };
        for line in script.lines().take(if was_dead { 0 } else { lines }) {
            let bad = || failure(1, &format!("line failed: {line}"));
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["create", name, kind, ..] => {
                    if state.sets.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new())).is_some() {
                        return Err(bad());
                    }
                }
                ["add", name, member, ..] => {
                    state.sets.get_mut(name).ok_or_else(bad)?.1.insert(member.to_owned());
                }
                ["del", name, member, ..] => {
                    state.sets.get_mut(name).ok_or_else(bad)?.1.remove(member);
                }
                ["swap", a, b] => {
                    let (one, two) =
                        (state.sets.remove(a).ok_or_else(bad)?, state.sets.remove(b).ok_or_else(bad)?);
                    state.sets.insert(a.to_owned(), two);
                    state.sets.insert(b.to_owned(), one);
                }
                ["destroy", name] => drop(state.sets.remove(name).ok_or_else(bad)?),
                _ => return Err(bad()),
            }
        }
        fault.map_or(Ok(()), Err)
    }

    async fn ipset_save(&self) -> Result<Option<String>, ToolError> {
        let mut state = self.state();
        state.operation()?;
        let adds = state
            .sets
            .iter()
            .flat_map(|(name, (_, members))| members.iter().map(move |m| format!("add {name} {m}\n")));
        Ok(self.has_ipset.then(|| adds.collect()))
    }
}

fn is_user_defined(chain: &str) -> bool {
    chain.starts_with("EDGE") || chain.starts_with("KUBE")
}

/// Carries out one line of a restore script.
fn run(chains: &mut Chains, line: &str) -> Option<()> {
    if let Some(rest) = line.strip_prefix(':') {
        let name = rest.split(' ').next()?;
        chain(chains, name).clear();
        return Some(());
    }
    let mut words = line.splitn(3, ' ');
    let (command, name, rest) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    match command {
        "-A" => chain(chains, name).push(rest.to_owned()),
        "-I" => chain(chains, name).insert(0, rest.strip_prefix("1 ").unwrap_or(rest).to_owned()),
        "-D" => {
            let rules = chain(chains, name);
            let at = rules.iter().position(|rule| rule == rest)?;
            rules.remove(at);
        }
        "-F" => chain(chains, name).clear(),
        "-X" => {
            let used = format!("-j {name}");
            if chains.iter().any(|(_, rules)| rules.iter().any(|rule| rule.ends_with(&used))) {
                return None;
            }
            chains.retain(|(chain, _)| chain != name);
        }
        _ => return None,
    }
    Some(())
}

fn chain<'a>(chains: &'a mut Chains, name: &str) -> &'a mut Vec<String> {
    let at = chains.iter().position(|(chain, _)| chain == name).unwrap_or_else(|| {
        chains.push((name.to_owned(), Vec::new()));
        chains.len() - 1
    });
    &mut chains[at].1
}

impl Machine for Fake {
    async fn lacks(&self, _: Backend, _: bool, _: &'static [Feature]) -> Lacks {
        if self.may_try { Lacks::Nothing } else { Lacks::Unknown }
    }

    async fn ipset_list(&self) -> Result<Option<String>, ToolError> {
        self.state().operation()?;
        let mut text = String::new();
        for (name, (kind, members)) in &self.state().sets {
            let _ = writeln!(text, "Name: {name}\nType: {kind}\nNumber of entries: {}\n", members.len());
        }
        Ok(self.has_ipset.then_some(text))
    }

    async fn standing(&self) -> Result<Standing, RouteError> {
        let mut state = self.state();
        state.operation().map_err(|error| route_error(&error))?;
        Ok(Standing { own: state.entries.clone(), foreign: state.foreign.clone() })
    }

    async fn add_entries(&self, entries: &[Entry]) -> Result<Vec<Result<(), RouteError>>, RouteError> {
        let mut state = self.state();
        let was_dead = state.dead;
        if let Err(error) = state.operation() {
            if !was_dead {
                state.entries.extend(&entries[..entries.len() / 2]);
            }
            return Err(route_error(&error));
        }
        state.entries.extend(entries);
        Ok(entries.iter().map(|_| Ok(())).collect())
    }

    async fn remove_entries(&self, entries: &[Entry]) -> Result<(), RouteError> {
        let mut state = self.state();
        let was_dead = state.dead;
        let fault = state.operation().map_err(|error| route_error(&error));
        let gone = match &fault {
            Ok(()) => entries,
            Err(_) if was_dead => &[],
            Err(_) => &entries[..entries.len() / 2],
        };
        state.entries.retain(|entry| !gone.contains(entry));
        fault
    }

    async fn has_policy_routing(&self, _: &[Family]) -> bool {
        self.has_policy_routing
    }

    fn remove_tables(
        &self,
        family: Family,
        tables: &[&str],
        generation: Option<u32>,
    ) -> std::io::Result<Removal> {
        let meanwhile = self.state().meanwhile.take();
        if let Some(line) = meanwhile {
            self.tamper(&line);
        }
        let mut state = self.state();
        state.operation().map_err(|error| std::io::Error::other(error.to_string()))?;
        if generation.is_some_and(|generation| generation != state.generation) {
            return Ok(Removal::Changed);
        }
        let key = |table: &str| (Backend::Nft, family, table.to_owned());
        let in_use = |(name, rules): &(String, Vec<String>)| {
            !rules.is_empty() || is_user_defined(name) && name != CREATED_CHAIN
        };
        let used = tables
            .iter()
            .filter(|table| state.tables.get(&key(table)).is_some_and(|chains| chains.iter().any(in_use)));
        let used: Vec<String> = used.map(|table| (*table).to_owned()).collect();
        if !used.is_empty() {
            return Ok(Removal::InUse(used));
        }
        state.tables.retain(|of, _| !tables.iter().any(|table| *of == key(table)));
        state.generation += 1;
        Ok(Removal::Gone)
    }

    fn nft_generation(&self) -> Option<u32> {
        Some(self.state().generation)
    }

    fn forget_flows(&self, _: &BTreeSet<Frontend>) -> anyhow::Result<u64> {
        Ok(0)
    }

    fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }

    fn may_administer(&self) -> bool {
        self.permitted
    }
}
