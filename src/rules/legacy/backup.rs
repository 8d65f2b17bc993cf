//! A copy of every rule set, and of every file, before anything is removed.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use super::facts::{Facts, Ruleset};
use super::files;
use super::items::RESOLVER;
use super::netns::Netns;
use super::plan::{Plan, RulesetPlan, TablePlan};
use super::read::{Roots, exists};
use crate::rules::apply::program_name;

/// Where backups go if the user names no place: a new folder below the state folder.
pub fn default_folder(state_dir: &Path, now: SystemTime) -> PathBuf {
    let stamp = humantime::format_rfc3339_seconds(now).to_string().replace([':', '-'], "");
    state_dir.join(format!("cleanup-{stamp}"))
}

/// A folder that is being filled.
pub(super) struct Backup {
    folder: PathBuf,
    commands: Vec<String>,
}

impl Backup {
    /// Takes `wanted`, or a new folder inside it if it holds something: an earlier backup is never written over,
    /// because after a cut it is the only one with everything in it.
    pub(super) fn create(wanted: &Path) -> anyhow::Result<Self> {
        let taken = |path: &Path| match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => exists(path),
        };
        let mut folder = wanted.to_owned();
        if taken(wanted) {
            // A hundred cleanups that each found something new in one folder are no longer an accident.
            let next = (2..=100).map(|n| wanted.join(format!("{n}"))).find(|path| !taken(path));
            let Some(next) = next else {
                bail!("{} is full of backups; name another folder with --backup", wanted.display())
            };
            folder = next;
        }
        files::private_folder(&folder)?;
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Ok(Self { folder, commands: Vec::new() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The command that puts the rules back; `None` if there were none.
    pub(super) fn restore_command(&self) -> Option<String> {
        (!self.commands.is_empty()).then(|| self.commands.join(" && "))
    }

    /// Writes every rule set that has rules or chains. The command puts back only the tables that are to be changed:
    /// the others may have moved on by the time it is used.
    pub(super) fn rules(&mut self, facts: &Facts, plan: &Plan, netns: Option<&Netns>) -> anyhow::Result<()> {
        let folder = match netns {
            Some(netns) => self.folder.join(&netns.label),
            None => self.folder.clone(),
        };
        for ruleset in facts.rulesets.iter().filter(|ruleset| has_rules(ruleset)) {
            files::private_folder(&folder)?;
            let path = folder.join(format!("{}-{}.rules", ruleset.backend.as_str(), ruleset.family.as_str()));
            write(&path, &ruleset.text)
                .with_context(|| format!("cannot write the backup {}", path.display()))?;
            let program = program_name(ruleset.backend, ruleset.family, "restore");
            let enter =
                netns.map(|netns| format!("nsenter --net={} ", netns.path.display())).unwrap_or_default();
            let same = |plan: &&RulesetPlan| plan.backend == ruleset.backend && plan.family == ruleset.family;
            let changed = plan.rulesets.iter().filter(same).flat_map(|ruleset| &ruleset.tables);
            let shown = path.display();
            let restore = |table: &TablePlan| format!("{enter}{program} -c -T {} < '{shown}'", table.name);
            self.commands.extend(changed.filter(|table| table.changes()).map(restore));
        }
        Ok(())
    }

    /// Copies the files that are to be removed or changed below `files/`.
    pub(super) fn files(&self, roots: &Roots, plan: &Plan) -> anyhow::Result<()> {
        let mut paths: Vec<&str> =
            plan.files.iter().filter(|item| item.remove).map(|item| item.name.as_str()).collect();
        if plan.name_servers.iter().any(|(_, item)| item.remove) {
            paths.push(RESOLVER);
        }
        for path in paths {
            files::copy(&roots.at(path), &self.folder.join("files").join(path.trim_start_matches('/')))?;
        }
        Ok(())
    }
}

fn has_rules(ruleset: &Ruleset) -> bool {
    ruleset
        .dump
        .tables
        .iter()
        .any(|table| !table.rules.is_empty() || table.chains.iter().any(|chain| chain.policy == "-"))
}

/// Writes a new file and waits until the disk has it: what follows cannot be undone without it.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
