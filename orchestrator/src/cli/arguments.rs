//! What can be typed, and what it means before any cluster was asked.

use std::{path::PathBuf, time::Duration};

use super::probe::Address;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Exit codes, shown by `--help` because scripts live on them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done: the pod runs on the target (or what was asked for was shown)
  1  error: the command could not do what it was asked, or the answer could not be read
  2  refused: there were reasons not to; nothing was frozen, nothing was changed
  3  undone: rolled back (the pod runs on the source), rescued (restored elsewhere) or abandoned (the pod was deleted)
  4  in doubt: the wait ended before the migration did; it goes on without this command

`migrate abort` exits with 0 when the migration was undone, and with 1 when it was too late.";

/// What `resolve` means, before anybody types it.
const RESOLVE: &str = "\
Say that a node of a migration in doubt is dead, so that it goes on without that node.

Longshore never takes silence for death: a node that is cut off still holds its pod, and whoever went on without it might run \
the pod twice. Only a person can know that a node is powered off, destroyed or otherwise fenced.

With --source-is-dead the pod is restored on the target, or on another node, from its stored checkpoint; where there is none \
yet, it ends with its node, as it would without Longshore. With --target-is-dead the migration is undone before its commit, and \
after it the pod is restored on the source node.

A node that comes back all the same stays fenced: what it holds is destroyed once its worker is back.";

/// Live migration of Kubernetes pods, memory and all.
#[derive(Debug, Parser)]
#[command(name = "migrate", version, after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
pub struct Arguments {
    /// Which cluster, as which user.
    #[command(flatten)]
    pub access: Access,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as which user: kubectl's flags with kubectl's meaning.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// The kubeconfig file [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// The namespace [default: the context's]
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Cluster"
    )]
    pub namespace: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move a pod to another node, with its memory
    Pod(PodArguments),
    /// List migrations, or one of them
    Get(GetArguments),
    /// Everything about one migration: why, how long, how many bytes, and where the time went
    Describe {
        /// The migration
        name: String,
    },
    /// Follow one migration until it ends
    Watch {
        /// The migration
        name: String,
        /// Stop watching after this long (the migration goes on)
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        timeout: Option<Duration>,
    },
    /// Undo one migration; refused once the pod may run on the target
    Abort {
        /// The migration
        name: String,
    },
    /// Say that a node of a migration in doubt is dead, so that it goes on without that node
    #[command(long_about = RESOLVE)]
    Resolve(ResolveArguments),
    /// What each node can do, and why not
    Nodes {
        /// Print the objects instead of a table
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// What lies in the store, whether it is whole, and clearing it up
    #[command(subcommand)]
    Store(StoreCommand),
    /// The version of this command
    Version,
    /// Print the completions of a shell, to be sourced
    Completions {
        /// bash, zsh, fish, elvish, powershell
        shell: Shell,
    },
    /// Print the man page, or write one for each command into a folder
    Man {
        /// The folder
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    /// Print the custom resource definitions as YAML
    #[command(hide = true)]
    Crds,
}

/// Move a pod.
#[derive(Args, Debug)]
pub struct PodArguments {
    /// The pod: NAME, pod/NAME or NAMESPACE/NAME
    pub pod: PodName,
    /// The node to move it to
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// Only show the plan, the prediction and every reason not to; nothing is changed
    #[arg(long)]
    pub dry_run: bool,
    /// Undo it when it isn't committed after this long
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Wait for the end; --wait=false returns once it was asked for
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub wait: bool,
    /// The longest acceptable freeze, as 2s or 800ms [default: what the pod's liveness probes bear]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub max_freeze: Option<Duration>,
    /// Rounds before the freeze, at most 5: the running pod's memory is sent ahead, each time with a short stall
    /// [default: as many as pay; 0: none]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=5), value_name = "N")]
    pub rounds: Option<u32>,
    /// Leave the checkpoint in the store for so long, as 12h: the rounds of the pod's next migration are differences to it
    /// [default: it is removed at the end]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", conflicts_with = "dry_run")]
    pub keep_checkpoint: Option<Duration>,
    /// Ask this address all the while, and say how long nobody answered (a Service's, as http://10.96.12.7:8080/)
    #[arg(long, value_name = "URL", conflicts_with = "dry_run")]
    pub probe: Option<Address>,
    /// Print the migration object at the end instead of a summary
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// How much each migration has in the store
    Stats {
        /// Print the answer's object instead of a table
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// Prove every checkpoint: each seal, and each object by its hash; exits with 1 when something is wrong
    Check {
        /// Print the answer's object instead of a table
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// Remove what ended migrations left; never what one under way needs, or the last copy of a pod
    Gc {
        /// Also what Longshore does not know (forgotten migrations): only where no other cluster uses the bucket
        #[arg(long)]
        unknown: bool,
        /// Print the answer's object instead of a table
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<Format>,
    },
}

/// Say that a node is dead.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct ResolveArguments {
    /// The migration
    pub name: String,
    /// The node the pod came from is powered off, destroyed or fenced
    #[arg(long, group = "which")]
    pub source_is_dead: bool,
    /// The node the pod was to go to is powered off, destroyed or fenced
    #[arg(long, group = "which")]
    pub target_is_dead: bool,
    /// Don't ask for the node's name
    #[arg(short, long)]
    pub yes: bool,
}

/// List migrations.
#[derive(Args, Debug)]
pub struct GetArguments {
    /// The migration [default: all of the namespace]
    pub name: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub all_namespaces: bool,
    /// json, yaml and name print objects, wide is a table with more columns
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ListFormat>,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The object as JSON.
    Json,
    /// The object as YAML.
    Yaml,
    /// Kind and name, one a line.
    Name,
}

/// How lists are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// Kind and name, one a line.
    Name,
    /// A table with more columns.
    Wide,
}

/// A pod as people write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Only when it was written before the slash.
    pub namespace: Option<String>,
    /// The pod's name.
    pub name: String,
}

/// What kubectl calls pods. A namespace of such a name is given with `-n`.
const POD_RESOURCE_NAMES: [&str; 3] = ["pod", "pods", "po"];

impl std::str::FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = "write NAME, pod/NAME or NAMESPACE/NAME";
        let (before, name) = match text.split_once('/') {
            Some((before, name)) => (Some(before), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || before == Some("") {
            return Err(wanted.to_owned());
        }
        Ok(Self {
            namespace: before
                .filter(|before| !POD_RESOURCE_NAMES.contains(before))
                .map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn pod(text: &str) -> Option<(Option<String>, String)> {
        let PodName { namespace, name } = text.parse().ok()?;
        Some((namespace, name))
    }

    #[test]
    fn a_pod_is_named_in_three_ways() {
        assert_eq!(pod("kuard"), Some((None, "kuard".to_owned())));
        assert_eq!(pod("pod/kuard"), Some((None, "kuard".to_owned())));
        assert_eq!(
            pod("shop/kuard"),
            Some((Some("shop".to_owned()), "kuard".to_owned()))
        );
        assert_eq!(pod("shop/pod/kuard"), None);
        assert_eq!(pod("/kuard"), None);
        assert_eq!(pod("shop/"), None);
    }

    #[test]
    fn the_arguments_contradict_themselves_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn waiting_is_the_default_and_can_be_switched_off() {
        for (typed, waits) in [
            (None, true),
            (Some("--wait"), true),
            (Some("--wait=false"), false),
        ] {
            let line = ["migrate", "pod", "kuard", "--to", "node2"]
                .into_iter()
                .chain(typed);
            let Command::Pod(pod) = Arguments::try_parse_from(line).unwrap().command else {
                panic!("not the pod command");
            };
            assert_eq!(pod.wait, waits, "{typed:?}");
        }
    }

    #[test]
    fn help_documents_every_exit_code() {
        let help = Arguments::command().render_long_help().to_string();
        for code in [
            "0  done",
            "1  error",
            "2  refused",
            "3  undone",
            "4  in doubt",
        ] {
            assert!(help.contains(code), "{code}");
        }
    }
}
