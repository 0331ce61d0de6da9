//! pre's settings.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser};
use common::config::{self, ClusterArgs, ConfigError, Secret, ServiceArgs};
use media::probe::Limits;

/// The port pre listens on unless told.
pub const PORT: u16 = 8080;

/// Boxreel's front: takes uploads, shows results, reads videos. Any number of it may run side by side.
#[derive(Debug, Clone, Parser)]
#[command(name = "pre", version)]
pub struct PreArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<scale::Command>,

    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Where the services meet.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// What only pre has.
    #[command(flatten)]
    pub pre: PreSettings,
}

/// Settings that only pre has.
#[derive(Debug, Clone, Args)]
pub struct PreSettings {
    /// What must be sent as a bearer token to change numbers of replicas.
    #[arg(long, env = "BOXREEL_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub admin_token: Option<Secret>,

    /// A file that holds the admin token.
    #[arg(long, env = "BOXREEL_ADMIN_TOKEN_FILE", value_name = "PATH")]
    pub admin_token_file: Option<PathBuf>,

    /// The most replicas that a Deployment may be given over the interface.
    #[arg(long, env = "BOXREEL_MAX_REPLICAS", default_value_t = scale::MAX_REPLICAS, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_replicas: u32,

    /// Where infer answers, for pictures sent to /v1/detect: http://infer:8081. Without it there is no /v1/detect.
    #[arg(long, env = "BOXREEL_INFER_URL", value_name = "URL")]
    pub infer_url: Option<String>,

    /// How long a job and its files are kept after its end: 12h, 30d, or never to remove none.
    #[arg(long, env = "BOXREEL_RETENTION", default_value = "30d", value_name = "TIME")]
    pub retention: Retention,

    /// The largest upload.
    #[arg(long, env = "BOXREEL_MAX_UPLOAD", default_value = "16GiB", value_name = "SIZE",
          value_parser = config::bytes)]
    pub max_upload: u64,

    /// Uploads taken at once; more are asked to come back.
    #[arg(long, env = "BOXREEL_MAX_UPLOADS", default_value_t = 64, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_uploads: u32,

    /// Most frames a video may have.
    #[arg(long, env = "BOXREEL_MAX_FRAMES", default_value_t = Limits::default().max_frames, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frames: u32,

    /// Most pixels a picture of a video may have.
    #[arg(long, env = "BOXREEL_MAX_PIXELS", default_value_t = Limits::default().max_pixels, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub max_pixels: u64,

    /// Longest a video may be.
    #[arg(long, env = "BOXREEL_MAX_DURATION", default_value = "24h", value_name = "TIME",
          value_parser = config::duration)]
    pub max_duration: Duration,

    /// Space on the volume that uploads must leave free.
    #[arg(long, env = "BOXREEL_DISK_RESERVE", default_value = "2GiB", value_name = "SIZE",
          value_parser = config::bytes)]
    pub disk_reserve: u64,

    /// Decoded frames that may wait on the volume to be detected; decoding pauses beyond.
    #[arg(long, env = "BOXREEL_PACK_BUDGET", default_value = "4GiB", value_name = "SIZE",
          value_parser = config::bytes)]
    pub pack_budget: u64,

    /// What callbacks are signed with (HMAC-SHA256), so that their receiver knows them. Without it they are not
    /// signed.
    #[arg(long, env = "BOXREEL_CALLBACK_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub callback_secret: Option<Secret>,

    /// A file that holds the callback secret.
    #[arg(long, env = "BOXREEL_CALLBACK_SECRET_FILE", value_name = "PATH")]
    pub callback_secret_file: Option<PathBuf>,

    /// Send callbacks to loopback, link-local and private addresses too. Then whoever may create jobs can make
    /// this service send requests into its own network.
    #[arg(long, env = "BOXREEL_ALLOW_PRIVATE_CALLBACKS")]
    pub allow_private_callbacks: bool,
}

impl PreSettings {
    /// What index accepts.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            max_frames: self.max_frames,
            max_pixels: self.max_pixels,
            max_duration: self.max_duration,
            ..Limits::default()
        }
    }

    /// The admin token.
    ///
    /// # Errors
    /// See [`config::secret`].
    pub fn admin_token(&self) -> Result<Option<Secret>, ConfigError> {
        config::secret("BOXREEL_ADMIN_TOKEN", self.admin_token.as_ref(), self.admin_token_file.as_ref())
    }

    /// The secret that callbacks are signed with.
    ///
    /// # Errors
    /// See [`config::secret`].
    pub fn callback_secret(&self) -> Result<Option<Secret>, ConfigError> {
        config::secret(
            "BOXREEL_CALLBACK_SECRET",
            self.callback_secret.as_ref(),
            self.callback_secret_file.as_ref(),
        )
    }
}

/// How long ended jobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// For this long.
    For(Duration),
    /// Until somebody deletes them.
    Forever,
}

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Forever),
            text => config::duration(text).map(Self::For).map_err(|error| format!("{error}, or never")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_variable_is_on_the_list_and_every_setting_is_explained() {
        let command = PreArgs::command();
        command.clone().debug_assert();
        for argument in command.get_arguments() {
            let id = argument.get_id();
            let variable = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert!(config::VARIABLES.contains(&variable), "{id} is {variable:?} in the environment");
            assert!(argument.get_help().is_some(), "{id} is not explained");
        }
    }

    #[test]
    fn the_usual_settings_need_no_word() {
        let args = PreArgs::try_parse_from(["pre"]).unwrap();
        assert_eq!(args.pre.retention, Retention::For(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(args.pre.max_upload, 16 << 30);
        assert_eq!(args.pre.limits(), Limits::default());
    }

    #[test]
    fn retention_is_a_time_or_never() {
        assert_eq!("never".parse(), Ok(Retention::Forever));
        assert_eq!("12h".parse(), Ok(Retention::For(Duration::from_secs(12 * 3600))));
        assert!("now and then".parse::<Retention>().unwrap_err().contains("or never"));
    }
}
