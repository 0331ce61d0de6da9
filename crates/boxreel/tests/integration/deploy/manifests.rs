//! What is in deploy/, as Kubernetes is given it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The services, which are the names of their Deployments, images and Dockerfiles.
pub const SERVICES: [&str; 3] = ["pre", "infer", "post"];

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A file of the repository.
pub fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All documents of a YAML text.
pub fn yaml(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("no YAML: {error}"))
}

/// kubectl, as scripts/fetch_kube_tools.sh brings it.
pub fn kubectl() -> Command {
    let path = root().join(".tools/kube/bin/kubectl");
    assert!(
        path.exists(),
        "there is no {}: run scripts/fetch_kube_tools.sh, as `make test` does",
        path.display()
    );
    Command::new(path)
}

/// The base and all overlays, by their paths.
pub fn overlays() -> Vec<String> {
    let mut found = vec!["deploy/base".to_owned()];
    for entry in fs::read_dir(root().join("deploy/overlays")).unwrap() {
        found.push(format!("deploy/overlays/{}", entry.unwrap().file_name().to_string_lossy()));
    }
    found.sort();
    assert!(found.len() >= 7, "{found:?}");
    found
}

/// The documents of an overlay, and of the Secret that goes with each.
#[derive(Clone)]
pub struct Manifests {
    pub documents: Vec<Value>,
    pub secret: Value,
}

/// The pods of a Deployment or StatefulSet.
#[derive(Clone, Copy)]
pub struct Pods<'a> {
    pub name: &'a str,
    pub labels: &'a Value,
    pub annotations: &'a Value,
    pub spec: &'a Value,
}

impl Manifests {
    /// What `kubectl kustomize` makes of a folder.
    pub fn rendered(folder: &str) -> Self {
        let output = kubectl().arg("kustomize").arg(root().join(folder)).output().unwrap();
        assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
        let secret = yaml(&file("deploy/secret.example.yaml")).remove(0);
        Self { documents: yaml(&String::from_utf8(output.stdout).unwrap()), secret }
    }

    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.documents.iter().filter(move |document| document["kind"] == kind)
    }

    pub fn named(&self, kind: &str, name: &str) -> Option<&Value> {
        self.documents
            .iter()
            .find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
    }

    pub fn pods(&self) -> Vec<Pods<'_>> {
        let sets = self.of_kind("Deployment").chain(self.of_kind("StatefulSet"));
        sets.map(|set| Pods {
            name: name(set),
            labels: &set["spec"]["template"]["metadata"]["labels"],
            annotations: &set["spec"]["template"]["metadata"]["annotations"],
            spec: &set["spec"]["template"]["spec"],
        })
        .collect()
    }

    pub fn pods_of(&self, name: &str) -> Option<Pods<'_>> {
        self.pods().into_iter().find(|pods| pods.name == name)
    }

    /// The value at `pointer` (as in RFC 6901) of a document, to be changed.
    pub fn at(&mut self, kind: &str, name: &str, pointer: &str) -> &mut Value {
        let document = self
            .documents
            .iter_mut()
            .find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("no {kind} {name}"));
        document.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer} in {kind} {name}"))
    }

    /// Changes the value at `pointer` of a document.
    pub fn set(&mut self, kind: &str, name: &str, pointer: &str, value: &Value) {
        *self.at(kind, name, pointer) = value.clone();
    }

    /// Takes a document out.
    pub fn remove(&mut self, kind: &str, name: &str) {
        let before = self.documents.len();
        self.documents.retain(|document| document["kind"] != kind || document["metadata"]["name"] != name);
        assert_eq!(self.documents.len() + 1, before, "no {kind} {name}");
    }
}

/// The items of a list; none where there is none.
pub fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// A text; empty where there is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A document's name.
pub fn name(document: &Value) -> &str {
    text(&document["metadata"]["name"])
}

/// Whether a label selector of Kubernetes takes `labels`. An empty one takes all.
pub fn selects(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"].as_object();
    let exact = exact.is_none_or(|wanted| wanted.iter().all(|(key, value)| &labels[key] == value));
    exact
        && items(&selector["matchExpressions"]).iter().all(|expression| {
            assert_eq!(expression["operator"], "In", "an operator these tests do not know");
            items(&expression["values"]).contains(&labels[text(&expression["key"])])
        })
}
