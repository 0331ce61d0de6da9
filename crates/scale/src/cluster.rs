//! The way to the Kubernetes API.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment as Object;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::error::{Permission, ScaleError, whole};

/// How long the API server may take to be connected to, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the manifests put everything: what is meant where a kubeconfig says nothing else.
const NAMESPACE: &str = "boxreel";
/// The variable by which a pod is told where the API server is.
const POD: &str = "KUBERNETES_SERVICE_HOST";

/// A Deployment of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deployment {
    /// Uploads, pages, the stages that read a video.
    Pre,
    /// The network.
    Infer,
    /// Drawing and joining.
    Post,
}

impl Deployment {
    /// All, in the order of the work.
    pub const ALL: [Self; 3] = [Self::Pre, Self::Infer, Self::Post];

    /// Its name in the cluster.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Infer => "infer",
            Self::Post => "post",
        }
    }
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is none of our Deployments'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no Deployment {0:?} to scale: there are pre, infer and post")]
pub struct UnknownDeployment(pub String);

impl FromStr for Deployment {
    type Err = UnknownDeployment;

    fn from_str(text: &str) -> Result<Self, UnknownDeployment> {
        let found = Self::ALL.into_iter().find(|deployment| deployment.as_str() == text);
        found.ok_or_else(|| UnknownDeployment(text.to_owned()))
    }
}

/// How many replicas a Deployment should have, and has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    /// Whose.
    pub deployment: Deployment,
    /// How many there should be.
    pub desired: u32,
    /// How many pass their readiness probe.
    pub ready: u32,
    /// How many run what the Deployment says now, not an older version.
    pub up_to_date: u32,
    /// How many have been ready for long enough to count on.
    pub available: u32,
    /// Whether all is as it should be: nothing is missing, and nothing superfluous is left.
    pub settled: bool,
    /// What the cluster says stands in the way.
    pub problem: Option<String>,
}

impl Replicas {
    fn of(deployment: Deployment, object: &Object) -> Self {
        let count = |n: Option<i32>| u32::try_from(n.unwrap_or(0)).unwrap_or(0);
        // A Deployment that says nothing has one; the API server writes it down when the object is made.
        let desired = count(Some(object.spec.replicas.unwrap_or(1)));
        let status = object.status.clone().unwrap_or_default();
        let seen = status.observed_generation.unwrap_or(0) >= object.metadata.generation.unwrap_or(0);
        let (up_to_date, available) = (count(status.updated_replicas), count(status.available_replicas));
        let there = [count(status.replicas), up_to_date, available];
        let conditions = status.conditions.unwrap_or_default();
        // The most telling comes first: a quota that is used up, then a roll-out that got stuck.
        let problem = [("ReplicaFailure", "True"), ("Progressing", "False"), ("Available", "False")]
            .into_iter()
            .find_map(|(kind, bad)| {
                let found = conditions.iter().find(|condition| {
                    condition.type_.as_deref() == Some(kind) && condition.status.as_deref() == Some(bad)
                });
                found?.message.clone()
            });
        Self {
            deployment,
            desired,
            ready: count(status.ready_replicas),
            up_to_date,
            available,
            settled: seen && there == [desired; 3],
            problem,
        }
    }
}

/// A cluster, and the namespace in it where Boxreel lives. Cloning it is cheap.
#[derive(Clone)]
pub struct Cluster {
    deployments: Api<Object>,
    address: String,
    namespace: String,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({self})")
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {} at {}", self.namespace, self.address)
    }
}

impl Cluster {
    /// The cluster that this process runs in, as the ServiceAccount of its pod, in the pod's own namespace unless
    /// another is named. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When this is no pod, or one that was given no ServiceAccount's token.
    pub fn around(namespace: Option<&str>) -> Result<Self, ScaleError> {
        if !is_pod() {
            return Err(ScaleError::NoCluster(format!(
                "this process runs in no pod of one ({POD} is not set)."
            )));
        }
        let config = Config::incluster().map_err(|error| {
            ScaleError::NoCluster(format!(
                "this pod was given no ServiceAccount's token (automountServiceAccountToken in its Deployment): {}.",
                whole(&error)
            ))
        })?;
        let namespace = namespace.unwrap_or(config.default_namespace.trim()).to_owned();
        Self::new(config, namespace)
    }

    /// The cluster of a kubeconfig, in the namespace of its current context unless another is named. To be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub async fn of_kubeconfig(file: &Path, namespace: Option<&str>) -> Result<Self, ScaleError> {
        let kubeconfig = Kubeconfig::read_from(file).map_err(|error| unusable(&error))?;
        Self::of(kubeconfig, namespace).await
    }

    /// The cluster that is meant: that of the kubeconfig in `KUBECONFIG`; in a pod, the one around it; outside, that
    /// of `~/.kube/config`.
    ///
    /// # Errors
    /// When there is none; the sentence says what was looked at.
    pub async fn find(namespace: Option<&str>) -> Result<Self, ScaleError> {
        match Kubeconfig::from_env() {
            Ok(Some(kubeconfig)) => return Self::of(kubeconfig, namespace).await,
            Err(error) => return Err(unusable(&error)),
            Ok(None) if is_pod() => return Self::around(namespace),
            Ok(None) => {}
        }
        let home = std::env::home_dir().map(|home| home.join(".kube").join("config"));
        match home.filter(|file| file.exists()) {
            Some(file) => Self::of_kubeconfig(&file, namespace).await,
            None => Err(ScaleError::NoCluster(format!(
                "this is no pod of one ({POD} is not set), and there is no kubeconfig (KUBECONFIG, ~/.kube/config). \
                 Run it in a pod: kubectl -n {NAMESPACE} exec deploy/pre -- pre scale"
            ))),
        }
    }

    async fn of(kubeconfig: Kubeconfig, namespace: Option<&str>) -> Result<Self, ScaleError> {
        let current = kubeconfig.current_context.as_deref();
        let context = kubeconfig.contexts.iter().find(|context| Some(context.name.as_str()) == current);
        let theirs = context.and_then(|context| context.context.as_ref()?.namespace.clone());
        let namespace = namespace.map(str::to_owned).or(theirs).unwrap_or_else(|| NAMESPACE.to_owned());
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Self::new(config.map_err(|error| unusable(&error))?, namespace)
    }

    fn new(mut config: Config, namespace: String) -> Result<Self, ScaleError> {
        // Clients of HTTP take the process's cryptography, of which there must be one.
        common::service::crypto();
        config.connect_timeout = Some(PATIENCE);
        let address = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| {
            ScaleError::NoCluster(format!("what is known of {address} cannot be used: {}.", whole(&error)))
        })?;
        Ok(Self { deployments: Api::namespaced(client, &namespace), address, namespace })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How many replicas a Deployment should have, and has.
    ///
    /// # Errors
    /// When the cluster does not tell.
    pub async fn replicas(&self, deployment: Deployment) -> Result<Replicas, ScaleError> {
        let asked = self.deployments.get(deployment.as_str());
        let object = self.answer(Permission::Read, deployment, asked).await?;
        Ok(Replicas::of(deployment, &object))
    }

    /// Has the cluster run `replicas` replicas of a Deployment. It does so after this has returned.
    ///
    /// # Errors
    /// When the cluster does not take it.
    pub async fn scale(&self, deployment: Deployment, replicas: u32) -> Result<(), ScaleError> {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let params = PatchParams::default();
        let asked = self.deployments.patch_scale(deployment.as_str(), &params, &patch);
        let scale = self.answer(Permission::Scale, deployment, asked).await?;
        // A zero is left out.
        let taken = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        if u32::try_from(taken) == Ok(replicas) {
            return Ok(());
        }
        // An admission webhook may change what it is asked for.
        Err(ScaleError::Refused {
            deployment,
            said: format!("it made it {taken} replicas instead of {replicas}"),
        })
    }

    /// What the API server answers, in time, or why not.
    async fn answer<T>(
        &self,
        permission: Permission,
        deployment: Deployment,
        asked: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ScaleError> {
        let unreachable = |why: String| ScaleError::Unreachable { address: self.address.clone(), why };
        let error = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => return Err(unreachable(format!("no answer within {} seconds", PATIENCE.as_secs()))),
        };
        let kube::Error::Api(status) = error else { return Err(unreachable(whole(&error))) };
        let (namespace, said) = (self.namespace.clone(), status.message.clone());
        Err(match status.code {
            401 => ScaleError::Unauthorized(said),
            403 => ScaleError::Forbidden { permission, deployment, namespace, said },
            404 => ScaleError::Missing { deployment, namespace },
            409 => ScaleError::Conflict(deployment),
            // Its server is starting, stopping or overloaded.
            429 | 500.. => unreachable(format!("it answers {} {said}", status.code)),
            _ => ScaleError::Refused { deployment, said },
        })
    }
}

fn is_pod() -> bool {
    std::env::var_os(POD).is_some()
}

fn unusable(error: &kube::config::KubeconfigError) -> ScaleError {
    ScaleError::NoCluster(format!("the kubeconfig cannot be used: {}.", whole(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: serde_json::Value) -> Replicas {
        Replicas::of(Deployment::Pre, &serde_json::from_value(text).unwrap())
    }

    #[test]
    fn it_has_settled_when_nothing_is_missing_and_nothing_old_is_left() {
        let deployment = |generation: i32, replicas: i32, updated: i32, available: i32| {
            object(json!({
                "metadata": { "generation": 2 },
                "spec": { "replicas": 3, "selector": {}, "template": {} },
                "status": {
                    "observedGeneration": generation, "replicas": replicas, "updatedReplicas": updated,
                    "readyReplicas": available, "availableReplicas": available,
                },
            }))
        };
        assert!(deployment(2, 3, 3, 3).settled);
        for (what, generation, replicas, updated, available) in [
            ("the new number was not seen yet", 1, 3, 3, 3),
            ("one of them is not ready", 2, 3, 3, 2),
            ("an old one is left", 2, 4, 3, 3),
            ("one is missing", 2, 2, 2, 2),
            ("one runs an old version", 2, 3, 2, 3),
        ] {
            assert!(!deployment(generation, replicas, updated, available).settled, "{what}");
        }
        let found = deployment(2, 3, 3, 2);
        assert_eq!((found.desired, found.ready, found.up_to_date, found.available), (3, 2, 3, 2));
    }

    #[test]
    fn a_deployment_without_any_replica_settles_too() {
        let none = object(json!({
            "metadata": { "generation": 1 },
            "spec": { "replicas": 0, "selector": {}, "template": {} },
            "status": { "observedGeneration": 1 },
        }));
        assert!(none.settled && none.desired == 0);
    }

    #[test]
    fn what_stands_in_the_way_is_told_and_the_worst_first() {
        let condition = |kind: &str, status: &str, message: &str| json!({ "type": kind, "status": status, "message": message });
        let problem = |conditions: Vec<serde_json::Value>| {
            object(json!({
                "metadata": {},
                "spec": { "replicas": 1, "selector": {}, "template": {} },
                "status": { "conditions": conditions },
            }))
            .problem
        };
        let unavailable = condition("Available", "False", "no minimum availability");
        assert_eq!(problem(vec![condition("Available", "True", "fine")]), None);
        assert_eq!(problem(vec![unavailable.clone()]).as_deref(), Some("no minimum availability"));
        let quota = condition("ReplicaFailure", "True", "exceeded quota");
        assert_eq!(problem(vec![unavailable, quota]).as_deref(), Some("exceeded quota"));
    }

    #[test]
    fn only_our_own_deployments_have_names() {
        for deployment in Deployment::ALL {
            assert_eq!(deployment.as_str().parse(), Ok(deployment));
        }
        for other in ["", "Pre", "mongo", "pre "] {
            assert!(other.parse::<Deployment>().unwrap_err().to_string().contains("pre, infer and post"));
        }
    }
}
