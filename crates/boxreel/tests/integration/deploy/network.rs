//! Who may talk to whom, by the NetworkPolicies, against who has to.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::manifests::{Manifests, items, selects, text};

/// An end of a connection.
#[derive(Clone)]
struct End {
    name: String,
    what: What,
}

#[derive(Clone)]
enum What {
    /// One of our pods.
    Ours(Value),
    /// A pod with these labels in another namespace.
    Other { namespace: &'static str, labels: Value },
    /// Anything by its address.
    Address(Ipv4Addr),
}

fn other(namespace: &'static str, name: &'static str) -> End {
    let labels = json!({ "app.kubernetes.io/name": name });
    End { name: format!("{name} in {namespace}"), what: What::Other { namespace, labels } }
}

fn address(text: &str) -> End {
    End { name: text.to_owned(), what: What::Address(text.parse().unwrap()) }
}

fn within(cidr: &str, address: Ipv4Addr) -> bool {
    // Policies may name ranges of IPv6 beside.
    let Some((base, bits)) = cidr.split_once('/').filter(|(base, _)| !base.contains(':')) else {
        return false;
    };
    let (base, bits): (Ipv4Addr, u32) = (base.parse().unwrap(), bits.parse().unwrap());
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    base.to_bits() & mask == address.to_bits() & mask
}

/// Whether one `from` or `to` of a rule means this end.
fn means(peer: &Value, end: &End) -> bool {
    match &end.what {
        What::Address(address) => {
            let block = &peer["ipBlock"];
            within(text(&block["cidr"]), *address)
                && !items(&block["except"]).iter().any(|except| within(text(except), *address))
        }
        What::Ours(labels) => {
            let here = json!({ "kubernetes.io/metadata.name": "boxreel" });
            peer["ipBlock"].is_null()
                && (peer["namespaceSelector"].is_null() || selects(&peer["namespaceSelector"], &here))
                && selects(&peer["podSelector"], labels)
        }
        What::Other { namespace, labels } => {
            let there = json!({ "kubernetes.io/metadata.name": namespace });
            peer["namespaceSelector"].is_object()
                && selects(&peer["namespaceSelector"], &there)
                && selects(&peer["podSelector"], labels)
        }
    }
}

/// Whether the policies of one direction let `end` be the other end of a pod with `labels`.
fn open(manifests: &Manifests, direction: &str, labels: &Value, end: &End, port: u16) -> bool {
    let (kind, side) = if direction == "Egress" { ("egress", "to") } else { ("ingress", "from") };
    let mut policies = manifests
        .of_kind("NetworkPolicy")
        .map(|policy| &policy["spec"])
        .filter(|policy| items(&policy["policyTypes"]).contains(&direction.into()))
        .filter(|policy| selects(&policy["podSelector"], labels))
        .peekable();
    let unrestricted = policies.peek().is_none();
    unrestricted
        || policies.flat_map(|policy| items(&policy[kind])).any(|rule| {
            let ports = items(&rule["ports"]);
            (ports.is_empty() || ports.iter().any(|open| open["port"] == port))
                && (rule[side].is_null() || items(&rule[side]).iter().any(|peer| means(peer, end)))
        })
}

/// Whether a connection is let through at both ends.
fn passes(manifests: &Manifests, from: &End, to: &End, port: u16) -> bool {
    let leaves = match &from.what {
        What::Ours(labels) => open(manifests, "Egress", labels, to, port),
        _ => true,
    };
    let enters = match &to.what {
        What::Ours(labels) => open(manifests, "Ingress", labels, from, port),
        _ => true,
    };
    leaves && enters
}

/// What the policies close that has to be open, and the other way round. `dials` are the connections that the settings ask
/// for: service, the pods it asks, their port.
pub fn problems(manifests: &Manifests, dials: &[(String, String, u16)]) -> Vec<String> {
    let pod = |name: &str| {
        let labels = manifests.pods_of(name).map(|pods| pods.labels.clone());
        labels.map(|labels| End { name: name.to_owned(), what: What::Ours(labels) })
    };
    let our = |name: &str| pod(name).unwrap_or_else(|| panic!("no pods {name}"));
    let (user, web) = (address("203.0.113.7"), address("93.184.216.34"));
    let api = address("10.96.0.1");
    let (prometheus, dns) = (other("monitoring", "prometheus"), other("kube-system", "coredns"));
    let (collector, stranger) =
        (other("observability", "opentelemetry-collector"), other("default", "stranger"));

    // A pod of our namespace that no other policy knows.
    let newcomer = End { name: "a newcomer".to_owned(), what: What::Ours(json!({})) };
    let mut open = vec![
        (user.clone(), our("pre"), 8080),
        (our("pre"), api.clone(), 443),
        (our("post"), api.clone(), 443),
        (our("pre"), web.clone(), 443),
        (prometheus.clone(), our("pre"), 8080),
        (prometheus.clone(), our("infer"), 8081),
        (prometheus.clone(), our("post"), 8082),
    ];
    let mut closed = vec![
        (user.clone(), our("infer"), 8081),
        (user.clone(), our("post"), 8082),
        (stranger.clone(), our("infer"), 8081),
        (stranger.clone(), our("post"), 8082),
        (our("infer"), api.clone(), 443),
        (our("infer"), web.clone(), 443),
        (our("post"), web.clone(), 443),
        // What a callback's sender must not reach through us.
        (our("pre"), address("10.1.2.3"), 80),
        (our("pre"), address("169.254.169.254"), 80),
        (our("infer"), our("post"), 8082),
        (our("post"), our("infer"), 8081),
        (our("pre"), our("post"), 8082),
        (our("pre"), stranger.clone(), 443),
        (newcomer.clone(), web.clone(), 443),
        (stranger.clone(), newcomer, 8080),
    ];
    for service in ["pre", "infer", "post"] {
        open.push((our(service), dns.clone(), 53));
        open.push((our(service), collector.clone(), 4318));
    }
    if let Some(mongo) = pod("mongo") {
        closed.extend([
            (user, mongo.clone(), 27017),
            (stranger, mongo.clone(), 27017),
            (mongo.clone(), web, 443),
            (mongo.clone(), our("pre"), 8080),
            (mongo.clone(), api, 443),
        ]);
        let keda = other("keda", "keda-operator");
        let asks = manifests.of_kind("ScaledObject").next().is_some();
        if asks { &mut open } else { &mut closed }.push((keda, mongo, 27017));
    } else {
        // The address that the component stands in with.
        open.extend(["pre", "infer", "post"].map(|service| (our(service), address("192.0.2.10"), 27017)));
    }
    for (from, to, port) in dials {
        match pod(to) {
            Some(to) => open.push((our(from), to, *port)),
            None => return vec![format!("{from} is to reach {to}, and there are no such pods")],
        }
    }
    let judge = |ways: Vec<(End, End, u16)>, wanted: bool| {
        let wrong =
            ways.into_iter().filter(move |(from, to, port)| passes(manifests, from, to, *port) != wanted);
        let word = if wanted { "closed" } else { "open" };
        wrong.map(move |(from, to, port)| {
            format!("the way from {} to {}:{port} is {word}", from.name, to.name)
        })
    };
    judge(open, true).chain(judge(closed, false)).collect()
}
