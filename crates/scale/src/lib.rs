//! How many replicas of each service run in a Kubernetes cluster: shown, changed, waited for.
//!
//! [`Cluster`] is the way to the Kubernetes API, with the ServiceAccount's token in a pod or a kubeconfig outside;
//! [`command`] is what `pre scale` and `post scale` do with it. It asks for little: to `get` the Deployments `pre`,
//! `infer` and `post`, and to `patch` their numbers of replicas. deploy/base/clusterrole.yaml grants exactly that.
//!
//! Never in here: jobs, the store, routes. And nowhere else: Kubernetes.

pub mod cluster;
pub mod command;
mod error;

pub use cluster::{Cluster, Deployment, Replicas};
pub use command::{Command, ScaleArgs, Target};
pub use error::{Permission, ScaleError};

/// The most replicas that a Deployment may be given, unless told: a slip of the finger should not rent a data centre.
pub const MAX_REPLICAS: u32 = 64;
