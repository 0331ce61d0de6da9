//! A namespace of a test's own, with our Deployments, and an account that may do what deploy/base grants.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use scale::Cluster;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The account's name, as that of pre's pods.
const ACCOUNT: &str = "pre";

pub struct TestNamespace {
    pub name: String,
    admin: Client,
    file: PathBuf,
    folder: TempDir,
}

impl TestNamespace {
    /// None where no cluster is named; that is said.
    pub async fn new() -> Option<Self> {
        let Some(file) = std::env::var_os("BOXREEL_TEST_KUBECONFIG").map(PathBuf::from) else {
            eprintln!("skipped: BOXREEL_TEST_KUBECONFIG names no cluster to test on");
            return None;
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let admin = client(&file).await;
        let name = format!("boxreel-test-{}-{number}", std::process::id());
        let namespace = object::<Namespace>(json!({ "metadata": { "name": name } }));
        Api::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        let this = Self { name, admin, file, folder: tempfile::tempdir().unwrap() };
        this.create::<ServiceAccount>(json!({ "metadata": { "name": ACCOUNT } })).await;
        for deployment in ["pre", "infer", "post", "other"] {
            this.create_deployment(deployment).await;
        }
        Some(this)
    }

    /// A Deployment whose pods no node will ever take.
    async fn create_deployment(&self, name: &str) {
        let labels = json!({ "app": name });
        self.create::<Deployment>(json!({
            "metadata": { "name": name },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "nodeSelector": { "boxreel.test/node": "none" },
                        "containers": [{ "name": "it", "image": "boxreel.invalid/none" }],
                    },
                },
            },
        }))
        .await;
    }

    async fn create<T>(&self, value: Value)
    where
        T: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
        T::DynamicType: Default,
    {
        self.admin::<T>().create(&PostParams::default(), &object(value)).await.unwrap();
    }

    /// Objects of this namespace, for the administrator.
    pub fn admin<T>(&self) -> Api<T>
    where
        T: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        T::DynamicType: Default,
    {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    /// Gives the account what deploy/base/clusterrole.yaml grants, in this namespace.
    pub async fn grant(&self) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/base/clusterrole.yaml");
        let role: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        self.grant_only(role["rules"].clone()).await;
    }

    pub async fn grant_only(&self, rules: Value) {
        self.create::<Role>(json!({ "metadata": { "name": "scaler" }, "rules": rules })).await;
        self.create::<RoleBinding>(json!({
            "metadata": { "name": "scaler" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "scaler" },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": self.name }],
        }))
        .await;
    }

    /// Takes it from the account again.
    pub async fn revoke(&self) {
        self.admin::<RoleBinding>().delete("scaler", &DeleteParams::default()).await.unwrap();
    }

    pub async fn remove_deployment(&self, name: &str) {
        self.admin::<Deployment>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// How many replicas a Deployment should have, as the administrator reads it.
    pub async fn desired(&self, name: &str) -> i32 {
        self.admin::<Deployment>().get(name).await.unwrap().spec.replicas.unwrap()
    }

    /// A kubeconfig with a token of the account's own.
    pub async fn account_file(&self) -> PathBuf {
        let accounts = self.admin::<ServiceAccount>();
        let request =
            object::<TokenRequest>(json!({ "spec": { "audiences": [], "expirationSeconds": 600 } }));
        let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await.unwrap();
        self.file_with_token(&answer.status.unwrap().token.unwrap())
    }

    /// A kubeconfig for this cluster and namespace with this token.
    pub fn file_with_token(&self, token: &str) -> PathBuf {
        let admin = Kubeconfig::read_from(&self.file).unwrap();
        let current = admin.current_context.as_deref();
        let context = admin.contexts.iter().find(|context| Some(context.name.as_str()) == current);
        let cluster = context.unwrap().context.as_ref().unwrap().cluster.clone();
        let cluster = admin.clusters.iter().find(|named| named.name == cluster).unwrap();
        let context = json!({ "cluster": cluster.name, "user": "account", "namespace": self.name });
        let file = self.folder.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "account",
            "clusters": [cluster],
            "users": [{ "name": "account", "user": { "token": token } }],
            "contexts": [{ "name": "account", "context": context }],
        });
        std::fs::write(&file, text.to_string()).unwrap();
        file
    }

    /// The way to the cluster that a pod with the account has.
    pub async fn account(&self) -> Cluster {
        Cluster::of_kubeconfig(&self.account_file().await, None).await.unwrap()
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        let (file, name) = (self.file.clone(), self.name.clone());
        // In a thread of its own: the test's runtime may be ending.
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let namespaces = Api::<Namespace>::all(client(&file).await);
                namespaces.delete(&name, &DeleteParams::default()).await.map(drop)
            })
        });
        if !matches!(removed.join(), Ok(Ok(()))) {
            eprintln!("the namespace {} is left behind", self.name);
        }
    }
}

/// A client of the cluster of a kubeconfig.
pub async fn client(file: &Path) -> Client {
    common::service::crypto();
    let kubeconfig = Kubeconfig::read_from(file).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Tries until it succeeds: what was granted or taken reaches the API server's authorizer a moment later.
pub async fn eventually<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if began.elapsed() > Duration::from_secs(60) => panic!("not in time: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
