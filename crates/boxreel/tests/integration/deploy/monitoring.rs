//! Alerts, dashboard, and probes, against the routes and metrics of the real programs.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testbed::House;

use super::manifests::{Manifests, file, items, text, yaml};

/// The names of metrics in an expression of Prometheus.
fn metrics(expression: &str) -> impl Iterator<Item = String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("boxreel_")).map(|word| {
        let ending = ["_bucket", "_sum", "_count"].into_iter().find_map(|ending| word.strip_suffix(ending));
        ending.unwrap_or(word).to_owned()
    })
}

#[tokio::test]
async fn what_is_asked_of_the_programs_is_there() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let house = House::start();
    let url = &house.url;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("{url}{path}")).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };

    // All services' probes and metrics are the same code as this program's.
    let base = Manifests::rendered("deploy/base");
    for pods in base.pods() {
        let container = &pods.spec["containers"][0];
        let mut paths: Vec<&Value> = ["startupProbe", "readinessProbe", "livenessProbe"]
            .map(|probe| &container[probe]["httpGet"]["path"])
            .into_iter()
            .chain([&pods.annotations["prometheus.io/path"]])
            .collect();
        paths.retain(|path| !path.is_null());
        for path in paths {
            assert_eq!(get(text(path)).await.0, 200, "{}: {path}", pods.name);
        }
    }
    assert_eq!(get("/healthy").await.0, 404, "a path that is not there is told apart");

    let shown = get("/metrics").await.1;
    let there: BTreeSet<&str> =
        shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let alerts = yaml(&file("deploy/monitoring/alerts.yaml")).remove(0);
    let rules: Vec<&Value> =
        items(&alerts["groups"]).iter().flat_map(|group| items(&group["rules"])).collect();
    let dashboard: Value = serde_json::from_str(&file("deploy/monitoring/grafana-dashboard.json")).unwrap();
    let panels = items(&dashboard["panels"]).iter().flat_map(|panel| items(&panel["targets"]));
    let expressions: Vec<&str> = rules.iter().copied().chain(panels).map(|one| text(&one["expr"])).collect();
    assert!(rules.len() >= 5 && expressions.len() >= rules.len() + 10, "{expressions:?}");
    for expression in expressions {
        let names: Vec<String> = metrics(expression).collect();
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(there.contains(&*name), "{name} of {expression:?} is no metric; there are {there:?}");
        }
    }
    let guide = file("docs/operations.md");
    for rule in rules {
        let name = text(&rule["alert"]);
        assert!(rule["annotations"]["summary"].is_string() && guide.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn metrics_are_found_in_expressions() {
    let expression =
        r#"histogram_quantile(0.9, sum by (le) (rate(boxreel_a_bucket{stage="x"}[5m]))) > boxreel_b_total"#;
    assert_eq!(json!(metrics(expression).collect::<Vec<_>>()), json!(["boxreel_a", "boxreel_b_total"]));
}
