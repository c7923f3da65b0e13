//! From the arguments to the exit code.

use std::{
    ffi::OsStr,
    path::Path,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{CommandFactory, FromArgMatches};

use super::{
    abort,
    arguments::{Arguments, Command, Format, GetArguments, ListFormat},
    ask,
    cluster::Cluster,
    crds,
    failure::Failure,
    follow::{Story, follow},
    output,
    render::{Ink, describe::describe, summary::summary, table},
    resolve, store,
    verdict::{EXIT_DONE, EXIT_ERROR},
};

/// How kubectl finds its plugins: by this name on the PATH.
const PLUGIN: &str = "kubectl-migrate";

/// The whole command.
#[must_use]
pub fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let arguments = match parse(&called) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers; a misspelt line is an error, and clap's own code for it means refused here.
            let asked_for = !error.use_stderr();
            let printed = error.print();
            return ExitCode::from(if asked_for && printed.is_ok() {
                EXIT_DONE
            } else {
                EXIT_ERROR
            });
        }
    };
    match run(&arguments, &called) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            if let Some(remedy) = failure.remedy() {
                eprintln!("  -> {remedy}");
            }
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// The command under the name it was called by.
fn command(called: &OsStr) -> clap::Command {
    let plugin = Path::new(called).file_stem() == Some(OsStr::new(PLUGIN));
    let command = Arguments::command();
    if plugin {
        command.bin_name("kubectl migrate")
    } else {
        command
    }
}

fn parse(called: &OsStr) -> Result<Arguments, clap::Error> {
    Arguments::from_arg_matches(&command(called).try_get_matches()?)
}

fn run(arguments: &Arguments, called: &OsStr) -> Result<ExitCode, Failure> {
    match &arguments.command {
        Command::Version => output::print(concat!("migrate ", env!("CARGO_PKG_VERSION"), "\n"))?,
        Command::Crds => output::print(&crds::yaml()?)?,
        Command::Completions { shell } => {
            let name = Path::new(called)
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), name, &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
        Command::Man { out } => man(out.as_deref())?,
        Command::Pod(_)
        | Command::Get(_)
        | Command::Describe { .. }
        | Command::Watch { .. }
        | Command::Abort { .. }
        | Command::Resolve(_)
        | Command::Store(_)
        | Command::Nodes { .. } => {
            // One thread: the command waits, it doesn't work.
            return tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| Failure::Process {
                    doing: "start",
                    source,
                })?
                .block_on(ask_cluster(arguments));
        }
    }
    Ok(ExitCode::from(EXIT_DONE))
}

async fn ask_cluster(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let cluster = Cluster::connect(&arguments.access).await?;
    match &arguments.command {
        Command::Pod(pod) => {
            return ask::pod(&cluster, arguments.access.namespace.as_deref(), pod).await;
        }
        Command::Get(wanted) => get(&cluster, wanted).await?,
        Command::Describe { name } => {
            output::print(&describe(&cluster.get(name).await?, Ink::of_stdout()))?
        }
        Command::Watch { name, timeout } => {
            let object = cluster.get(name).await?;
            let (object, instead) =
                ask::told(follow(&cluster, object, *timeout, Story::aloud()).await?);
            output::print(&summary(&object))?;
            return Ok(ask::conclude(&object, instead));
        }
        Command::Abort { name } => return abort::abort(&cluster, name).await,
        Command::Resolve(arguments) => return resolve::resolve(&cluster, arguments).await,
        Command::Store(command) => return store::store(&cluster, command).await,
        Command::Nodes { output: format } => {
            let nodes = cluster.nodes().await?;
            match format {
                Some(format) => output::many(&nodes, *format)?,
                None if nodes.is_empty() => {
                    eprintln!("no worker has registered yet: kubectl get pods -n longshore-system")
                }
                None => output::print(&table::nodes(&nodes))?,
            }
        }
        Command::Version | Command::Completions { .. } | Command::Man { .. } | Command::Crds => {}
    }
    Ok(ExitCode::from(EXIT_DONE))
}

async fn get(cluster: &Cluster, wanted: &GetArguments) -> Result<(), Failure> {
    let GetArguments {
        name,
        all_namespaces,
        output: format,
    } = wanted;
    let objects = match name {
        Some(name) => vec![cluster.get(name).await?],
        None => cluster.list(*all_namespaces).await?,
    };
    let format = match format {
        None => None,
        Some(ListFormat::Wide) => None,
        Some(ListFormat::Json) => Some(Format::Json),
        Some(ListFormat::Yaml) => Some(Format::Yaml),
        Some(ListFormat::Name) => Some(Format::Name),
    };
    match (format, objects.as_slice()) {
        (Some(format), [object]) if name.is_some() => output::one(object, format),
        (Some(format), objects) => output::many(objects, format),
        (None, []) => {
            eprintln!("no migrations found");
            Ok(())
        }
        (None, objects) => {
            let columns = table::Columns {
                namespace: *all_namespaces,
                wide: wanted.output == Some(ListFormat::Wide),
            };
            output::print(&table::migrations(objects, columns, now_seconds()))
        }
    }
}

fn man(out: Option<&Path>) -> Result<(), Failure> {
    let Some(folder) = out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Arguments::command())
            .render(&mut page)
            .map_err(|error| Failure::Print {
                format: "man",
                reason: error.to_string(),
            })?;
        return output::print(&String::from_utf8_lossy(&page));
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), folder))
        .map_err(|source| Failure::Man {
            folder: folder.to_owned(),
            source,
        })
}

fn now_seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::verdict::EXIT_REFUSED;

    #[test]
    fn a_misspelt_line_is_an_error_and_not_a_refusal() {
        assert_ne!(EXIT_ERROR, EXIT_REFUSED);
        let error = command(OsStr::new("migrate"))
            .try_get_matches_from(["migrate", "pdo"])
            .unwrap_err();
        assert!(error.use_stderr());
    }

    #[test]
    fn called_by_kubectl_it_shows_kubectls_name() {
        let mut plugin = command(OsStr::new("/usr/local/bin/kubectl-migrate"));
        assert!(
            plugin
                .render_usage()
                .to_string()
                .contains("kubectl migrate")
        );
    }
}
