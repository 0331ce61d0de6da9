//! On a real API server.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use scale::{Cluster, Permission, ScaleError};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::namespace::{TestNamespace, client, eventually};
use crate::run;

fn refused<T: std::fmt::Debug>(answer: kube::Result<T>) {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        other => panic!("this should be forbidden: {other:?}"),
    }
}

#[tokio::test]
async fn an_accounts_own_token_scales_our_deployments_and_can_do_nothing_else() {
    let Some(house) = TestNamespace::new().await else { return };
    house.grant().await;
    let cluster = house.account().await;
    let written = eventually(async || run(&cluster, &["pre=3"]).await).await;
    assert!(written.starts_with("pre: 1 -> 3\n"), "{written}");
    assert!(written.contains("pre     0/3 "), "{written}");
    let found = [house.desired("pre").await, house.desired("infer").await, house.desired("post").await];
    assert_eq!(found, [3, 1, 1]);
    run(&cluster, &["infer=2", "post=0"]).await.unwrap();
    let found = [house.desired("pre").await, house.desired("infer").await, house.desired("post").await];
    assert_eq!(found, [3, 2, 0]);
    let shown = run(&cluster, &[]).await.unwrap();
    assert_eq!(shown.lines().count(), 4, "a header and three Deployments: {shown}");
    assert!(shown.contains("infer   0/2 ") && shown.contains("post    0/0 "), "{shown}");

    // The same token, by hand.
    let account: Client = client(&house.account_file().await).await;
    let more = Patch::Merge(json!({ "spec": { "replicas": 2 } }));
    let params = PatchParams::default();
    let deployments: Api<Deployment> = Api::namespaced(account.clone(), &house.name);
    refused(deployments.patch_scale("other", &params, &more).await);
    refused(deployments.get("other").await);
    refused(deployments.list(&ListParams::default()).await);
    refused(deployments.patch("pre", &params, &more).await);
    refused(deployments.delete("pre", &DeleteParams::default()).await);
    refused(
        Api::<Deployment>::namespaced(account.clone(), "default").patch_scale("pre", &params, &more).await,
    );
    refused(Api::<Secret>::namespaced(account.clone(), &house.name).list(&ListParams::default()).await);
    refused(Api::<Secret>::namespaced(account.clone(), &house.name).get("boxreel").await);
    let pods: Api<Pod> = Api::namespaced(account, &house.name);
    refused(pods.list(&ListParams::default()).await);
    let pod = eventually(async || {
        let all = house.admin::<Pod>().list(&ListParams::default()).await.unwrap();
        all.items.into_iter().find_map(|pod| pod.metadata.name).ok_or("no pod yet")
    })
    .await;
    refused(pods.delete(&pod, &DeleteParams::default()).await);
}

#[tokio::test]
async fn without_the_binding_the_sentence_says_what_is_missing_and_what_grants_it() {
    let Some(house) = TestNamespace::new().await else { return };
    house.grant().await;
    let cluster = house.account().await;
    eventually(async || run(&cluster, &["pre=2"]).await).await;
    house.revoke().await;
    // Until a look is refused: before, a command may be let in and refused half-way.
    eventually(async || match run(&cluster, &[]).await {
        Err(_) => Ok(()),
        Ok(written) => Err(written),
    })
    .await;
    let sentence = run(&cluster, &["pre=3"]).await.unwrap_err();
    for part in [
        "may not get deployments \"pre\"",
        &format!("namespace {}", house.name),
        "clusterrole.yaml",
        "clusterrolebinding.yaml",
        &format!("system:serviceaccount:{}:pre", house.name),
    ] {
        assert!(sentence.contains(part), "{part} is missing in: {sentence}");
    }
}

#[tokio::test]
async fn who_may_only_look_is_told_that_scaling_is_missing() {
    let Some(house) = TestNamespace::new().await else { return };
    house
        .grant_only(json!([{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] }]))
        .await;
    let cluster = house.account().await;
    eventually(async || run(&cluster, &[]).await).await;
    let sentence = run(&cluster, &["pre=3"]).await.unwrap_err();
    assert!(sentence.contains("may not patch deployments/scale \"pre\""), "{sentence}");
    let error = cluster.scale(scale::Deployment::Pre, 3).await.unwrap_err();
    assert!(matches!(error, ScaleError::Forbidden { permission: Permission::Scale, .. }), "{error:?}");
    assert_eq!(house.desired("pre").await, 1);
}

#[tokio::test]
async fn a_deployment_that_is_not_there_stops_all_before_anything_is_changed() {
    let Some(house) = TestNamespace::new().await else { return };
    house.grant().await;
    house.remove_deployment("infer").await;
    let cluster = house.account().await;
    eventually(async || run(&cluster, &["post=1"]).await).await;
    let sentence = run(&cluster, &["pre=3", "infer=3"]).await.unwrap_err();
    assert!(sentence.starts_with("There is no Deployment \"infer\" in namespace"), "{sentence}");
    assert!(sentence.contains("infer-deploy.yaml") && sentence.contains("--namespace"), "{sentence}");
    assert_eq!(house.desired("pre").await, 1);
}

#[tokio::test]
async fn a_token_that_the_cluster_does_not_know_is_said_to_be_that() {
    let Some(house) = TestNamespace::new().await else { return };
    let file = house.file_with_token("nonsense");
    let cluster = Cluster::of_kubeconfig(&file, None).await.unwrap();
    let sentence = run(&cluster, &[]).await.unwrap_err();
    assert!(sentence.contains("does not accept this account's credentials"), "{sentence}");
}

#[tokio::test]
async fn waiting_ends_when_all_are_ready_and_in_vain_says_what_is_not() {
    let Some(house) = TestNamespace::new().await else { return };
    house.grant().await;
    let cluster = house.account().await;
    let sentence = eventually(async || match run(&cluster, &["pre=2", "--wait", "--timeout", "1s"]).await {
        Err(sentence) if sentence.starts_with("Not ready") => Ok(sentence),
        other => Err(other),
    })
    .await;
    assert!(sentence.starts_with("Not ready after 1 s: pre (0 of 2 ready"), "{sentence}");
    assert!(sentence.contains(&format!("kubectl -n {} describe deployment pre", house.name)), "{sentence}");

    let none = run(&cluster, &["post=0", "--wait"]).await.unwrap();
    assert!(none.contains("Settled after ") && none.ends_with("post    0/0     0            0\n"), "{none}");

    // What a node's kubelet would say.
    let pods = house.admin::<Pod>();
    let _kubelet = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let ready = Patch::Strategic(json!({ "status": {
                "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
            }}));
            for pod in pods.list(&ListParams::default().labels("app=pre")).await.unwrap() {
                // It may have gone meanwhile.
                let _ = pods.patch_status(&pod.metadata.name.unwrap(), &PatchParams::default(), &ready).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }));
    let written = run(&cluster, &["pre=3", "--wait", "--timeout", "60s"]).await.unwrap();
    let table = written.split_once("Settled after ").unwrap().1;
    assert!(
        table.ends_with("NAME    READY   UP-TO-DATE   AVAILABLE\npre     3/3     3            3\n"),
        "{written}"
    );
}
