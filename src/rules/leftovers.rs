//! Finding and removing everything of ours, without knowing what was installed or how: for the end of a run, and for
//! `cleanup` after a killed agent. Both back ends, both families, sets, routes and policy rules.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use super::apply::{Backend, Family};
use super::dump::{Dump, Table};
use super::ipset;
use super::machine::Machine;
use super::names::{CREATED_CHAIN, is_own_chain};
use super::nft::Removal;
use super::peek;
use super::reconcile::RulesError;
use super::render::{self, jumps_into_own};
use super::routes::Entry;

/// The kernel lets go of a set some time after the last nft rule that used it is gone, so that destroying it is
/// tried this often, [`SET_RETRY_PAUSE`] apart.
const SET_TRIES: u32 = 40;
/// See [`SET_TRIES`]; together two seconds.
const SET_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How often tables are looked at anew that are to go, because somebody has changed a rule between look and removal.
const TABLE_TRIES: u32 = 40;

/// More equal jumps than anybody leaves in one chain; a bound for a loop.
const MOST_HIDDEN_JUMPS: u32 = 1000;

/// What of ours stands on this machine, each thing as a line for people.
pub async fn leftovers<M: Machine>(machine: &M) -> Result<Vec<String>, RulesError> {
    let mut found = Vec::new();
    for backend in Backend::ALL {
        for family in Family::ALL {
            let Some(dump) = read(machine, backend, family).await? else { continue };
            for table in &dump.tables {
                let place = format!("{} {} table {}", backend.as_str(), family.as_str(), table.name);
                let chains = table.chains.iter().filter(|chain| is_own_chain(&chain.name));
                found.extend(chains.map(|chain| format!("{place}: chain {}", chain.name)));
                found.extend(jumps_into_own(table).map(|rule| format!("{place}: rule `{}`", rule.line())));
            }
        }
    }
    if let Some(text) = machine.ipset_list().await? {
        found.extend(ipset::heads(&text).keys().map(|name| format!("ip set {name}")));
    }
    found.extend(machine.standing().await?.own.iter().map(ToString::to_string));
    found.extend(machine.own_addresses().await?);
    Ok(found)
}

/// Removes everything of ours. Goes on after a fault and returns the first one at the end.
pub async fn remove_leftovers<M: Machine>(machine: &M) -> Result<(), RulesError> {
    let removed = remove_all(machine, &BTreeSet::new()).await;
    removed.and(machine.remove_own_addresses().await.map_err(RulesError::from))
}

/// As [`remove_leftovers`], where the caller remembers tables of its own making beside those that carry the mark.
pub(super) async fn remove_all<M: Machine>(
    machine: &M,
    created: &BTreeSet<(Family, &'static str)>,
) -> Result<(), RulesError> {
    // Nobody is led into a range any more before the rules go.
    let mut first = remove_entries(machine, Entry::is_to_range).await;
    for backend in Backend::ALL {
        for family in Family::ALL {
            let done = remove_rules(machine, backend, family, created).await;
            first = first.and(done.map(drop));
        }
    }
    // The rules are gone, so nothing needs the rest any more.
    first = first.and(remove_entries(machine, |_| true).await);
    first.and(remove_sets(machine, |_| true).await)
}

/// Removes own routes and policy rules. Backwards: a policy rule before its table. Goes on after a fault.
pub(super) async fn remove_entries<M: Machine>(
    machine: &M,
    which: impl Fn(&Entry) -> bool,
) -> Result<(), RulesError> {
    let entries: Vec<Entry> = machine.standing().await?.own.into_iter().rev().filter(which).collect();
    if entries.is_empty() { Ok(()) } else { Ok(machine.remove_entries(&entries).await?) }
}

/// Removes own chains and jumps of one back end and family in one go, and then the tables that exist only because of
/// us. Returns whether there was anything.
///
/// A table that is to go keeps its mark until it goes: whoever dies on the way has left it to the next one.
pub(super) async fn remove_rules<M: Machine>(
    machine: &M,
    backend: Backend,
    family: Family,
    created: &BTreeSet<(Family, &'static str)>,
) -> Result<bool, RulesError> {
    let Some(mut dump) = read(machine, backend, family).await? else { return Ok(false) };
    if remove_hidden_jumps(machine, backend, family, &dump).await {
        dump = read(machine, backend, family).await?.unwrap_or_default();
    }
    // Those that could be deleted are; if one is left after all, the chain that it leads to refuses to go.
    for table in &mut dump.tables {
        if dump.unreadable.contains(&table.name) {
            table.rules.clear();
        }
    }
    let ours = |table: &&Table| {
        let is_remembered = created.iter().any(|(of, name)| *of == family && *name == table.name);
        backend == Backend::Nft
            && (table.has_chain(CREATED_CHAIN)
                || is_remembered && table.chains.iter().any(|chain| is_own_chain(&chain.name)))
    };
    let ours = dump.tables.iter().filter(ours).filter(|table| is_bare(&dump, table));
    let ours: BTreeSet<String> = ours.map(|table| table.name.clone()).collect();
    let script = render::removal(&dump, &ours);
    if script.is_none() && ours.is_empty() {
        return Ok(false);
    }
    let done = match &script {
        Some(script) => remove_chains(machine, backend, family, &dump, script).await,
        None => Ok(()),
    };
    let tables = if ours.is_empty() { Ok(()) } else { remove_tables(machine, family).await };
    done.and(tables).map(|()| true)
}

async fn remove_chains<M: Machine>(
    machine: &M,
    backend: Backend,
    family: Family,
    dump: &Dump,
    script: &str,
) -> Result<(), RulesError> {
    let Err(error) = machine.restore(backend, family, script).await else { return Ok(()) };
    // A jump behind the native rule cannot be deleted. It does no harm once it leads to an empty chain.
    if let Some(table) = dump.unreadable.first()
        && !error.is_busy()
        && machine.restore(backend, family, &render::emptying(dump)).await.is_ok()
    {
        let table = dump.hidden.first().map_or(table, |(table, _)| table).clone();
        return Err(RulesError::Hidden { family, table, source: Box::new(error) });
    }
    Err(error.into())
}

/// Removes the nft tables in which only the mark is left that they are ours, or that mark alone where somebody has made
/// use of the table meanwhile.
async fn remove_tables<M: Machine>(machine: &M, family: Family) -> Result<(), RulesError> {
    let failed = |table, source| RulesError::Table { table, family: family.as_str(), source };
    let mut names = String::new();
    for _ in 0..TABLE_TRIES {
        // Before the look: what is changed from here on must not go unseen.
        let generation = machine.nft_generation();
        let Some(mut dump) = read(machine, Backend::Nft, family).await? else { return Ok(()) };
        dump.tables.retain(|table| {
            let mut own = table.chains.iter().filter(|chain| is_own_chain(&chain.name));
            own.next().is_some_and(|chain| chain.name == CREATED_CHAIN) && own.next().is_none()
        });
        let (bare, used): (Vec<&Table>, Vec<&Table>) =
            dump.tables.iter().partition(|table| is_bare(&dump, table));
        let mut used: Vec<String> = used.iter().map(|table| table.name.clone()).collect();
        if used.is_empty() {
            let bare: Vec<&str> = bare.iter().map(|table| table.name.as_str()).collect();
            if bare.is_empty() {
                return Ok(());
            }
            names = bare.join(", ");
            match machine.remove_tables(family, &bare, generation) {
                Ok(Removal::Gone) => return Ok(()),
                Ok(Removal::Changed) => continue,
                Ok(Removal::InUse(tables)) => used = tables,
                Err(error) => return Err(failed(names, error)),
            }
        }
        dump.tables.retain(|table| used.contains(&table.name));
        if let Some(script) = render::removal(&dump, &BTreeSet::new()) {
            machine.restore(Backend::Nft, family, &script).await?;
        }
    }
    Err(failed(names, io::Error::other("the rules change faster than they can be read")))
}

/// Removes own jumps from tables that cannot be read: of several equal ones only one may be seen, and the chain they
/// lead to cannot go before the last. Returns whether there was one.
async fn remove_hidden_jumps<M: Machine>(machine: &M, backend: Backend, family: Family, dump: &Dump) -> bool {
    let mut any = false;
    for table in dump.tables.iter().filter(|table| dump.unreadable.contains(&table.name)) {
        for rule in jumps_into_own(table) {
            let words = rule.words();
            let mut args = vec!["-t", &table.name, "-D", &rule.chain];
            args.extend(words.iter().map(String::as_str));
            for _ in 0..MOST_HIDDEN_JUMPS {
                if machine.command(backend, family, &args).await.is_err() {
                    break;
                }
                any = true;
            }
        }
    }
    any
}

/// Whether nothing in a table is somebody else's: no rules but own ones, no chains but those and the built-in ones,
/// which accept.
fn is_bare(dump: &Dump, table: &Table) -> bool {
    let seen = !dump.unreadable.contains(&table.name) && !dump.partial.contains(&table.name);
    let own =
        jumps_into_own(table).count() + table.rules.iter().filter(|rule| is_own_chain(&rule.chain)).count();
    seen && own == table.rules.len()
        && table.chains.iter().all(|chain| chain.policy == "ACCEPT" || is_own_chain(&chain.name))
}

/// Destroys own sets whose name `which` accepts.
pub(super) async fn remove_sets<M: Machine>(
    machine: &M,
    which: impl Fn(&str) -> bool,
) -> Result<(), RulesError> {
    for attempt in 1.. {
        let Some(text) = machine.ipset_list().await? else { break };
        let mut script = String::new();
        for name in ipset::heads(&text).keys().filter(|name| which(name)) {
            let _ = writeln!(script, "destroy {name}");
        }
        if script.is_empty() {
            break;
        }
        match machine.ipset_restore(&script).await {
            Err(error) if attempt == SET_TRIES => return Err(error.into()),
            Err(_) => tokio::time::sleep(SET_RETRY_PAUSE).await,
            Ok(()) => break,
        }
    }
    Ok(())
}

/// The rules of one back end and family; `None` if its programs are not installed or the kernel does not have it.
pub(super) async fn read<M: Machine>(
    machine: &M,
    backend: Backend,
    family: Family,
) -> Result<Option<Dump>, RulesError> {
    let text = match machine.save(backend, family).await {
        Err(error) if error.is_unsupported() => None,
        other => other?,
    };
    let Some(text) = text else { return Ok(None) };
    let mut dump = Dump::parse(&text)?;
    peek::into_unreadable(machine, backend, family, &mut dump).await?;
    Ok(Some(dump))
}
