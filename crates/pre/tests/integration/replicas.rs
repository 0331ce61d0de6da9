//! Replicas over the interface and on the page. The Kubernetes API is a stand-in that answers what it is told to: what
//! a real one does with our requests is tested in `scale`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use pre::Scaling;
use reqwest::redirect::Policy;
use scale::Cluster;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::house::{TestApp, json as body};

const ADMIN: &str = "adm1n";

/// A kubeconfig for the API server at `url`.
pub fn kubeconfig(url: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: here, cluster: {{server: '{url}'}}}}]\n\
         users: [{{name: me, user: {{}}}}]\n\
         contexts: [{{name: here, context: {{cluster: here, user: me}}}}]\n"
    )
}

/// What stands in for the API server.
#[derive(Clone)]
struct Standin(Arc<Mutex<Deployments>>);

struct Deployments {
    /// How many replicas there should be, by name.
    desired: HashMap<String, u64>,
    /// The status that changes are refused with.
    refusal: Option<u16>,
}

impl Standin {
    async fn start() -> (Self, Cluster, AbortOnDropHandle<()>) {
        let desired = ["pre", "infer", "post"].map(|name| (name.to_owned(), 1)).into();
        let this = Self(Arc::new(Mutex::new(Deployments { desired, refusal: None })));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let base = "/apis/apps/v1/namespaces/boxreel/deployments/{name}";
        let router = Router::new()
            .route(base, get(Self::get))
            .route(&format!("{base}/scale"), patch(Self::scale))
            .with_state(this.clone());
        let stop = tokio_util::sync::CancellationToken::new();
        let server = tokio::spawn(common::service::serve(listener, router, stop, std::time::Duration::ZERO));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, kubeconfig(&url)).unwrap();
        let cluster = Cluster::of_kubeconfig(&file, None).await.unwrap();
        (this, cluster, AbortOnDropHandle::new(server))
    }

    /// Refuses all changes from now on.
    fn refuse(&self, status: u16) {
        self.0.lock().unwrap().refusal = Some(status);
    }

    fn desired(&self, name: &str) -> u64 {
        self.0.lock().unwrap().desired[name]
    }

    fn answer(status: u16) -> Response {
        let told = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": "Test",
            "message": "internal words of 10.0.0.7",
        });
        (StatusCode::from_u16(status).unwrap(), axum::Json(told)).into_response()
    }

    async fn get(State(this): State<Self>, Path(name): Path<String>) -> Response {
        let Some(replicas) = this.0.lock().unwrap().desired.get(&name).copied() else {
            return Self::answer(404);
        };
        axum::Json(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name, "generation": 1 },
            "spec": { "replicas": replicas, "selector": {}, "template": {} },
            "status": {
                "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1
            },
        }))
        .into_response()
    }

    async fn scale(
        State(this): State<Self>,
        Path(name): Path<String>,
        axum::Json(patch): axum::Json<Value>,
    ) -> Response {
        let mut state = this.0.lock().unwrap();
        if let Some(status) = state.refusal {
            return Self::answer(status);
        }
        let replicas = patch["spec"]["replicas"].as_u64().unwrap();
        state.desired.insert(name.clone(), replicas);
        axum::Json(json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": name }, "spec": { "replicas": replicas },
        }))
        .into_response()
    }
}

async fn house(scaling: Scaling, arguments: &[&str]) -> TestApp {
    TestApp::start_scaled(scaling, arguments).await
}

async fn put(house: &TestApp, service: &str, body: &str) -> reqwest::Response {
    let request = house.request("PUT", &format!("/v1/workers/{service}"));
    request.header("Content-Type", "application/json").body(body.to_owned()).send().await.unwrap()
}

#[tokio::test]
async fn replicas_are_shown_and_changed_by_whoever_has_the_admin_token() {
    let (cluster, way, _server) = Standin::start().await;
    let arguments = ["--admin-token", ADMIN, "--max-replicas", "5", "--api-token", "us3r"];
    let house = house(Scaling::by(way), &arguments).await.with_token("us3r");
    let shown = house.get_json("/v1/workers", 200).await;
    assert_eq!(shown["scaling"], json!({ "place": "cluster", "message": null, "max_replicas": 5 }));
    assert_eq!(
        shown["services"][1],
        json!({
            "name": "infer", "stages": ["detect"], "workers": 1, "slots": 2,
            "replicas": { "desired": 1, "ready": 1, "up_to_date": 1, "available": 1, "settled": true },
        })
    );
    assert_eq!(put(&house, "pre", "{\"replicas\": 3}").await.status(), 401, "the API token will not do");
    assert_eq!(cluster.desired("pre"), 1);

    let house = house.with_token(ADMIN);
    let told = body(put(&house, "pre", "{\"replicas\": 3}").await, 200).await;
    assert_eq!(told, json!({ "desired": 3, "ready": 1, "up_to_date": 1, "available": 1, "settled": false }));
    assert_eq!(cluster.desired("pre"), 3);
    let house = house.with_token("us3r");
    let shown = house.get_json("/v1/workers", 200).await;
    assert_eq!(shown["services"][0]["replicas"]["desired"], 3, "what was known before is not told any more");

    let house = house.with_token(ADMIN);
    for (service, sent, status) in [
        ("mongo", "{\"replicas\": 3}", 404),
        ("pre", "{\"replicas\": 6}", 422),
        ("pre", "{\"replicas\": 0}", 422),
        ("pre", "{\"replicas\": -1}", 422),
        ("pre", "{\"replicas\": \"3\"}", 422),
        ("pre", "{}", 422),
        ("pre", "{\"replicas\": 3, \"cpus\": 4}", 422),
        ("pre", "replicas=3", 400),
        ("pre", "", 400),
        ("infer", "{\"replicas\": 0}", 200),
    ] {
        let answer = body(put(&house, service, sent).await, status).await;
        assert!(status == 200 || answer["error"]["message"].is_string(), "{sent}: {answer}");
    }
    let form = house.request("PUT", "/v1/workers/pre").header("Content-Type", "text/plain").body("3");
    assert_eq!(form.send().await.unwrap().status(), 415);
    let long = " ".repeat(5000);
    assert_eq!(put(&house, "pre", &long).await.status(), 413);
    assert_eq!((cluster.desired("pre"), cluster.desired("infer")), (3, 0));
}

#[tokio::test]
async fn what_the_cluster_refuses_is_said_without_its_own_words() {
    let (cluster, way, server) = Standin::start().await;
    let house = house(Scaling::by(way), &["--admin-token", ADMIN]).await.with_token(ADMIN);
    for (refusal, status, word) in [
        (403, 403, "clusterrole.yaml"),
        (404, 404, "no such Deployment"),
        (409, 409, "something else"),
        (422, 409, "a rule of the cluster"),
        (401, 503, "does not answer"),
    ] {
        cluster.refuse(refusal);
        let answer = body(put(&house, "pre", "{\"replicas\": 3}").await, status).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{message}");
        assert!(!message.contains("internal") && !message.contains("127.0.0.1"), "{message}");
    }
    drop(server);
    let answer = put(&house, "pre", "{\"replicas\": 3}").await;
    assert!(answer.headers().contains_key("retry-after"));
    let answer = body(answer, 503).await;
    assert!(!answer.to_string().contains("127.0.0.1"), "{answer}");
    let shown = house.get_json("/v1/workers", 200).await;
    assert_eq!(shown["services"][0]["replicas"], Value::Null, "the rest is told without the cluster");
    assert!(shown["scaling"]["message"].as_str().unwrap().contains("does not answer"));
}

#[tokio::test]
async fn outside_of_a_cluster_the_sentence_says_how_replicas_are_changed() {
    for (scaling, place, word) in [
        (Scaling::one_process(), "one_process", "boxreel serve"),
        (Scaling::no_cluster(), "no_cluster", "Kubernetes"),
    ] {
        let house = house(scaling, &["--admin-token", ADMIN]).await.with_token(ADMIN);
        let answer = body(put(&house, "pre", "{\"replicas\": 3}").await, 409).await;
        assert!(answer["error"]["message"].as_str().unwrap().contains(word), "{answer}");
        let shown = house.get_json("/v1/workers", 200).await;
        assert_eq!(shown["scaling"]["place"], place);
        let page = house.get("/workers").await.text().await.unwrap();
        assert!(page.contains(word) && page.contains("id=\"stage-decode\""), "{page}");
        assert!(!page.contains("name=\"replicas\"") && !page.contains("name=\"admin_token\""), "{page}");
        assert_eq!(page.contains("pre scale pre=3"), place == "no_cluster", "{page}");
    }
}

#[tokio::test]
async fn without_an_admin_token_nobody_changes_anything() {
    let (cluster, way, _server) = Standin::start().await;
    let house = house(Scaling::by(way), &[]).await;
    let answer = body(put(&house, "pre", "{\"replicas\": 3}").await, 403).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("BOXREEL_ADMIN_TOKEN"));
    let page = house.get("/workers").await.text().await.unwrap();
    assert!(page.contains("1/1") && page.contains("BOXREEL_ADMIN_TOKEN"), "{page}");
    assert!(!page.contains("name=\"replicas\"") && !page.contains("name=\"admin_token\""), "{page}");
    assert_eq!(cluster.desired("pre"), 1);
}

#[tokio::test]
async fn the_page_lets_whoever_enters_the_admin_token_change_replicas() {
    let (cluster, way, _server) = Standin::start().await;
    let house = house(Scaling::by(way), &["--admin-token", ADMIN]).await;
    let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let to = |path: &str| format!("{}{path}", house.base);
    let send = async |path: &str, cookie: &str, fields: String| {
        let request = client.post(to(path)).header("Cookie", cookie).header("Origin", &house.base);
        let request = request.header("Content-Type", "application/x-www-form-urlencoded").body(fields);
        request.send().await.unwrap()
    };
    let get = async |cookie: &str| {
        client.get(to("/workers")).header("Cookie", cookie).send().await.unwrap().text().await.unwrap()
    };
    let page = get("").await;
    assert!(page.contains("name=\"admin_token\"") && !page.contains("name=\"replicas\""), "{page}");

    let wrong = send("/workers/unlock", "", "admin_token=nonsense".to_owned()).await;
    assert_eq!((wrong.status().as_u16(), wrong.headers().contains_key("set-cookie")), (403, false));
    assert!(wrong.text().await.unwrap().contains("not the admin token"));
    let right = send("/workers/unlock", "", format!("admin_token={ADMIN}")).await;
    assert_eq!((right.status().as_u16(), &right.headers()["location"]), (303, &"/workers".parse().unwrap()));
    let set = right.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(set.contains("Path=/workers;") && set.ends_with("HttpOnly; SameSite=Strict"), "{set}");
    assert!(!set.contains(ADMIN), "{set}");
    let session = set.split(';').next().unwrap().to_owned();

    let page = get(&session).await;
    let token = page.split("name=\"form_token\" value=\"").nth(1).unwrap()[..64].to_owned();
    let changed = send("/workers/infer", &session, format!("form_token={token}&replicas=3")).await;
    assert_eq!((changed.status().as_u16(), cluster.desired("infer")), (303, 3));
    assert!(get(&session).await.contains("1/3"));
    for (what, path, cookie, fields, status) in [
        (
            "a form that is not of this session",
            "/workers/infer",
            session.as_str(),
            "replicas=4".to_owned(),
            403,
        ),
        (
            "a form token without its session",
            "/workers/infer",
            "",
            format!("form_token={token}&replicas=4"),
            403,
        ),
        ("too many", "/workers/infer", &session, format!("form_token={token}&replicas=1000"), 422),
        ("no number", "/workers/infer", &session, format!("form_token={token}&replicas=x"), 422),
        ("no service", "/workers/mongo", &session, format!("form_token={token}&replicas=4"), 404),
    ] {
        let answer = send(path, cookie, fields).await;
        assert_eq!(answer.status().as_u16(), status, "{what}");
        assert!(answer.text().await.unwrap().contains("role=\"alert\""), "{what} is explained");
    }
    let foreign = client.post(to("/workers/infer")).header("Cookie", &session);
    let foreign =
        foreign.header("Origin", "https://evil.example").body(format!("form_token={token}&replicas=4"));
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    cluster.refuse(403);
    let refused = send("/workers/infer", &session, format!("form_token={token}&replicas=4")).await;
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.unwrap().contains("clusterrole.yaml"));
    assert_eq!(cluster.desired("infer"), 3);

    let out = send("/workers/lock", &session, format!("form_token={token}")).await;
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    house.clock.advance(std::time::Duration::from_secs(3601));
    assert!(!get(&session).await.contains("name=\"replicas\""), "it ends by the database's clock");
}

#[tokio::test]
async fn the_page_is_for_those_who_have_signed_in() {
    let house = house(Scaling::one_process(), &["--api-token", "us3r"]).await;
    let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let turned = client.get(format!("{}/workers", house.base)).send().await.unwrap();
    assert_eq!(turned.headers()["location"], "/login?next=/workers");
}
