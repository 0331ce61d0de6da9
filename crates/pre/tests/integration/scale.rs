//! `pre scale` as an operator runs it, where there is no cluster.

use std::path::Path;
use std::process::{Command, Output};

/// Runs it outside of any cluster, unless `kubeconfig` names one.
fn scale(words: &[&str], kubeconfig: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pre"));
    command.arg("scale").args(words).env("HOME", "/nonexistent").env_remove("KUBERNETES_SERVICE_HOST");
    match kubeconfig {
        Some(file) => command.env("KUBECONFIG", file),
        None => command.env_remove("KUBECONFIG"),
    };
    command.output().unwrap()
}

fn expect(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
}

#[test]
fn without_a_cluster_it_says_so_and_fails() {
    expect(&scale(&["pre=3"], None), 1, &["No cluster", "KUBERNETES_SERVICE_HOST", "KUBECONFIG", "kubectl"]);
    expect(&scale(&[], Some(Path::new("/nonexistent/config"))), 1, &["No cluster", "/nonexistent/config"]);
}

#[test]
fn what_makes_no_sense_is_refused_as_such() {
    for (words, part) in [
        (["pre=many"], "\"many\" is no number of replicas"),
        (["pre=-1"], "no number of replicas"),
        (["pre"], "pre=3"),
        (["mongo=3"], "there are pre, infer and post"),
        (["infer=65"], "more than the 64 replicas"),
    ] {
        expect(&scale(&words, None), 2, &[part]);
    }
    expect(&scale(&["pre=1", "pre=2"], None), 2, &["twice"]);
    expect(&scale(&["pre=1", "--wait", "--timeout", "soon"], None), 2, &["no length of time"]);
}

#[test]
fn an_api_server_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    std::fs::write(&file, crate::replicas::kubeconfig(&url)).unwrap();
    let output = scale(&["pre=3"], Some(&file));
    expect(&output, 1, &[&format!("namespace boxreel at {url}"), "does not answer"]);
    assert!(output.stdout.is_empty());
}
