//! What the containers are told, read by the programs' own settings.

use std::fs;
use std::path::Path;

use clap::{ArgAction, CommandFactory, FromArgMatches};
use common::config::{ClusterArgs, ServiceArgs, check_environment};
use infer::args::InferArgs;
use post::args::PostArgs;
use pre::PreArgs;
use serde_json::Value;

use super::manifests::{Manifests, Pods, items, name, text};

/// A service as its program understands what it is told.
pub struct Told {
    pub service: &'static str,
    pub port: u16,
    pub data_dir: String,
    pub shutdown_seconds: u64,
    /// Host and port of each thing it connects to.
    pub dials: Vec<(String, u16)>,
}

/// Reads a service's settings; or says what its program would not accept.
pub fn read(manifests: &Manifests, service: &'static str) -> Result<Told, Vec<String>> {
    let Some(pods) = manifests.pods_of(service) else { return Err(vec![format!("no Deployment {service}")]) };
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let command = match service {
        "pre" => PreArgs::command(),
        "infer" => InferArgs::command(),
        _ => PostArgs::command(),
    };
    let mut line = vec![service.to_owned()];
    let variables = variables(manifests, pods, &mut wrong);
    if let Err(error) = check_environment(variables.iter().map(|(key, ..)| key.clone())) {
        wrong.push(format!("{service}: {error}"));
    }
    for (key, value, own) in variables {
        // OpenTelemetry's own; everything else is ours.
        if !key.starts_with("BOXREEL_") && !key.starts_with("OTEL_") {
            wrong.push(format!("{service}: {key} is nobody's setting"));
        }
        let setting =
            command.get_arguments().find(|argument| argument.get_env().is_some_and(|env| env == &*key));
        let Some(setting) = setting else {
            // In the ConfigMap it may be the others'.
            if own && key.starts_with("BOXREEL_") {
                wrong.push(format!("{service} has no setting {key}"));
            }
            continue;
        };
        let value =
            if key.ends_with("_FILE") { file(manifests, pods, folder.path(), &value) } else { Ok(value) };
        match (value, setting.get_long()) {
            (Ok(value), Some(long)) if matches!(setting.get_action(), ArgAction::SetTrue) => {
                line.extend((value == "true").then(|| format!("--{long}")));
            }
            (Ok(value), Some(long)) => line.push(format!("--{long}={value}")),
            (Err(why), _) => wrong.push(format!("{service}: {key}: {why}")),
            (_, None) => wrong.push(format!("{service}: {key} has no option")),
        }
    }
    let matches = match command.try_get_matches_from(&line) {
        Ok(matches) => matches,
        Err(error) => return Err([wrong, vec![format!("{service}: {error}")]].concat()),
    };
    let told = match service {
        "pre" => {
            let args = PreArgs::from_arg_matches(&matches).unwrap();
            let more = [args.pre.admin_token(), args.pre.callback_secret()];
            wrong.extend(more.into_iter().filter_map(Result::err).map(|error| format!("{service}: {error}")));
            told(service, pre::PORT, &args.service, &args.cluster, [args.pre.infer_url.as_deref()])
        }
        "infer" => {
            let args = InferArgs::from_arg_matches(&matches).unwrap();
            told(service, infer::service::PORT, &args.service, &args.cluster, [args.pre_url.as_deref()])
        }
        _ => {
            let args = PostArgs::from_arg_matches(&matches).unwrap();
            told(service, post::service::PORT, &args.service, &args.cluster, [args.pre_url.as_deref()])
        }
    };
    match told {
        Ok(told) if wrong.is_empty() => Ok(told),
        Ok(_) => Err(wrong),
        Err(why) => Err([wrong, vec![format!("{service}: {why}")]].concat()),
    }
}

fn told(
    service: &'static str,
    usual_port: u16,
    args: &ServiceArgs,
    cluster: &ClusterArgs,
    urls: [Option<&str>; 1],
) -> Result<Told, String> {
    let (api, worker) = (args.api_token(), args.worker_token());
    let (api, worker) = (api.map_err(|e| e.to_string())?, worker.map_err(|e| e.to_string())?);
    let guarded = match service {
        "pre" => api.is_some() && worker.is_some(),
        "infer" => api.is_some(),
        // It only shows its probes, and reports to pre.
        _ => worker.is_some(),
    };
    if !guarded {
        return Err("a token is missing".to_owned());
    }
    let listen = args.listen(usual_port, guarded).map_err(|error| error.to_string())?;
    if !listen.ip().is_unspecified() || listen.port() != usual_port {
        return Err(format!("it listens on {listen}, and not on its port {usual_port} of every address"));
    }
    let mongo = cluster.mongo().map_err(|error| error.to_string())?;
    let mut dials = vec![end_of(mongo.reveal(), 27017)?];
    for url in urls {
        dials.push(end_of(url.ok_or("it is not told where pre or infer is")?, 80)?);
    }
    Ok(Told {
        service,
        port: listen.port(),
        data_dir: cluster.data_dir.display().to_string(),
        shutdown_seconds: args.shutdown_seconds,
        dials,
    })
}

/// Host and port of a URI.
fn end_of(uri: &str, usual: u16) -> Result<(String, u16), String> {
    let (_, rest) = uri.split_once("://").ok_or_else(|| format!("{uri:?} is no address"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let end = authority.rsplit_once('@').map_or(authority, |(_, end)| end);
    match end.rsplit_once(':') {
        Some((host, port)) => {
            Ok((host.to_owned(), port.parse().map_err(|_| format!("{uri:?} has no port"))?))
        }
        None => Ok((end.to_owned(), usual)),
    }
}

/// Name and value of each variable of a service's container, the later ones in force, and whether it is the container's own.
fn variables(manifests: &Manifests, pods: Pods<'_>, wrong: &mut Vec<String>) -> Vec<(String, String, bool)> {
    let container = &pods.spec["containers"][0];
    let mut found: Vec<(String, String, bool)> = Vec::new();
    let mut set = |key: &str, value: &Value, own| {
        found.retain(|(other, ..)| other != key);
        match value.as_str() {
            Some(value) => found.push((key.to_owned(), value.to_owned(), own)),
            None => wrong.push(format!("{}: {key} has no text for a value", pods.name)),
        }
    };
    for source in items(&container["envFrom"]) {
        let map = text(&source["configMapRef"]["name"]);
        let map = manifests.named("ConfigMap", map).and_then(|map| map["data"].as_object());
        for (key, value) in map.into_iter().flatten() {
            set(key, value, false);
        }
    }
    for variable in items(&container["env"]) {
        set(text(&variable["name"]), &variable["value"], true);
    }
    found
}

/// The file that a container finds at `path`, written into `folder`: a key of the Secret, by way of mount, volume and item.
fn file(manifests: &Manifests, pods: Pods<'_>, folder: &Path, path: &str) -> Result<String, String> {
    let container = &pods.spec["containers"][0];
    let mount = items(&container["volumeMounts"]).iter().find_map(|mount| {
        let inside = path.strip_prefix(text(&mount["mountPath"]))?.strip_prefix('/')?;
        Some((text(&mount["name"]), inside))
    });
    let (volume, inside) = mount.ok_or_else(|| format!("{path} is on no volume"))?;
    let volume = items(&pods.spec["volumes"]).iter().find(|other| other["name"] == volume);
    let secret = &volume.ok_or_else(|| format!("{path} is on a volume that is not there"))?["secret"];
    if secret["secretName"] != name(&manifests.secret) {
        return Err(format!("{path} is not in our Secret"));
    }
    let item = items(&secret["items"]).iter().find(|item| item["path"] == inside);
    let key =
        item.map(|item| text(&item["key"])).ok_or_else(|| format!("the Secret's volume has no {inside}"))?;
    let value = manifests.secret["stringData"][key].as_str();
    let copy = folder.join(inside);
    fs::write(&copy, value.ok_or_else(|| format!("the Secret has no {key}"))?).unwrap();
    Ok(copy.display().to_string())
}
