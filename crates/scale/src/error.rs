//! What can go wrong between us and a cluster, as sentences that say what to do.

use std::fmt;

use crate::cluster::Deployment;

/// Why numbers of replicas could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    /// There is none to talk to.
    #[error("No cluster: {0}")]
    NoCluster(String),
    /// The account may not do this.
    #[error(
        "The cluster forbids it: this account may not {permission} \"{deployment}\" in namespace {namespace}. \
         deploy/base/clusterrole.yaml grants that, and deploy/base/clusterrolebinding.yaml gives it to the \
         ServiceAccounts pre and post: kubectl apply -f both. (The cluster said: {said})"
    )]
    Forbidden {
        /// What is missing.
        permission: Permission,
        /// On what.
        deployment: Deployment,
        /// Where.
        namespace: String,
        /// The cluster's own words.
        said: String,
    },
    /// The cluster does not know who asks.
    #[error(
        "The cluster does not accept this account's credentials: in a pod, start the pod again; outside, sign in again \
         or correct the kubeconfig. (The cluster said: {0})"
    )]
    Unauthorized(String),
    /// The Deployment is not there.
    #[error(
        "There is no Deployment \"{deployment}\" in namespace {namespace}: apply deploy/base/{deployment}-deploy.yaml, \
         or name the right namespace with --namespace."
    )]
    Missing {
        /// Which.
        deployment: Deployment,
        /// Where.
        namespace: String,
    },
    /// Somebody else changes it at this moment.
    #[error("Something else is changing Deployment \"{0}\" at this moment: try again.")]
    Conflict(Deployment),
    /// The API server did not answer.
    #[error(
        "The Kubernetes API at {address} does not answer: {why}. Check the address and that the network (a \
         NetworkPolicy, a proxy) lets this through."
    )]
    Unreachable {
        /// Whom we asked.
        address: String,
        /// What happened.
        why: String,
    },
    /// The cluster refused for another reason.
    #[error("The cluster refused this for Deployment \"{deployment}\": {said}")]
    Refused {
        /// Which.
        deployment: Deployment,
        /// The cluster's own words.
        said: String,
    },
}

/// What an account may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// To look at a Deployment.
    Read,
    /// To change its number of replicas.
    Scale,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "get deployments",
            Self::Scale => "patch deployments/scale",
        })
    }
}

/// Everything an error has to say: what it is, and all that it came from.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
