//! What schemas do not see: whether the documents fit each other and the programs.

use std::collections::BTreeSet;

use common::segment::Stage;
use serde_json::{Value, json};

use super::manifests::{Manifests, Pods, SERVICES, items, name, selects, text, yaml};
use super::{manifests, network, settings};

/// Kinds that live in no namespace.
const GLOBAL: [&str; 3] = ["Namespace", "ClusterRole", "PersistentVolume"];

/// The stages each service works on.
pub fn service_of(stage: Stage) -> &'static str {
    match stage {
        Stage::Index | Stage::Decode => "pre",
        Stage::Detect => "infer",
        Stage::Render | Stage::Assemble => "post",
    }
}

/// Everything that is wrong with an overlay, in words.
pub fn problems(manifests: &Manifests) -> Vec<String> {
    let mut wrong = Wrong(Vec::new());
    names(manifests, &mut wrong);
    accounts(manifests, &mut wrong);
    for pods in manifests.pods() {
        volumes(manifests, pods, &mut wrong);
        fences(pods, &mut wrong);
    }
    claim(manifests, &mut wrong);
    scaling(manifests, &mut wrong);
    let mut dials = Vec::new();
    for service in SERVICES {
        match settings::read(manifests, service) {
            Ok(told) => wired(manifests, &told, &mut dials, &mut wrong),
            Err(more) => wrong.0.extend(more),
        }
    }
    // Who connects to whom is only known where the settings are.
    if wrong.0.is_empty() {
        wrong.0 = network::problems(manifests, &dials);
    }
    wrong.0
}

struct Wrong(Vec<String>);

impl Wrong {
    fn unless(&mut self, right: bool, what: impl Into<String>) {
        if !right {
            self.0.push(what.into());
        }
    }
}

fn names(manifests: &Manifests, wrong: &mut Wrong) {
    let mut seen = BTreeSet::new();
    for document in &manifests.documents {
        let (kind, name) = (text(&document["kind"]), name(document));
        wrong.unless(seen.insert((kind, name)), format!("{kind} {name} is there twice"));
        let place = &document["metadata"]["namespace"];
        let right = if GLOBAL.contains(&kind) { place.is_null() } else { place == "boxreel" };
        wrong.unless(right, format!("{kind} {name} is in the namespace {place}"));
        let labels = &document["metadata"]["labels"];
        wrong.unless(labels["app.kubernetes.io/part-of"] == "boxreel", format!("{kind} {name} lacks labels"));
        let selector = match kind {
            "Service" => &json!({ "matchLabels": document["spec"]["selector"] }),
            "PodDisruptionBudget" => &document["spec"]["selector"],
            "NetworkPolicy" => &document["spec"]["podSelector"],
            "Deployment" | "StatefulSet" => {
                let (selector, template) = (&document["spec"]["selector"], &document["spec"]["template"]);
                let mut spread = items(&template["spec"]["topologySpreadConstraints"]).iter();
                let own = |selector| selects(selector, &template["metadata"]["labels"]);
                let right = own(selector) && spread.all(|spread| own(&spread["labelSelector"]));
                wrong.unless(right, format!("{kind} {name} selects other pods than its own"));
                continue;
            }
            _ => continue,
        };
        let mut pods = manifests.pods().into_iter();
        wrong.unless(
            pods.any(|pods| selects(selector, pods.labels)),
            format!("{kind} {name} selects no pods"),
        );
    }
}

fn accounts(manifests: &Manifests, wrong: &mut Wrong) {
    let mut may_scale = BTreeSet::new();
    for binding in manifests.of_kind("RoleBinding") {
        let role = manifests.named("ClusterRole", text(&binding["roleRef"]["name"]));
        wrong.unless(role.is_some(), format!("RoleBinding {} is to no role", name(binding)));
        for subject in items(&binding["subjects"]) {
            let account = manifests.named("ServiceAccount", text(&subject["name"]));
            let right =
                account.is_some() && subject["kind"] == "ServiceAccount" && subject["namespace"] == "boxreel";
            wrong.unless(right, format!("RoleBinding {} is for nobody of ours", name(binding)));
            may_scale.insert(text(&subject["name"]));
        }
    }
    for role in manifests.of_kind("ClusterRole") {
        let rules = json!([
            { "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": SERVICES, "verbs": ["get"] },
            { "apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": SERVICES,
              "verbs": ["get", "patch", "update"] },
        ]);
        wrong.unless(
            role["rules"] == rules,
            format!("ClusterRole {} allows other things than scaling", name(role)),
        );
    }
    for Pods { name, spec, .. } in manifests.pods() {
        let account = text(&spec["serviceAccountName"]);
        wrong.unless(
            manifests.named("ServiceAccount", account).is_some(),
            format!("{name} has the ServiceAccount {account:?}, which is not there"),
        );
        let token = spec["automountServiceAccountToken"] == true;
        wrong.unless(
            token == may_scale.contains(account),
            format!("{name} should have its account's token exactly if it may scale"),
        );
    }
}

fn volumes(manifests: &Manifests, Pods { name, spec, .. }: Pods<'_>, wrong: &mut Wrong) {
    let containers = items(&spec["containers"]);
    let mounted: BTreeSet<&str> = containers
        .iter()
        .flat_map(|container| items(&container["volumeMounts"]))
        .map(|mount| text(&mount["name"]))
        .collect();
    let mut there: BTreeSet<&str> =
        items(&spec["volumes"]).iter().map(|volume| text(&volume["name"])).collect();
    let set = manifests.named("StatefulSet", name);
    let claims = set.map(|set| items(&set["spec"]["volumeClaimTemplates"])).unwrap_or_default();
    there.extend(claims.iter().map(manifests::name));
    wrong.unless(mounted == there, format!("{name} mounts {mounted:?} and has {there:?}"));
    for volume in items(&spec["volumes"]) {
        let (claim, map) = (&volume["persistentVolumeClaim"]["claimName"], &volume["configMap"]["name"]);
        let is_there = |kind, name: &Value| name.is_null() || manifests.named(kind, text(name)).is_some();
        let claim = is_there("PersistentVolumeClaim", claim);
        wrong.unless(claim && is_there("ConfigMap", map), format!("{name}: {volume} is of nothing there"));
        let secret = &volume["secret"];
        let known = secret.is_null()
            || secret["secretName"] == manifests::name(&manifests.secret)
                && items(&secret["items"])
                    .iter()
                    .all(|item| manifests.secret["stringData"][text(&item["key"])].is_string());
        wrong.unless(known, format!("{name}: {secret} is not in the Secret"));
    }
    for source in containers.iter().flat_map(|container| items(&container["envFrom"])) {
        let map = text(&source["configMapRef"]["name"]);
        wrong.unless(manifests.named("ConfigMap", map).is_some(), format!("{name}: no ConfigMap {map:?}"));
    }
}

/// What keeps a pod from doing harm, and what tells Kubernetes how it is.
fn fences(Pods { name, spec, .. }: Pods<'_>, wrong: &mut Wrong) {
    let pod = &spec["securityContext"];
    let right = pod["runAsNonRoot"] == true && pod["seccompProfile"]["type"] == "RuntimeDefault";
    wrong.unless(right && pod["runAsUser"].as_u64() > Some(0), format!("{name} is not fenced in as a pod"));
    for container in items(&spec["containers"]) {
        let context = &container["securityContext"];
        let right = context["readOnlyRootFilesystem"] == true
            && context["allowPrivilegeEscalation"] == false
            && context["capabilities"]["drop"] == json!(["ALL"]);
        wrong.unless(right, format!("{name} is not fenced in as a container"));
        for limit in ["cpu", "memory"] {
            let resources = &container["resources"];
            let right = resources["requests"][limit].is_string() && resources["limits"][limit].is_string();
            wrong.unless(right, format!("{name} has no bounds on {limit}"));
        }
        let ports: Vec<&str> = items(&container["ports"]).iter().map(|port| text(&port["name"])).collect();
        // Idle containers (components/debug) have no health to ask for.
        let probes = ["startupProbe", "readinessProbe", "livenessProbe"].map(|probe| &container[probe]);
        for probe in probes.into_iter().filter(|_| container["command"].is_null()) {
            let how = if probe["httpGet"].is_object() { &probe["httpGet"] } else { &probe["tcpSocket"] };
            wrong.unless(
                ports.contains(&text(&how["port"])),
                format!("{name} is probed at no port of its own: {probe}"),
            );
        }
    }
}

/// The shared volume's claim, and the volume where we name one.
fn claim(manifests: &Manifests, wrong: &mut Wrong) {
    let Some(claim) = manifests.named("PersistentVolumeClaim", "boxreel").map(|claim| &claim["spec"]) else {
        return wrong.unless(false, "the shared volume is not claimed");
    };
    if claim["volumeName"].is_null() {
        return wrong.unless(
            manifests.of_kind("PersistentVolume").next().is_none() && claim["storageClassName"].is_null(),
            "the claim leaves the volume to the cluster, and does not",
        );
    }
    let volume =
        manifests.named("PersistentVolume", text(&claim["volumeName"])).map(|volume| &volume["spec"]);
    let fits = volume.is_some_and(|volume| {
        volume["storageClassName"] == claim["storageClassName"]
            && volume["accessModes"] == claim["accessModes"]
            && volume["capacity"]["storage"] == claim["resources"]["requests"]["storage"]
    });
    wrong.unless(fits, "the claim and the volume do not fit");
}

/// What changes numbers of replicas.
fn scaling(manifests: &Manifests, wrong: &mut Wrong) {
    for service in SERVICES {
        // Applied again, a number here would undo a scaling.
        let deployment = manifests.named("Deployment", service);
        let free = deployment.is_some_and(|deployment| deployment["spec"]["replicas"].is_null());
        wrong.unless(free, format!("{service} is held to a number of replicas"));
    }
    for kind in ["HorizontalPodAutoscaler", "ScaledObject"] {
        let scalers: BTreeSet<&str> = manifests.of_kind(kind).map(name).collect();
        wrong.unless(
            scalers.is_empty() || scalers == BTreeSet::from(SERVICES),
            format!("{kind} for {scalers:?}"),
        );
        for scaler in manifests.of_kind(kind) {
            let target = text(&scaler["spec"]["scaleTargetRef"]["name"]);
            wrong.unless(target == name(scaler), format!("{kind} {} scales {target:?}", name(scaler)));
        }
    }
    for scaler in manifests.of_kind("ScaledObject") {
        let triggers = items(&scaler["spec"]["triggers"]);
        let asked: BTreeSet<(String, String)> = triggers
            .iter()
            .map(|trigger| {
                let query: Value = yaml(text(&trigger["metadata"]["query"])).remove(0);
                (text(&trigger["metadata"]["collection"]).to_owned(), text(&query["stage"]).to_owned())
            })
            .collect();
        let wanted: BTreeSet<(String, String)> = Stage::ALL
            .into_iter()
            .filter(|stage| service_of(*stage) == name(scaler))
            .map(|stage| {
                let whole = matches!(stage, Stage::Index | Stage::Assemble);
                (if whole { "requests" } else { "segments" }.to_owned(), stage.as_str().to_owned())
            })
            .collect();
        wrong.unless(
            asked == wanted,
            format!("ScaledObject {} asks for {asked:?}, not {wanted:?}", name(scaler)),
        );
        for trigger in triggers {
            let login = manifests.named("TriggerAuthentication", text(&trigger["authenticationRef"]["name"]));
            let keys = login.map(|login| items(&login["spec"]["secretTargetRef"])).unwrap_or_default();
            let known = keys.iter().all(|key| manifests.secret["stringData"][text(&key["key"])].is_string());
            wrong.unless(!keys.is_empty() && known, format!("ScaledObject {} has no login", name(scaler)));
        }
    }
}

/// Ports, URLs, paths and images, against what the program was told.
fn wired(
    manifests: &Manifests,
    told: &settings::Told,
    dials: &mut Vec<(String, String, u16)>,
    wrong: &mut Wrong,
) {
    let service = told.service;
    let Some(Pods { annotations, spec, .. }) = manifests.pods_of(service) else { return };
    let container = &spec["containers"][0];
    wrong.unless(
        port_of(spec, "http") == Some(told.port),
        format!("{service} listens at {}, not at http", told.port),
    );
    wrong.unless(
        annotations["prometheus.io/port"] == told.port.to_string().as_str(),
        format!("{service} is scraped at another port"),
    );
    let mut mounts = items(&container["volumeMounts"]).iter();
    let data = mounts.find(|mount| mount["mountPath"] == told.data_dir.as_str()).map(|mount| &mount["name"]);
    let mut volumes = items(&spec["volumes"]).iter();
    let data = volumes.find(|volume| Some(&volume["name"]) == data);
    let right = data.is_some_and(|volume| volume["persistentVolumeClaim"]["claimName"] == "boxreel");
    wrong.unless(right, format!("{service} keeps its files in {}, off the shared volume", told.data_dir));
    let grace = spec["terminationGracePeriodSeconds"].as_u64();
    wrong.unless(
        grace > Some(2 * told.shutdown_seconds + 10),
        format!("{service} is killed before it has ended by itself"),
    );
    let image = format!("boxreel/{service}:{}", env!("CARGO_PKG_VERSION"));
    let right = text(&container["image"]).starts_with(&image) && container["name"] == service;
    wrong.unless(right, format!("{service} runs {}, not {image}", container["image"]));

    for (host, port) in &told.dials {
        let Some(target) = manifests.named("Service", host) else {
            // components/external-mongo: the Secret of those who use it names another.
            let elsewhere = host == "mongo" && manifests.pods_of("mongo").is_none();
            wrong.unless(elsewhere, format!("{service} is to reach {host}, and there is no such Service"));
            continue;
        };
        let selector = json!({ "matchLabels": target["spec"]["selector"] });
        let pods = manifests.pods().into_iter().find(|pods| selects(&selector, pods.labels));
        let open = items(&target["spec"]["ports"]).iter().find(|open| open["port"] == *port);
        let inner = pods.zip(open).and_then(|(pods, open)| port_of(pods.spec, text(&open["targetPort"])));
        match pods.zip(inner) {
            Some((pods, inner)) => dials.push((service.to_owned(), pods.name.to_owned(), inner)),
            None => wrong.unless(false, format!("{service} is to reach {host}:{port}, which leads nowhere")),
        }
    }
}

/// The number of a container's port by its name.
fn port_of(spec: &Value, name: &str) -> Option<u16> {
    let ports = items(&spec["containers"]).iter().flat_map(|container| items(&container["ports"]));
    let port = ports.into_iter().find(|port| port["name"] == name)?;
    u16::try_from(port["containerPort"].as_u64()?).ok()
}
