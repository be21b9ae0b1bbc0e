//! The command line: what can be asked for, and its help texts.
//!
//! Only the grammar is here. Values with a syntax of their own parse in `client::values`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::values::{self, Cpus, Memory, Moment, Pair, Ports, Secret, User, Volume};

/// A Kubernetes container runtime, and a client for any CRI endpoint.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, arg_required_else_help = true, subcommand_required = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What holds for every client command.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The CRI socket: unix:///PATH or a bare path
    #[arg(long, global = true, env = "CORACLE_ENDPOINT", default_value = "unix:///run/coracle/coracle.sock", value_name = "ENDPOINT")]
    pub(crate) endpoint: String,
    /// Tables for people, or the CRI messages in protobuf's JSON form
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

/// The daemon, or one of its client's commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon
    Serve {
        /// The configuration file [default: /etc/coracle/config.toml, where it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands that speak CRI to an endpoint.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// List images
    Images,
    /// Remove images, by any of their names or by id: all their names go
    Rmi {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Start a container, in a pod made for it or in one that is there
    Run(Box<RunArgs>),
    /// List pods
    Pods,
    /// List containers
    Ps {
        /// Those that do not run, too
        #[arg(short, long)]
        all: bool,
    },
    /// Print a container's log file (on its node)
    Logs(LogsArgs),
    /// Run a command in a container and exit with its status
    Exec(ExecArgs),
    /// Take part in a running container's input and output, until one side ends
    Attach(AttachArgs),
    /// Bring connections to ports of this machine to ports of a pod, until interrupted
    PortForward(PortForwardArgs),
    /// Show what containers use
    Stats {
        /// Containers, or pods for all of theirs; none: all that run
        #[arg(value_name = "CONTAINER|POD")]
        subjects: Vec<String>,
    },
    /// Show all that is known of a container, pod or image, as JSON
    Inspect {
        #[arg(value_name = "ID")]
        subject: String,
    },
    /// Stop containers or pods
    Stop(StopArgs),
    /// Remove containers or pods
    Rm(RemoveArgs),
    /// Show the runtime's conditions, handlers and features
    Info,
    /// Show the versions of this client and of the runtime
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// For the registry. Other users of this machine can see it: prefer --creds-file
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with = "credentials_file")]
    pub(crate) creds: Option<Secret>,
    /// A file whose first line is USER:PASSWORD
    #[arg(long = "creds-file", value_name = "FILE")]
    pub(crate) credentials_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The name of pod and container [default: the image's last word and five random digits]
    #[arg(long, value_parser = values::name)]
    pub(crate) name: Option<String>,
    /// The pod's Kubernetes namespace
    #[arg(long, default_value = "default", conflicts_with = "pod", value_parser = values::name)]
    pub(crate) namespace: String,
    /// Share the node's network instead of having one's own
    #[arg(long, conflicts_with = "pod")]
    pub(crate) host_network: bool,
    /// Join this pod instead of making one
    #[arg(long)]
    pub(crate) pod: Option<String>,
    /// The handler to run the pod with; as in a RuntimeClass
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "pod")]
    pub(crate) handler: String,
    /// An environment variable; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<Pair>,
    /// A host path to show in the container; repeatable
    #[arg(long, short, value_name = "HOST:CONTAINER[:ro]")]
    pub(crate) volume: Vec<Volume>,
    /// A user id or name, and a group id
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<User>,
    /// The memory limit, in Kubernetes' notation: 64Mi is 64·1024², 64M is 64,000,000
    #[arg(long, short, value_name = "SIZE")]
    pub(crate) memory: Option<Memory>,
    /// The limit of processor time, in processors: 0.5 or 500m
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<Cpus>,
    /// Give it a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Show its output until it ends, then remove what was made and exit with its status
    #[arg(long)]
    pub(crate) rm: bool,
    /// Fail where the image is missing instead of pulling it
    #[arg(long)]
    pub(crate) no_pull: bool,
    /// Where the log file goes [default: /var/log/pods/NAMESPACE_POD_UID]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Where the program starts [default: as the image says]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) workdir: Option<String>,
    /// All capabilities and devices, nothing hidden, no seccomp filter
    #[arg(long)]
    pub(crate) privileged: bool,
    /// No writable layer
    #[arg(long)]
    pub(crate) read_only: bool,
    /// A label for pod and container; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,
    /// Replaces the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Replaces the image's command; its entrypoint, where it has one, stays
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on, over rotations, until the container has exited
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last N lines of the file
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Only what was written since: 90s, 5m, 2h, 1d ago, or a time as 2026-11-22T03:00:00Z
    #[arg(long, value_name = "AGE|TIME")]
    pub(crate) since: Option<Moment>,
    /// Begin each line with its time
    #[arg(long, short)]
    pub(crate) timestamps: bool,
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Kill the command after so many seconds, and print what it said at its end only
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["interactive", "tty"])]
    pub(crate) timeout: Option<u32>,
    /// Pass the input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Pass the input on; the container must have been made with one
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// The container was made with a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[arg(value_name = "CONTAINER")]
    pub(crate) container: String,
}

#[derive(Debug, Args)]
pub(crate) struct PortForwardArgs {
    /// The address of this machine to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) address: IpAddr,
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// A port of this machine (0: any that is free) and one of the pod; alone, it is both
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    pub(crate) ports: Vec<Ports>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Seconds between the stop signal and the kill
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) timeout: u32,
    #[arg(required = true, value_name = "ID")]
    pub(crate) subjects: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// What runs, too
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(required = true, value_name = "ID")]
    pub(crate) subjects: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn client(line: &str) -> ClientCommand {
        match parse(line).unwrap().command {
            Command::Client(command) => command,
            Command::Serve { .. } => panic!("{line} is a client's"),
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoint_and_output_may_follow_the_command() {
        let options = parse("coracle pods --endpoint /run/x.sock -o json").unwrap().options;
        assert_eq!((options.endpoint.as_str(), options.output), ("/run/x.sock", Output::Json));
    }

    #[test]
    fn the_words_after_the_image_belong_to_the_container() {
        for line in ["coracle run --rm busybox -- ls -l --rm", "coracle run --rm busybox ls -l --rm"] {
            let ClientCommand::Run(args) = client(line) else { panic!("{line}") };
            assert_eq!((args.image.as_str(), args.command.join(" ").as_str()), ("busybox", "ls -l --rm"));
        }
    }

    #[test]
    fn the_words_after_the_container_are_the_command() {
        for line in ["coracle exec web --timeout 3 -- ls -t", "coracle exec --timeout 3 web ls -t"] {
            let ClientCommand::Exec(args) = client(line) else { panic!("{line}") };
            assert_eq!(
                (args.timeout, args.tty, args.container.as_str(), args.command.join(" ").as_str()),
                (Some(3), false, "web", "ls -t")
            );
        }
        assert!(parse("coracle exec web").is_err());
    }

    #[test]
    fn run_takes_its_options_together() {
        let line = "coracle run --name w --namespace n --host-network --env A=b=c --volume /a:/b:ro --volume /c:/d --user 1:2 \
                    --memory 64M --cpus 0.5 --tty --no-pull --log-dir /l --workdir /w --privileged --read-only --label k=v busybox";
        let ClientCommand::Run(args) = client(line) else { panic!() };
        assert_eq!((args.env.len(), args.volume.len(), args.label.len()), (1, 2, 1));
        assert!(args.host_network && args.tty && args.no_pull && args.privileged && args.read_only && !args.rm);
    }

    #[test]
    fn what_contradicts_itself_is_a_usage_error() {
        for line in [
            "coracle",
            "coracle run",
            "coracle run --pod p --host-network busybox",
            "coracle run --memory lots busybox",
            "coracle pull --creds a:b --creds-file c busybox",
            "coracle exec --timeout 1 -it web sh",
            "coracle attach",
            "coracle port-forward web",
            "coracle port-forward web 80:0",
            "coracle stop",
            "coracle rmi",
            "coracle images --output xml",
        ] {
            assert!(parse(line).is_err_and(|error| error.exit_code() == 2), "{line}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let cli = parse("coracle pull --creds ann:hunter2 busybox").unwrap();
        assert!(!format!("{cli:?}").contains("hunter2"));
    }
}
