//! Where there is no cluster to talk to.

use std::path::Path;

use scale::{Cluster, ScaleError};

use crate::run;

/// A kubeconfig for an API server on `port` of this machine.
fn kubeconfig(folder: &Path, port: u16) -> std::path::PathBuf {
    let file = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: here, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         users: [{{name: me, user: {{}}}}]\n\
         contexts: [{{name: here, context: {{cluster: here, user: me}}}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let cluster = Cluster::of_kubeconfig(&kubeconfig(folder.path(), port), None).await.unwrap();
    let sentence = run(&cluster, &["pre=3"]).await.unwrap_err();
    assert!(sentence.starts_with(&format!("The Kubernetes API at http://127.0.0.1:{port}")), "{sentence}");
    assert!(sentence.contains("does not answer") && sentence.contains("refused"), "{sentence}");
}

#[tokio::test]
async fn a_kubeconfig_that_says_no_namespace_means_ours() {
    let folder = tempfile::tempdir().unwrap();
    let file = kubeconfig(folder.path(), 1);
    assert_eq!(Cluster::of_kubeconfig(&file, None).await.unwrap().namespace(), "boxreel");
    assert_eq!(Cluster::of_kubeconfig(&file, Some("elsewhere")).await.unwrap().namespace(), "elsewhere");
    let text = std::fs::read_to_string(&file).unwrap().replace("user: me}}", "user: me, namespace: theirs}}");
    std::fs::write(&file, text).unwrap();
    assert_eq!(Cluster::of_kubeconfig(&file, None).await.unwrap().namespace(), "theirs");
}

#[tokio::test]
async fn a_kubeconfig_that_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, "- what: is this\n").unwrap();
    for file in [file, folder.path().join("missing")] {
        let error = Cluster::of_kubeconfig(&file, None).await.unwrap_err();
        assert!(matches!(error, ScaleError::NoCluster(_)), "{error:?}");
        assert!(error.to_string().starts_with("No cluster: the kubeconfig cannot be used: "), "{error}");
    }
}
