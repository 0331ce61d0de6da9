//! Settings of the service.

use clap::Parser;
use common::config::{ClusterArgs, ServiceArgs};

/// Draws and encodes: works on the render and assemble stages of every job.
#[derive(Debug, Clone, Parser)]
#[command(name = "post", version, about)]
pub struct PostArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<scale::Command>,

    /// What every service has.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Where the services meet.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Where pre is, to report to: http://host:port. Without it pre finds out by itself, a little later.
    #[arg(long, env = "BOXREEL_PRE_URL", value_name = "URL")]
    pub pre_url: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_variable_is_on_the_list() {
        assert_eq!(common::config::unlisted(&PostArgs::command()), Vec::<String>::new());
    }
}
