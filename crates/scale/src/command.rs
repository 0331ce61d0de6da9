//! `pre scale` and `post scale`: from inside a pod, or with a kubeconfig from anywhere.

use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use common::config;
use tokio::time::Instant;

use crate::MAX_REPLICAS;
use crate::cluster::{Cluster, Deployment, Replicas};
use crate::error::ScaleError;

/// How often the cluster is asked while it is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What a service's program can do instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show or set how many replicas of pre, infer and post run in the Kubernetes cluster.
    ///
    /// In a pod, with its ServiceAccount's token; elsewhere, with a kubeconfig. Exit codes: 0 all well, 1 the cluster did
    /// not take it or was not ready in time, 2 the command makes no sense.
    Scale(ScaleArgs),
}

impl Command {
    /// Does it.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        match self {
            Self::Scale(args) => run(args),
        }
    }
}

/// Arguments of `pre scale` and `post scale`.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// How many replicas there should be: pre=3 infer=3 post=2. Without any, the present state is shown.
    #[arg(value_name = "DEPLOYMENT=N")]
    pub targets: Vec<Target>,

    /// Wait until all of them are ready, and fail if that takes too long.
    #[arg(long)]
    pub wait: bool,

    /// How long to wait at most.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = config::duration)]
    pub timeout: Duration,

    /// The namespace. Default: the pod's own; outside of a pod that of the kubeconfig, or boxreel.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,

    /// The most replicas that a Deployment may be given.
    #[arg(long, env = "BOXREEL_MAX_REPLICAS", default_value_t = MAX_REPLICAS, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_replicas: u32,
}

/// What a Deployment should come to: `pre=3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub deployment: Deployment,
    /// How many replicas.
    pub replicas: u32,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) =
            text.split_once('=').ok_or("write it as DEPLOYMENT=N, such as pre=3".to_owned())?;
        let deployment = name.parse::<Deployment>().map_err(|error| error.to_string())?;
        let replicas = number.parse().map_err(|_| {
            format!("{number:?} is no number of replicas: write a whole number from 0 up, such as {name}=3")
        })?;
        Ok(Self { deployment, replicas })
    }
}

fn run(args: &ScaleArgs) -> ExitCode {
    if let Err(why) = check(&args.targets, args.max_replicas) {
        eprintln!("error: {why}");
        return ExitCode::from(2);
    }
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(find_and_execute(args)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the lines has heard enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the targets make sense together.
///
/// # Errors
/// A sentence, when they do not.
pub fn check(targets: &[Target], max: u32) -> Result<(), String> {
    for (at, target) in targets.iter().enumerate() {
        let Target { deployment, replicas } = *target;
        if replicas > max {
            return Err(format!(
                "{deployment}={replicas} is more than the {max} replicas that are allowed: ask for fewer, or raise \
                 --max-replicas (BOXREEL_MAX_REPLICAS)."
            ));
        }
        if targets.iter().take(at).any(|earlier| earlier.deployment == deployment) {
            return Err(format!("{deployment} is named twice: say once how many replicas it should have."));
        }
    }
    Ok(())
}

async fn find_and_execute(args: &ScaleArgs) -> Result<()> {
    let cluster = Cluster::find(args.namespace.as_deref()).await?;
    eprintln!("{cluster}");
    execute(&cluster, args, &mut io::stdout().lock()).await
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Scales `cluster` as `args` say and writes what becomes of it.
///
/// # Errors
/// When the cluster does not take it, or has not settled in time; the sentence says what to do.
pub async fn execute(cluster: &Cluster, args: &ScaleArgs, out: &mut impl Write) -> Result<()> {
    let named: Vec<Deployment> = args.targets.iter().map(|target| target.deployment).collect();
    let shown = if named.is_empty() { &Deployment::ALL[..] } else { &named };
    // Looked at before anything is changed: a Deployment that is not there stops all.
    let mut states = look(cluster, shown).await?;
    for target in &args.targets {
        let Target { deployment, replicas } = *target;
        cluster.scale(deployment, replicas).await?;
        let before =
            states.iter().find(|state| state.deployment == deployment).map_or(0, |state| state.desired);
        writeln!(out, "{deployment}: {before} -> {replicas}")?;
    }
    if !args.targets.is_empty() {
        states = look(cluster, shown).await?;
    }
    if args.wait {
        states = settle(cluster, states, args.timeout, out).await?;
    }
    write_header(out)?;
    states.iter().try_for_each(|state| write_state(out, state))?;
    Ok(())
}

async fn look(cluster: &Cluster, deployments: &[Deployment]) -> Result<Vec<Replicas>, ScaleError> {
    let mut states = Vec::with_capacity(deployments.len());
    for &deployment in deployments {
        states.push(cluster.replicas(deployment).await?);
    }
    Ok(states)
}

/// Waits until all of `states` have settled, and writes a line for everything that changes.
async fn settle(
    cluster: &Cluster,
    mut states: Vec<Replicas>,
    patience: Duration,
    out: &mut impl Write,
) -> Result<Vec<Replicas>> {
    let started = Instant::now();
    write_header(out)?;
    states.iter().try_for_each(|state| write_state(out, state))?;
    let mut silence = None;
    loop {
        if silence.is_none() && states.iter().all(|state| state.settled) {
            writeln!(out, "Settled after {} s.", started.elapsed().as_secs())?;
            return Ok(states);
        }
        let left = patience.saturating_sub(started.elapsed());
        if left.is_zero() {
            bail!("{}", not_settled(cluster, &states, patience, silence.as_ref()));
        }
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        let deployments: Vec<Deployment> = states.iter().map(|state| state.deployment).collect();
        let now = match look(cluster, &deployments).await {
            Ok(now) => now,
            // The API server may be away for a moment, the more so where it is one of several.
            Err(away @ ScaleError::Unreachable { .. }) => {
                silence = Some(away);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        silence = None;
        for (before, state) in states.iter().zip(&now) {
            if columns(before) != columns(state) {
                write_state(out, state)?;
            }
        }
        states = now;
    }
}

/// The sentence for those who waited in vain.
fn not_settled(
    cluster: &Cluster,
    states: &[Replicas],
    patience: Duration,
    silence: Option<&ScaleError>,
) -> String {
    if let Some(silence) = silence {
        return format!("The numbers are set, but whether all is ready cannot be told. {silence}");
    }
    let missing: Vec<&Replicas> = states.iter().filter(|state| !state.settled).collect();
    let what: Vec<String> = missing
        .iter()
        .map(|state| {
            let Replicas { deployment, desired, ready, up_to_date, available, .. } = state;
            let counts = format!(
                "{deployment} ({ready} of {desired} ready, {up_to_date} up to date, {available} available"
            );
            match &state.problem {
                Some(problem) => format!("{counts}; the cluster says: {})", problem.trim_end_matches('.')),
                None => format!("{counts})"),
            }
        })
        .collect();
    let first = missing.first().map_or("pre", |state| state.deployment.as_str());
    let namespace = cluster.namespace();
    format!(
        "Not ready after {} s: {}. The numbers are set and the cluster goes on trying; what it waits for is told by: \
         kubectl -n {namespace} describe deployment {first}; kubectl -n {namespace} describe pods",
        patience.as_secs(),
        what.join(", ")
    )
}

/// The columns of `kubectl get deployments`, in its words.
fn columns(state: &Replicas) -> [String; 4] {
    let Replicas { deployment, desired, ready, up_to_date, available, .. } = state;
    [deployment.to_string(), format!("{ready}/{desired}"), up_to_date.to_string(), available.to_string()]
}

fn write_header(out: &mut impl Write) -> io::Result<()> {
    write_row(out, ["NAME", "READY", "UP-TO-DATE", "AVAILABLE"])
}

fn write_state(out: &mut impl Write, state: &Replicas) -> io::Result<()> {
    let columns = columns(state);
    write_row(out, columns.each_ref().map(String::as_str))
}

fn write_row(out: &mut impl Write, [name, ready, up_to_date, available]: [&str; 4]) -> io::Result<()> {
    writeln!(out, "{name:<8}{ready:<8}{up_to_date:<13}{available}")?;
    // Somebody looks on.
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_target_is_one_of_our_deployments_and_a_number() {
        assert_eq!("pre=3".parse(), Ok(Target { deployment: Deployment::Pre, replicas: 3 }));
        assert_eq!("infer=0".parse(), Ok(Target { deployment: Deployment::Infer, replicas: 0 }));
        for (text, word) in [
            ("pre", "pre=3"),
            ("mongo=3", "pre, infer and post"),
            ("pre=", "no number"),
            ("pre=-1", "no number"),
            ("pre=many", "no number"),
            ("pre=99999999999", "no number"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn too_many_replicas_and_contradictions_are_refused_before_anything_is_asked() {
        assert_eq!(check(&targets(&["pre=3", "infer=64", "post=0"]), 64), Ok(()));
        assert!(check(&targets(&["pre=3", "infer=65"]), 64).unwrap_err().contains("BOXREEL_MAX_REPLICAS"));
        assert!(check(&targets(&["pre=3", "pre=3"]), 64).unwrap_err().contains("twice"));
    }
}
