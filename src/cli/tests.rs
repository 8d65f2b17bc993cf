use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_its_variable() {
    let mut command = Cli::command();
    command.build();
    let mut seen = 0;
    for sub in command.get_subcommands() {
        for arg in sub.get_opts().filter(|arg| arg.get_long() != Some("help")) {
            let id = arg.get_id().as_str();
            let variable = arg.get_env().unwrap_or_else(|| panic!("{} {id} has no variable", sub.get_name()));
            assert_eq!(variable.to_str(), Some(flags::variable(id).as_str()), "{} {id}", sub.get_name());
            assert_eq!(arg.get_long(), Some(id.replace('_', "-").as_str()));
            seen += 1;
        }
    }
    assert!(seen > flags::KEYS.len(), "{seen}");
}

#[test]
fn every_key_in_the_table_is_a_flag_of_run() {
    let mut command = Cli::command();
    command.build();
    let run = command.find_subcommand("run").unwrap();
    for (id, _) in flags::KEYS {
        assert!(run.get_arguments().any(|arg| arg.get_id() == id), "{id}");
    }
}

#[test]
fn a_usage_error_below_context_keeps_its_code() {
    let error = anyhow::Error::new(UsageError::new("bad")).context("while starting");
    assert_eq!(finish(Err(error)), Exit::Usage);
    assert_eq!(finish(Err(anyhow::anyhow!("broken"))), Exit::Failed);
    let closed = out::StdoutError(io::ErrorKind::BrokenPipe.into());
    assert_eq!(finish(Err(closed.into())), Exit::Done);
    // A pipe that broke elsewhere is a failure like any other.
    assert_eq!(finish(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())), Exit::Failed);
}
