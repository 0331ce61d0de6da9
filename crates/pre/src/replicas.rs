//! How many replicas work, where they can be changed: pre's side of `scale`.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use common::http_error::HttpError;
use common::segment::Stage;
use scale::{Cluster, Deployment, Replicas, ScaleError};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How long an answer of the cluster holds: any number of pages may look at once.
const HOLDS: Duration = Duration::from_secs(1);
/// When to ask again a cluster that did not answer.
const LATER: Duration = Duration::from_secs(5);

/// The way to the replicas. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Scaling(Place);

#[derive(Debug, Clone)]
enum Place {
    OneProcess,
    NoCluster,
    Cluster(Arc<Around>),
}

#[derive(Debug)]
struct Around {
    cluster: Cluster,
    seen: Mutex<Option<(Instant, Outlook)>>,
}

/// What is known of the replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// `cluster`, `no_cluster` or `one_process`.
    pub place: &'static str,
    /// Every Deployment that the cluster told of.
    pub replicas: Vec<Replicas>,
    /// Why there are none, or not all; for people.
    pub message: Option<&'static str>,
}

impl Scaling {
    /// All the house is one process.
    #[must_use]
    pub fn one_process() -> Self {
        Self(Place::OneProcess)
    }

    /// The services are processes that somebody starts and stops.
    #[must_use]
    pub fn no_cluster() -> Self {
        Self(Place::NoCluster)
    }

    /// By the cluster around this pod, if there is one.
    #[must_use]
    pub fn around() -> Self {
        match Cluster::around(None) {
            Ok(cluster) => {
                info!("replicas are those of {cluster}");
                Self::by(cluster)
            }
            Err(why) => {
                info!("replicas cannot be changed from here: {why}");
                Self::no_cluster()
            }
        }
    }

    /// By `cluster`.
    #[must_use]
    pub fn by(cluster: Cluster) -> Self {
        Self(Place::Cluster(Arc::new(Around { cluster, seen: Mutex::default() })))
    }

    /// What is known of the replicas.
    pub async fn look(&self) -> Outlook {
        let Around { cluster, seen } = match &self.0 {
            Place::Cluster(around) => around.as_ref(),
            Place::OneProcess => return nowhere("one_process", ONE_PROCESS),
            Place::NoCluster => return nowhere("no_cluster", NO_CLUSTER),
        };
        let mut seen = seen.lock().await;
        if let Some((at, outlook)) = &*seen
            && at.elapsed() < HOLDS
        {
            return outlook.clone();
        }
        let [pre, infer, post] = Deployment::ALL.map(|deployment| cluster.replicas(deployment));
        let (pre, infer, post) = tokio::join!(pre, infer, post);
        let mut outlook = Outlook { place: "cluster", replicas: vec![], message: None };
        for found in [pre, infer, post] {
            match found {
                Ok(replicas) => outlook.replicas.push(replicas),
                Err(error) => {
                    // Logged when it begins, not every second while it lasts.
                    let sentence = sentence(&error);
                    let before = seen.as_ref().and_then(|(_, outlook)| outlook.message);
                    if outlook.message.is_none() && before != Some(sentence) {
                        warn!("the cluster does not tell of all replicas: {error}");
                    }
                    outlook.message.get_or_insert(sentence);
                }
            }
        }
        *seen = Some((Instant::now(), outlook.clone()));
        outlook
    }

    /// Has the cluster run `replicas` replicas of a Deployment; what it says of them then.
    ///
    /// # Errors
    /// 503 where there is no cluster, or none that answers; 403, 404 and 409 as the cluster has it.
    pub async fn set(&self, deployment: Deployment, replicas: u32) -> Result<Replicas, HttpError> {
        let Around { cluster, seen } = match &self.0 {
            Place::Cluster(around) => around.as_ref(),
            Place::OneProcess => return Err(impossible(ONE_PROCESS)),
            Place::NoCluster => return Err(impossible(NO_CLUSTER)),
        };
        let done = async {
            cluster.scale(deployment, replicas).await?;
            cluster.replicas(deployment).await
        };
        let found = done.await.map_err(|error| refusal(&error));
        *seen.lock().await = None;
        let found = found?;
        info!("{deployment} is to have {replicas} replicas");
        Ok(found)
    }
}

/// Whose replicas work on a stage.
#[must_use]
pub fn deployment(stage: Stage) -> Deployment {
    match stage {
        Stage::Index | Stage::Decode => Deployment::Pre,
        Stage::Detect => Deployment::Infer,
        Stage::Render | Stage::Assemble => Deployment::Post,
    }
}

/// The least replicas that make sense: without pre there would be nobody to ask for more.
#[must_use]
pub fn least(deployment: Deployment) -> u32 {
    u32::from(deployment == Deployment::Pre)
}

const ONE_PROCESS: &str = "This is one process that does all the work (boxreel serve), so there are no replicas to change. \
                           To spread the work over machines, run pre, infer and post instead.";
const NO_CLUSTER: &str = "This pre does not run in a Kubernetes cluster, so it cannot change numbers of replicas: start or \
                          stop further processes of pre, infer and post yourself.";
const FORBIDDEN: &str = "The cluster does not let pre do this: whoever administers it should apply \
                         deploy/base/clusterrole.yaml and deploy/base/clusterrolebinding.yaml.";
const MISSING: &str = "The cluster has no such Deployment beside this pre: whoever administers it should apply the manifests \
                       in deploy/.";
const AWAY: &str = "The Kubernetes API does not answer at the moment; try again in a few seconds.";
const CONFLICT: &str = "The cluster did not take this: something else is changing the Deployment, or a rule of the cluster \
                        is against it (pre's log says which). Try again.";

fn nowhere(place: &'static str, message: &'static str) -> Outlook {
    Outlook { place, replicas: vec![], message: Some(message) }
}

/// What strangers are told; the rest is for the log.
fn sentence(error: &ScaleError) -> &'static str {
    match error {
        ScaleError::NoCluster(_) => NO_CLUSTER,
        ScaleError::Forbidden { .. } => FORBIDDEN,
        ScaleError::Missing { .. } => MISSING,
        ScaleError::Unauthorized(_) | ScaleError::Unreachable { .. } => AWAY,
        ScaleError::Conflict(_) | ScaleError::Refused { .. } => CONFLICT,
    }
}

fn impossible(why: &'static str) -> HttpError {
    HttpError::new(StatusCode::CONFLICT, "no_cluster", why)
}

fn refusal(error: &ScaleError) -> HttpError {
    error!("a number of replicas was not changed: {error}");
    let sentence = sentence(error);
    match error {
        ScaleError::NoCluster(_) => impossible(sentence),
        ScaleError::Forbidden { .. } => HttpError::new(StatusCode::FORBIDDEN, "forbidden", sentence),
        ScaleError::Missing { .. } => HttpError::not_found(sentence),
        ScaleError::Unauthorized(_) | ScaleError::Unreachable { .. } => {
            HttpError::unavailable(sentence, LATER)
        }
        ScaleError::Conflict(_) | ScaleError::Refused { .. } => HttpError::conflict(sentence),
    }
}
