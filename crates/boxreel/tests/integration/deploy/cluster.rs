//! deploy/ on a real API server: whatever cluster `BOXREEL_TEST_KUBECONFIG` names. Nothing is left behind there but, for a
//! moment, one namespace of the test's own: everything else is sent as a dry run, which goes through all of the server's
//! checks.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::manifests::{Manifests, kubectl, name, overlays, text};

struct Cluster {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Cluster {
    fn kubectl(&self) -> Command {
        let mut command = kubectl();
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    fn apply(&self, documents: &[Value], dry: bool) -> Output {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": documents });
        let mut child = self
            .kubectl()
            .args(["apply", "--filename", "-"])
            .args(dry.then_some("--dry-run=server"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.kubectl().args(["delete", "namespace", "--wait=false", &self.namespace]).output();
    }
}

#[test]
fn a_real_server_accepts_every_overlay() {
    let Some(kubeconfig) = std::env::var_os("BOXREEL_TEST_KUBECONFIG") else {
        eprintln!("skipped: BOXREEL_TEST_KUBECONFIG names no cluster");
        return;
    };
    let namespace = format!("boxreel-test-{}", std::process::id());
    let cluster = Cluster { kubeconfig: kubeconfig.into(), namespace };
    let asked = cluster.kubectl().arg("api-versions").output().unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let versions = String::from_utf8(asked.stdout).unwrap();
    let versions: BTreeSet<&str> = versions.lines().collect();
    let space = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": cluster.namespace } });
    let made = cluster.apply(&[space], false);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    // Where Boxreel is installed, its port is taken.
    let installed =
        cluster.kubectl().args(["--namespace", "boxreel", "get", "service", "pre"]).output().unwrap();
    for overlay in overlays() {
        let (mut documents, strange): (Vec<Value>, Vec<Value>) = Manifests::rendered(&overlay)
            .documents
            .into_iter()
            .partition(|document| versions.contains(text(&document["apiVersion"])));
        let strange: BTreeSet<String> = strange
            .iter()
            .map(|document| format!("{} {}", document["apiVersion"], document["kind"]))
            .collect();
        for kind in strange {
            eprintln!("{overlay}: {kind} is skipped, this server does not know it");
        }
        for document in &mut documents {
            if !document["metadata"]["namespace"].is_null() {
                document["metadata"]["namespace"] = json!(cluster.namespace);
            }
            if document["kind"] == "Service" && installed.status.success() {
                document["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
            }
        }
        let applied = cluster.apply(&documents, true);
        let said = String::from_utf8_lossy(&applied.stdout);
        assert!(applied.status.success(), "{overlay}: {}{said}", String::from_utf8_lossy(&applied.stderr));
        assert_eq!(said.lines().count(), documents.len(), "{said}");
        assert!(documents.iter().all(|document| said.contains(&format!("/{} ", name(document)))), "{said}");
    }

    // And it does look: a slip is refused.
    let mut slipped = Manifests::rendered("deploy/base");
    *slipped.at("Service", "pre", "/metadata/namespace") = json!(cluster.namespace);
    *slipped.at("Service", "pre", "/spec/ports/0/port") = json!(70_000);
    let refused = cluster.apply(&[slipped.named("Service", "pre").unwrap().clone()], true);
    assert!(!refused.status.success());
}
