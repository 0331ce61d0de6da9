//! The page of workers: what waits, who is at it, how many replicas there are, and, for whoever enters the admin token,
//! how many there should be.
//!
//! The token opens a session of its own beside the pages' session, by a cookie of the same make, for an hour and for
//! this page only.

use std::time::Duration;

use askama::Template;
use axum::Extension;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use common::http_error::HttpError;
use serde::Deserialize;

use super::session::{self, FormToken};
use super::{Answer, Frame, Pages, Signed, render};
use crate::api::{self, House, ServiceView};
use crate::replicas;

/// The page and all its forms.
const PATH: &str = "/workers";
/// The session of who has entered the admin token.
const ADMIN: session::Kind =
    session::Kind { name: "boxreel_admin", path: PATH, kept: Duration::from_secs(3600) };

#[derive(Template)]
#[template(path = "workers.html")]
struct WorkersTemplate {
    frame: Frame,
    house: House,
    /// Whether there is an admin token at all.
    guarded: bool,
    /// Present when it was entered: what the forms carry.
    admin: Option<String>,
    problem: Option<String>,
    wrong: bool,
}

impl WorkersTemplate {
    fn in_cluster(&self) -> bool {
        self.house.scaling.place == "cluster"
    }

    fn one_process(&self) -> bool {
        self.house.scaling.place == "one_process"
    }

    fn least(service: &ServiceView) -> u32 {
        service.name.parse().map_or(0, replicas::least)
    }

    fn age(seconds: Option<&f64>) -> String {
        match seconds {
            None => String::new(),
            Some(seconds) if *seconds < 60.0 => format!("{seconds:.0} s"),
            Some(seconds) if *seconds < 3600.0 => format!("{:.0} min", seconds / 60.0),
            Some(seconds) => format!("{:.1} h", seconds / 3600.0),
        }
    }
}

/// The form token of the admin's session that a request is in.
async fn admin(pages: &Pages, headers: &HeaderMap) -> Result<Option<FormToken>, HttpError> {
    ADMIN.checked(pages.admin_key.as_ref(), pages, headers).await
}

/// What went wrong, to be shown on the page.
#[derive(Default)]
struct Wrong {
    problem: Option<HttpError>,
    token: bool,
}

async fn page(pages: &Pages, token: Option<&FormToken>, headers: &HeaderMap, wrong: Wrong) -> Answer {
    let status = match &wrong.problem {
        Some(problem) => problem.status(),
        None if wrong.token => StatusCode::FORBIDDEN,
        None => StatusCode::OK,
    };
    let page = WorkersTemplate {
        frame: Frame::of(token),
        house: api::house(&pages.app).await?,
        guarded: pages.admin_key.is_some(),
        admin: admin(pages, headers).await?.map(|token| token.0),
        problem: wrong.problem.map(|problem| problem.message().to_owned()),
        wrong: wrong.token,
    };
    Ok((status, render(&page)?).into_response())
}

pub(super) async fn show(
    State(pages): State<Pages>,
    token: Option<Extension<FormToken>>,
    headers: HeaderMap,
) -> Answer {
    page(&pages, token.as_deref(), &headers, Wrong::default()).await
}

#[derive(Deserialize)]
pub(super) struct UnlockForm {
    #[serde(default)]
    form_token: String,
    admin_token: String,
}

/// Takes the admin token.
pub(super) async fn unlock(
    State(pages): State<Pages>,
    token: Option<Extension<FormToken>>,
    headers: HeaderMap,
    Form(form): Form<UnlockForm>,
) -> Answer {
    session::ours(token.as_deref(), &form.form_token)?;
    let Some(key) = &pages.admin_key else { return Ok(Redirect::to(PATH).into_response()) };
    if !pages.app.gates.admin.admits(form.admin_token.trim()) {
        return page(&pages, token.as_deref(), &headers, Wrong { token: true, ..Wrong::default() }).await;
    }
    Ok(back(&ADMIN.begin(key, pages.app.store().now().await?)))
}

/// Forgets the admin token.
pub(super) async fn lock(State(pages): State<Pages>, headers: HeaderMap, Form(form): Form<Signed>) -> Answer {
    session::ours(admin(&pages, &headers).await?.as_ref(), &form.form_token)?;
    Ok(back(&ADMIN.end()))
}

fn back(cookie: &str) -> Response {
    ([(header::SET_COOKIE, cookie)], Redirect::to(PATH)).into_response()
}

#[derive(Deserialize)]
pub(super) struct ScaleForm {
    #[serde(default)]
    form_token: String,
    replicas: String,
}

/// Changes a number of replicas, as `PUT /v1/workers/{deployment}` does.
pub(super) async fn scale(
    State(pages): State<Pages>,
    token: Option<Extension<FormToken>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Form(form): Form<ScaleForm>,
) -> Answer {
    let done = async {
        let admin = admin(&pages, &headers).await?.ok_or_else(|| {
            HttpError::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "Enter the admin token first; it is asked for again after an hour.",
            )
        })?;
        session::ours(Some(&admin), &form.form_token)?;
        let replicas: u32 = form.replicas.trim().parse().map_err(|_| {
            HttpError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unprocessable",
                "Write the number of replicas as a whole number from 0 up.",
            )
        })?;
        // What names a service is a word; anything else would only spoil the path.
        let service: scale::Deployment = name
            .parse()
            .map_err(|_| HttpError::not_found("There is no such service: choose pre, infer or post."))?;
        pages.rest.scale(service.as_str(), replicas, pages.app.admin_token.as_ref()).await
    };
    match done.await {
        Ok(()) => Ok(Redirect::to(PATH).into_response()),
        Err(problem) => {
            let wrong = Wrong { problem: Some(problem), ..Wrong::default() };
            page(&pages, token.as_deref(), &headers, wrong).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let age = |seconds: f64| WorkersTemplate::age(Some(&seconds));
        assert_eq!([age(0.0), age(59.4), age(90.0), age(5400.0)], ["0 s", "59 s", "2 min", "1.5 h"]);
        assert_eq!(WorkersTemplate::age(None), "");
    }
}
