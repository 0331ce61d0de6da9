//! deploy/, the Dockerfiles and the scripts held against the programs: what schemas and linters cannot see.

mod checks;
mod cluster;
mod manifests;
mod monitoring;
mod network;
mod settings;

use std::collections::BTreeSet;
use std::process::Command;

use manifests::{Manifests, SERVICES, file, items, name, overlays, root, text, yaml};
use serde_json::{Value, json};

#[test]
fn every_overlay_fits_itself_and_the_programs() {
    for overlay in overlays() {
        let problems = checks::problems(&Manifests::rendered(&overlay));
        assert!(problems.is_empty(), "{overlay}:\n{}", problems.join("\n"));
    }
}

/// A slip somebody could make, and a word of what has to be said of it.
type Slip = (&'static str, fn(&mut Manifests));

const CONTAINER: &str = "/spec/template/spec/containers/0";

fn within(pointer: &str) -> String {
    format!("{CONTAINER}{pointer}")
}

#[test]
fn every_slip_is_noticed() {
    let slips: &[Slip] = &[
        ("did you mean BOXREEL_LOG", |m| {
            m.at("ConfigMap", "boxreel", "/data")["BOXREEL_LOGS"] = json!("info");
        }),
        ("no length of time", |m| {
            m.set("ConfigMap", "boxreel", "/data/BOXREEL_RETENTION", &json!("a while"));
        }),
        ("nobody's setting", |m| m.set("Deployment", "post", &within("/env/0/name"), &json!("POST_LISTEN"))),
        ("post has no setting BOXREEL_MODEL", |m| {
            m.set("Deployment", "post", &within("/env/0/name"), &json!("BOXREEL_MODEL"));
        }),
        ("no text for a value", |m| m.set("ConfigMap", "boxreel", "/data/BOXREEL_LEASE_SECONDS", &json!(30))),
        ("not on its port", |m| m.set("Deployment", "pre", &within("/env/0/value"), &json!("0.0.0.0:80"))),
        ("the Secret's volume has no", |m| {
            m.at("Deployment", "infer", "/spec/template/spec/volumes/1/secret/items")
                .as_array_mut()
                .unwrap()
                .remove(0);
        }),
        ("not in the Secret", |m| {
            m.set("Deployment", "infer", "/spec/template/spec/volumes/1/secret/items/0/key", &json!("mongo"));
        }),
        ("leads nowhere", |m| m.set("Service", "pre", "/spec/ports/0/port", &json!(80))),
        ("leads nowhere", |m| m.set("Service", "infer", "/spec/ports/0/targetPort", &json!("web"))),
        ("no such Service", |m| {
            m.set("ConfigMap", "boxreel", "/data/BOXREEL_PRE_URL", &json!("http://front:8080"));
        }),
        ("no such Service", |m| m.remove("Service", "mongo")),
        ("not at http", |m| m.set("Deployment", "post", &within("/ports/0/containerPort"), &json!(8080))),
        ("scraped at another port", |m| {
            m.set(
                "Deployment",
                "post",
                "/spec/template/metadata/annotations/prometheus.io~1port",
                &json!("9090"),
            );
        }),
        ("probed at no port", |m| {
            m.set("Deployment", "infer", &within("/readinessProbe/httpGet/port"), &json!("web"));
        }),
        ("selects no pods", |m| {
            m.set("Service", "pre", "/spec/selector/app.kubernetes.io~1component", &json!("front"));
        }),
        ("selects no pods", |m| {
            m.set(
                "PodDisruptionBudget",
                "post",
                "/spec/selector/matchLabels/app.kubernetes.io~1name",
                &json!("post"),
            );
        }),
        ("selects other pods", |m| {
            m.set(
                "Deployment",
                "infer",
                "/spec/selector/matchLabels/app.kubernetes.io~1component",
                &json!("pre"),
            );
        }),
        ("which is not there", |m| {
            m.set("Deployment", "pre", "/spec/template/spec/serviceAccountName", &json!("front"));
        }),
        ("is for nobody of ours", |m| {
            m.set("RoleBinding", "boxreel-scaler", "/subjects/0/name", &json!("default"));
        }),
        ("is to no role", |m| m.set("RoleBinding", "boxreel-scaler", "/roleRef/name", &json!("scaler"))),
        ("exactly if it may scale", |m| {
            m.set("Deployment", "infer", "/spec/template/spec/automountServiceAccountToken", &json!(true));
        }),
        ("other things than scaling", |m| {
            m.set("ClusterRole", "boxreel-scaler", "/rules/0/verbs", &json!(["get", "list"]));
        }),
        ("mounts", |m| m.set("Deployment", "pre", &within("/volumeMounts/2/name"), &json!("scratch"))),
        ("of nothing there", |m| {
            m.set(
                "Deployment",
                "pre",
                "/spec/template/spec/volumes/0/persistentVolumeClaim/claimName",
                &json!("data"),
            );
        }),
        ("no ConfigMap", |m| {
            m.set("Deployment", "pre", &within("/envFrom/0/configMapRef/name"), &json!("settings"));
        }),
        ("off the shared volume", |m| {
            m.set("ConfigMap", "boxreel", "/data/BOXREEL_DATA_DIR", &json!("/data"));
        }),
        ("do not fit", |m| m.set("PersistentVolume", "boxreel", "/spec/storageClassName", &json!("nfs"))),
        ("before it has ended", |m| {
            m.set("ConfigMap", "boxreel", "/data/BOXREEL_SHUTDOWN_SECONDS", &json!("90"));
        }),
        ("not fenced in as a pod", |m| {
            m.set("Deployment", "pre", "/spec/template/spec/securityContext/runAsUser", &json!(0));
        }),
        ("not fenced in as a container", |m| {
            m.set("StatefulSet", "mongo", &within("/securityContext/readOnlyRootFilesystem"), &json!(false));
        }),
        ("no bounds on memory", |m| {
            m.set("Deployment", "post", &within("/resources/limits"), &json!({ "cpu": "1" }));
        }),
        ("not boxreel/pre", |m| m.set("Deployment", "pre", &within("/image"), &json!("boxreel-pre:0.1.0"))),
        ("in the namespace", |m| m.set("Service", "infer", "/metadata/namespace", &json!("default"))),
        ("is there twice", |m| m.documents.push(m.documents[0].clone())),
        ("held to a number", |m| m.at("Deployment", "pre", "/spec")["replicas"] = json!(1)),
        ("from infer to pre:8080 is closed", |m| m.remove("NetworkPolicy", "workers-to-pre")),
        ("from pre to infer:8081 is closed", |m| m.remove("NetworkPolicy", "infer-from-pre")),
        ("from post to mongo:27017 is closed", |m| m.remove("NetworkPolicy", "to-mongo")),
        ("coredns in kube-system:53 is closed", |m| m.remove("NetworkPolicy", "dns")),
        ("from post to 10.96.0.1:443 is closed", |m| m.remove("NetworkPolicy", "to-kubernetes-api")),
        ("from prometheus in monitoring to infer:8081 is closed", |m| m.remove("NetworkPolicy", "metrics")),
        ("opentelemetry-collector in observability:4318 is closed", |m| m.remove("NetworkPolicy", "traces")),
        ("to 93.184.216.34:443 is closed", |m| m.remove("NetworkPolicy", "pre-to-callbacks")),
        ("to 169.254.169.254:80 is open", |m| {
            m.at("NetworkPolicy", "pre-to-callbacks", "/spec/egress/0/to/0/ipBlock")["except"] = json!([]);
        }),
        ("from stranger in default to a newcomer:8080 is open", |m| m.remove("NetworkPolicy", "closed")),
        ("from stranger in default to mongo:27017 is open", |m| {
            m.at("NetworkPolicy", "mongo-from-services", "/spec/ingress/0/from").as_array_mut().unwrap()[0] =
                json!({ "namespaceSelector": {} });
        }),
    ];
    let base = Manifests::rendered("deploy/base");
    for (number, (said, slip)) in slips.iter().enumerate() {
        let mut slipped = base.clone();
        slip(&mut slipped);
        let problems = checks::problems(&slipped).join("\n");
        assert!(problems.contains(said), "slip {number} ({said}) is not noticed: {problems:?}");
    }
    let keda = Manifests::rendered("deploy/overlays/keda");
    let slips: &[Slip] = &[
        ("asks for", |m| {
            m.set(
                "ScaledObject",
                "infer",
                "/spec/triggers/0/metadata/query",
                &json!("{\"stage\": \"infer\"}"),
            );
        }),
        ("scales", |m| m.set("ScaledObject", "post", "/spec/scaleTargetRef/name", &json!("pre"))),
        ("has no login", |m| m.remove("TriggerAuthentication", "mongo")),
        ("keda-operator in keda to mongo:27017 is closed", |m| m.remove("NetworkPolicy", "mongo-from-keda")),
    ];
    for (said, slip) in slips {
        let mut slipped = keda.clone();
        slip(&mut slipped);
        let problems = checks::problems(&slipped).join("\n");
        assert!(problems.contains(said), "{said}: {problems:?}");
    }
}

#[test]
fn overlays_do_what_they_are_named_for() {
    let gpu = Manifests::rendered("deploy/overlays/gpu");
    let infer = &gpu.named("Deployment", "infer").unwrap()["spec"];
    assert_eq!(infer["strategy"]["rollingUpdate"], json!({ "maxSurge": 0, "maxUnavailable": 1 }));
    let container = &infer["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], "1");
    assert_eq!(container["image"], concat!("boxreel/infer:", env!("CARGO_PKG_VERSION"), "-cuda"));
    assert!(items(&container["env"]).contains(&json!({ "name": "BOXREEL_DEVICE", "value": "cuda" })));
    assert!(infer["template"]["spec"]["nodeSelector"].is_object());

    let alone = Manifests::rendered("deploy/overlays/single-node");
    let claim = &alone.named("PersistentVolumeClaim", "boxreel").unwrap()["spec"];
    assert_eq!(claim["accessModes"], json!(["ReadWriteOnce"]), "what every local provisioner gives");

    let idle = Manifests::rendered("deploy/overlays/debug");
    for pods in idle.pods().iter().filter(|pods| SERVICES.contains(&pods.name)) {
        let container = &pods.spec["containers"][0];
        assert_eq!(container["command"][0], "sh");
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            assert!(container[probe].is_null(), "{}: {probe}", pods.name);
        }
    }

    let external = Manifests::rendered("deploy/overlays/external-mongo");
    assert!(external.documents.iter().all(|document| {
        document["metadata"]["labels"]["app.kubernetes.io/component"] != "mongo"
            && name(document) != "to-mongo"
    }));
}

#[test]
fn the_base_is_found_where_the_original_had_it() {
    let base = Manifests::rendered("deploy/base");
    assert_eq!(base.named("Service", "pre").unwrap()["spec"]["ports"][0]["nodePort"], 30232);
    assert_eq!(base.named("Service", "pre").unwrap()["spec"]["type"], "NodePort");
    let volume = &base.named("PersistentVolume", "boxreel").unwrap()["spec"];
    assert!(volume["nfs"]["server"].is_string() && volume["accessModes"] == json!(["ReadWriteMany"]));
    // `kubectl apply -f deploy/base` takes every file of the folder that ends in .yaml: each has to be a manifest, and all
    // of them the base.
    let mut applied = BTreeSet::new();
    let mut first = None;
    let mut paths: Vec<_> =
        root().join("deploy/base").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "yaml")) {
        for document in yaml(&std::fs::read_to_string(path).unwrap()) {
            let key = (text(&document["kind"]).to_owned(), name(&document).to_owned());
            first.get_or_insert(key.clone());
            assert!(applied.insert(key), "{document}");
        }
    }
    assert_eq!(first.unwrap().0, "Namespace", "what the others are put into");
    let rendered =
        base.documents.iter().map(|document| (text(&document["kind"]).to_owned(), name(document).to_owned()));
    assert_eq!(applied, rendered.collect());
    for name in [
        "pre-deploy",
        "pre-PV",
        "pre-PVC",
        "pre-SVC",
        "infer-deploy",
        "post-deploy",
        "clusterrole",
        "clusterrolebinding",
    ] {
        assert!(root().join(format!("deploy/base/{name}.yaml")).exists(), "{name}");
    }
}

#[test]
fn images_are_what_manifests_and_scripts_say() {
    let base = Manifests::rendered("deploy/base");
    let toolchain = file("rust-toolchain.toml");
    let restart = file("scripts/restart_service.sh");
    assert!(restart.contains("boxreel/$service") && restart.contains("Dockerfile.$service"));
    let mut beginnings = BTreeSet::new();
    for (number, service) in SERVICES.iter().enumerate() {
        let dockerfile = file(&format!("Dockerfile.{service}"));
        let value = |word: &str| {
            let line = dockerfile.lines().filter_map(|line| line.strip_prefix(word)).next_back();
            line.unwrap_or_else(|| panic!("Dockerfile.{service} has no {word}")).trim().to_owned()
        };
        let pods = base.pods_of(service).unwrap();
        let context = &pods.spec["securityContext"];
        assert_eq!(value("USER "), format!("{}:{}", context["runAsUser"], context["runAsGroup"]));
        assert_eq!(value("EXPOSE "), pods.spec["containers"][0]["ports"][0]["containerPort"].to_string());
        assert_eq!(value("ENTRYPOINT "), format!("[\"{service}\"]"));
        assert!(value("HEALTHCHECK ").ends_with(&format!("CMD [\"{service}\", \"health\"]")));
        assert_eq!(value("ARG VERSION="), env!("CARGO_PKG_VERSION"));
        let rust = value("ARG RUST=");
        assert!(toolchain.contains(&format!("channel = \"{rust}\"")), "{rust} is not the toolchain's");
        // From the first stage to the end of the build: what one image has built, the next finds built.
        let (from, to) =
            (dockerfile.find("ARG RUST=").unwrap(), dockerfile.find("strip --strip-debug").unwrap());
        beginnings.insert(dockerfile[from..to].to_owned());
        let script = file(&format!("scripts/micro{}_restart.sh", number + 1));
        assert!(script.contains(&format!("restart_service.sh\" {service}\n")), "{script}");
    }
    assert_eq!(beginnings.len(), 1, "the builds have grown apart");
}

#[test]
fn the_secret_is_made_whole() {
    let made = Command::new(root().join("scripts/make_secret.sh")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = yaml(&String::from_utf8(made.stdout).unwrap()).remove(0);
    let example = yaml(&file("deploy/secret.example.yaml")).remove(0);
    let values = |secret: &Value| secret["stringData"].as_object().unwrap().clone();
    let (made, example) = (values(&made), values(&example));
    assert_eq!(made.keys().collect::<Vec<_>>(), example.keys().collect::<Vec<_>>());
    let words: BTreeSet<&str> = made.values().map(text).collect();
    assert_eq!(words.len(), made.len(), "each is a word of its own");
    for (key, value) in &made {
        assert!(!text(value).contains('{') && text(value).len() >= 48, "{key}");
    }
    for uri in ["mongo-uri", "keda-mongo-uri"] {
        assert!(text(&made[uri]).contains(&format!("boxreel:{}@mongo", text(&made["mongo-password"]))));
    }
    let uri = "mongodb://me:p\"\\w@db.example:27017/?a=b&c=d";
    let made = Command::new(root().join("scripts/make_secret.sh")).env("MONGO_URI", uri).output().unwrap();
    let made = values(&yaml(&String::from_utf8(made.stdout).unwrap())[0]);
    assert_eq!((&made["mongo-uri"], &made["keda-mongo-uri"]), (&json!(uri), &json!(uri)));
}
