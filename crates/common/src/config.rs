//! Settings: each is an option of a program and an environment variable with the prefix `BOXREEL_`.
//!
//! A misspelt variable would be silently without effect, so an unknown name with the prefix ends a program
//! at its start ([`check_environment`]).

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// The variables that some program of Boxreel takes. One list for all of them: services share their
/// environment (a ConfigMap), and each must let the others' settings pass.
pub const VARIABLES: &[&str] = &[
    "BOXREEL_ADMIN_TOKEN",
    "BOXREEL_ADMIN_TOKEN_FILE",
    "BOXREEL_ALLOW_PRIVATE_CALLBACKS",
    "BOXREEL_API_TOKEN",
    "BOXREEL_API_TOKEN_FILE",
    "BOXREEL_BATCH",
    "BOXREEL_CALLBACK_SECRET",
    "BOXREEL_CALLBACK_SECRET_FILE",
    "BOXREEL_DATA_DIR",
    "BOXREEL_DEVICE",
    "BOXREEL_DISK_RESERVE",
    "BOXREEL_INFER_URL",
    "BOXREEL_INSECURE_NO_AUTH",
    "BOXREEL_LEASE_SECONDS",
    "BOXREEL_LISTEN",
    "BOXREEL_LOG",
    "BOXREEL_LOG_FORMAT",
    "BOXREEL_MAX_DURATION",
    "BOXREEL_MAX_FRAMES",
    "BOXREEL_MAX_PIXELS",
    "BOXREEL_MAX_REPLICAS",
    "BOXREEL_MAX_UPLOAD",
    "BOXREEL_MAX_UPLOADS",
    "BOXREEL_MODEL",
    "BOXREEL_MONGO_DATABASE",
    "BOXREEL_MONGO_URI",
    "BOXREEL_MONGO_URI_FILE",
    "BOXREEL_PACK_BUDGET",
    "BOXREEL_PRECISION",
    "BOXREEL_PRE_URL",
    "BOXREEL_RETENTION",
    "BOXREEL_SHUTDOWN_SECONDS",
    "BOXREEL_SLOTS",
    "BOXREEL_STALL_SECONDS",
    "BOXREEL_THREADS",
    "BOXREEL_WORKER_NAME",
    "BOXREEL_WORKER_TOKEN",
    "BOXREEL_WORKER_TOKEN_FILE",
];

const PREFIX: &str = "BOXREEL_";

/// A setting that cannot be used; the text says which, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Refuses variables that look like Boxreel's and are not.
///
/// # Errors
/// Names the first one, and what was probably meant.
pub fn check_environment<I: IntoIterator<Item = String>>(names: I) -> Result<(), ConfigError> {
    let unknown = names.into_iter().find(|name| {
        name.starts_with(PREFIX)
            && !VARIABLES.contains(&name.as_str())
            && !is_service_link(name)
            && !name.starts_with("BOXREEL_TEST_")
    });
    let Some(unknown) = unknown else { return Ok(()) };
    let meant = VARIABLES.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &unknown));
    let hint = match meant {
        Some(known) if strsim::damerau_levenshtein(known, &unknown) <= 4 => {
            format!("did you mean {known}?")
        }
        _ => "remove it, or see --help for the variables there are.".to_owned(),
    };
    Err(ConfigError(format!("The environment variable {unknown} is none of Boxreel's: {hint}")))
}

/// The variables of a program's settings that are not on the list of [`VARIABLES`], which a test holds to be none.
#[must_use]
pub fn unlisted(command: &clap::Command) -> Vec<String> {
    command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned))
        .filter(|name| !VARIABLES.contains(&name.as_str()))
        .collect()
}

/// The names of this process's environment variables.
pub fn environment_names() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

/// Kubernetes tells every pod of the namespace's Services in variables named after them, such as
/// `BOXREEL_PRE_SERVICE_HOST` and `BOXREEL_PRE_PORT_80_TCP_ADDR`.
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

/// A text that must not be shown: a token, a password, a URI that holds one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// The value of a secret given as such or as a file; `name` is the variable's.
///
/// # Errors
/// When both are given, or the file cannot be read or is empty.
pub fn secret(
    name: &str,
    value: Option<&Secret>,
    file: Option<&PathBuf>,
) -> Result<Option<Secret>, ConfigError> {
    match (value, file) {
        (Some(_), Some(_)) => Err(ConfigError(format!("Give {name} or {name}_FILE, not both."))),
        (Some(value), None) if value.0.trim().is_empty() => {
            Err(ConfigError(format!("{name} is empty: give it a value, or remove it.")))
        }
        (Some(value), None) => Ok(Some(value.clone())),
        (None, Some(file)) => {
            let text = fs::read_to_string(file).map_err(|error| {
                ConfigError(format!("{name}_FILE: {} cannot be read: {error}.", file.display()))
            })?;
            match text.trim() {
                "" => Err(ConfigError(format!("{name}_FILE: {} is empty.", file.display()))),
                text => Ok(Some(Secret(text.to_owned()))),
            }
        }
        (None, None) => Ok(None),
    }
}

/// Reads a length of time: `90s`, `15m`, `12h`, `30d`.
///
/// # Errors
/// A sentence, when the text is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let refusal = || format!("{text:?} is no length of time: write 90s, 15m, 12h or 30d");
    let span: jiff::Span = text.parse().map_err(|_| refusal())?;
    let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| refusal())?;
    Duration::try_from(length).map_err(|_| refusal())
}

/// Reads a number of bytes: `500MB`, `4GiB`, `1048576`.
///
/// # Errors
/// A sentence, when the text is none.
pub fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| format!("{text:?} is no number of bytes: write 500MB, 4GiB or 1048576"))
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Settings of logs.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or directives such as info,common=debug.
    #[arg(long, env = "BOXREEL_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// How to write log lines.
    #[arg(long, env = "BOXREEL_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Where the services of a cluster meet.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// The shared volume.
    #[arg(long, env = "BOXREEL_DATA_DIR", default_value = "/mnt", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// The database: mongodb://[user:password@]host[:port][/?options].
    #[arg(long, env = "BOXREEL_MONGO_URI", hide_env_values = true, value_name = "URI")]
    pub mongo_uri: Option<Secret>,

    /// A file that holds the database's URI.
    #[arg(long, env = "BOXREEL_MONGO_URI_FILE", value_name = "PATH")]
    pub mongo_uri_file: Option<PathBuf>,

    /// The name of the database.
    #[arg(long, env = "BOXREEL_MONGO_DATABASE", default_value = "boxreel", value_name = "NAME")]
    pub mongo_database: String,
}

impl ClusterArgs {
    /// The database's URI.
    ///
    /// # Errors
    /// When there is none.
    pub fn mongo(&self) -> Result<Secret, ConfigError> {
        secret("BOXREEL_MONGO_URI", self.mongo_uri.as_ref(), self.mongo_uri_file.as_ref())?.ok_or_else(|| {
            ConfigError(
                "No database is named: set BOXREEL_MONGO_URI, such as mongodb://localhost:27017.".to_owned(),
            )
        })
    }
}

/// Settings that every service has.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Address and port to listen on. Without tokens only loopback addresses are allowed.
    #[arg(long, env = "BOXREEL_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// What users and programs must send as a bearer token.
    #[arg(long, env = "BOXREEL_API_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub api_token: Option<Secret>,

    /// A file that holds the API token.
    #[arg(long, env = "BOXREEL_API_TOKEN_FILE", value_name = "PATH")]
    pub api_token_file: Option<PathBuf>,

    /// What workers must send to pre as a bearer token.
    #[arg(long, env = "BOXREEL_WORKER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub worker_token: Option<Secret>,

    /// A file that holds the workers' token.
    #[arg(long, env = "BOXREEL_WORKER_TOKEN_FILE", value_name = "PATH")]
    pub worker_token_file: Option<PathBuf>,

    /// Listen on any address although there are no tokens: whoever reaches the port may do everything.
    #[arg(long, env = "BOXREEL_INSECURE_NO_AUTH")]
    pub insecure_no_auth: bool,

    /// How long a claim on work lasts unless renewed. A killed worker's work waits this long.
    #[arg(long, env = "BOXREEL_LEASE_SECONDS", default_value_t = 30, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease_seconds: u64,

    /// Work without any progress for this long counts as hung and is tried again.
    #[arg(long, env = "BOXREEL_STALL_SECONDS", default_value_t = 60, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub stall_seconds: u64,

    /// Pieces of work in hand at once. Default: what suits the service and the machine.
    #[arg(long, env = "BOXREEL_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: Option<u32>,

    /// The name this worker has in leases and lists. Default: host name and process id.
    #[arg(long, env = "BOXREEL_WORKER_NAME", value_name = "NAME")]
    pub worker_name: Option<String>,

    /// After SIGTERM, how long open requests and work in hand may take to end.
    #[arg(long, env = "BOXREEL_SHUTDOWN_SECONDS", default_value_t = 20, value_name = "N")]
    pub shutdown_seconds: u64,

    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
}

impl ServiceArgs {
    /// The API token.
    ///
    /// # Errors
    /// See [`secret`].
    pub fn api_token(&self) -> Result<Option<Secret>, ConfigError> {
        secret("BOXREEL_API_TOKEN", self.api_token.as_ref(), self.api_token_file.as_ref())
    }

    /// The workers' token.
    ///
    /// # Errors
    /// See [`secret`].
    pub fn worker_token(&self) -> Result<Option<Secret>, ConfigError> {
        secret("BOXREEL_WORKER_TOKEN", self.worker_token.as_ref(), self.worker_token_file.as_ref())
    }

    /// Where to listen: `port` on loopback unless told.
    ///
    /// # Errors
    /// When others could reach the address and `token`, which guards it, is missing.
    pub fn listen(&self, port: u16, guarded: bool) -> Result<SocketAddr, ConfigError> {
        let address = self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)));
        if guarded || self.insecure_no_auth || address.ip().is_loopback() {
            return Ok(address);
        }
        Err(ConfigError(format!(
            "{address} can be reached by others and no token guards it: set BOXREEL_API_TOKEN and \
             BOXREEL_WORKER_TOKEN, listen on 127.0.0.1, or say --insecure-no-auth."
        )))
    }

    /// This worker's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.worker_name.clone().unwrap_or_else(|| {
            let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = host.trim();
            format!("{}-{}", if host.is_empty() { "worker" } else { host }, std::process::id())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str]) -> Result<(), ConfigError> {
        check_environment(names.iter().map(|&name| name.to_owned()))
    }

    #[test]
    fn a_misspelt_variable_is_named_with_what_was_meant() {
        assert_eq!(check(&["PATH", "BOXREEL_LISTEN", "BOXREEL_API_TOKEN_FILE"]), Ok(()));
        let error = check(&["BOXREEL_LEASE_SECOND"]).unwrap_err().to_string();
        assert!(
            error.contains("BOXREEL_LEASE_SECOND ") && error.contains("mean BOXREEL_LEASE_SECONDS?"),
            "{error}"
        );
        let error = check(&["BOXREEL_COLOUR_OF_THE_DOOR"]).unwrap_err().to_string();
        assert!(error.contains("--help"), "{error}");
    }

    #[test]
    fn what_kubernetes_says_of_services_is_let_pass() {
        assert_eq!(
            check(&["BOXREEL_PRE_SERVICE_HOST", "BOXREEL_PRE_SERVICE_PORT_HTTP", "BOXREEL_PRE_PORT"]),
            Ok(())
        );
        assert_eq!(check(&["BOXREEL_PRE_PORT_8080_TCP_ADDR"]), Ok(()));
    }

    #[test]
    fn the_list_is_sorted_and_has_no_doubles() {
        assert!(VARIABLES.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn times_and_sizes_are_read_as_people_write_them() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("soon").unwrap_err().contains("30d"));
        assert!(duration("-3s").is_err());
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("500MB"), Ok(500_000_000));
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert!(bytes("much").unwrap_err().contains("4GiB"));
    }

    #[test]
    fn a_secret_comes_from_one_place_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "s3cret\n").unwrap();
        let value = Secret::from("s3cret".to_owned());
        assert_eq!(secret("X", Some(&value), None), Ok(Some(value.clone())));
        assert_eq!(secret("X", None, Some(&file)), Ok(Some(value.clone())));
        assert_eq!(secret("X", None, None), Ok(None));
        assert!(secret("X", Some(&value), Some(&file)).unwrap_err().to_string().contains("not both"));
        fs::write(&file, "\n").unwrap();
        assert!(secret("X", None, Some(&file)).unwrap_err().to_string().contains("empty"));
        assert!(!format!("{value:?}").contains("s3cret"));
    }
}
