//! A tiny API server for tests: one kind of object, in memory, with what our writes rely on and Kubernetes promises:
//! resourceVersion conflicts, UID preconditions, finalizers that keep deleted objects, names taken once. It can lose
//! answers and let somebody else act between two of our calls. What it believes is checked on a real API server by the
//! stories.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use axum::http::{Method, Request, Response, StatusCode};
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// What somebody does to the objects before one of our calls arrives.
pub type Interference = Box<dyn FnOnce(&mut Objects) + Send>;

/// The objects, by name.
#[derive(Default)]
pub struct Objects {
    /// By name.
    pub by_name: BTreeMap<String, Value>,
    /// `METHOD name` of every call.
    pub calls: Vec<String>,
    version: u64,
}

#[derive(Default)]
struct Shared {
    objects: Objects,
    before: VecDeque<(usize, Interference)>,
    lost_answers: Vec<usize>,
}

/// The server; clones are the same one.
#[derive(Clone, Default)]
pub struct FakeApi(Arc<Mutex<Shared>>);

type Answer = (StatusCode, Value);

impl FakeApi {
    /// A client of it.
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap_or_default();
                match api.answer(&parts.method, parts.uri.path(), &body) {
                    Some((status, value)) => {
                        let body = Body::from(value.to_string().into_bytes());
                        let mut response = Response::new(body);
                        *response.status_mut() = status;
                        Ok(response)
                    }
                    None => Err(std::io::Error::other("the connection broke")),
                }
            }
        });
        Client::new(service, "default")
    }

    /// Looks at or changes the objects.
    pub fn with<T>(&self, look: impl FnOnce(&mut Objects) -> T) -> T {
        look(&mut self.0.lock().unwrap().objects)
    }

    /// Before the call of this number (from 0), somebody else acts.
    pub fn before_call(&self, number: usize, act: impl FnOnce(&mut Objects) + Send + 'static) {
        let mut shared = self.0.lock().unwrap();
        shared.before.push_back((number, Box::new(act)));
    }

    /// The call of this number is carried out, but its answer is lost.
    pub fn lose_answer(&self, number: usize) {
        self.0.lock().unwrap().lost_answers.push(number);
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Option<Answer> {
        let mut shared = self.0.lock().unwrap();
        let number = shared.objects.calls.len();
        if let Some(at) = shared.before.iter().position(|(n, _)| *n == number)
            && let Some((_, act)) = shared.before.remove(at)
        {
            act(&mut shared.objects);
        }
        let (path, binds) = match path.strip_suffix("/binding") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let verb = if binds { "BIND" } else { method.as_str() };
        shared.objects.calls.push(format!("{verb} {name}"));
        let answer = match *method {
            Method::POST if binds => shared.objects.bind(&name, &body),
            Method::GET => shared.objects.get(&name),
            Method::POST => shared.objects.create(body),
            Method::PATCH => shared.objects.patch(&name, &body),
            Method::DELETE => shared.objects.delete(&name, &body),
            ref other => panic!("{other} is not used"),
        };
        (!shared.lost_answers.contains(&number)).then_some(answer)
    }
}

fn failure(code: StatusCode, message: &str) -> Answer {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
        "code": code.as_u16(), "message": message, "reason": code.canonical_reason() });
    (code, status)
}

impl Objects {
    /// Puts an object there as it is, with a new version.
    pub fn put(&mut self, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.by_name.insert(name, object);
    }

    fn get(&self, name: &str) -> Answer {
        match self.by_name.get(name) {
            Some(object) => (StatusCode::OK, object.clone()),
            None => failure(StatusCode::NOT_FOUND, "not found"),
        }
    }

    fn create(&mut self, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.by_name.contains_key(&name) {
            return failure(StatusCode::CONFLICT, "already exists");
        }
        object["metadata"]["uid"] = json!(format!("made-{}", self.version + 1));
        self.put(object);
        self.get(&name)
    }

    /// Once, and not while it is being deleted.
    pub fn bind(&mut self, name: &str, binding: &Value) -> Answer {
        let Some(mut object) = self.by_name.get(name).cloned() else {
            return failure(StatusCode::NOT_FOUND, "not found");
        };
        for key in ["uid", "resourceVersion"] {
            let wanted = &binding["metadata"][key];
            if !wanted.is_null() && *wanted != object["metadata"][key] {
                return failure(StatusCode::CONFLICT, "a precondition does not hold");
            }
        }
        let deleting = object["metadata"].get("deletionTimestamp").is_some();
        if deleting || object["spec"].get("nodeName").is_some() {
            return failure(StatusCode::CONFLICT, "it can't be assigned to a host");
        }
        object["spec"]["nodeName"] = binding["target"]["name"].clone();
        self.put(object);
        (
            StatusCode::CREATED,
            json!({ "kind": "Status", "status": "Success" }),
        )
    }

    fn patch(&mut self, name: &str, patch: &Value) -> Answer {
        let Some(mut object) = self.by_name.get(name).cloned() else {
            return failure(StatusCode::NOT_FOUND, "not found");
        };
        let wanted = &patch["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
            return failure(StatusCode::CONFLICT, "the object has been modified");
        }
        merge(&mut object, patch);
        self.put(object.clone());
        self.collect(name);
        (StatusCode::OK, object)
    }

    /// As somebody deletes it, or as we do.
    pub fn delete(&mut self, name: &str, options: &Value) -> Answer {
        let Some(mut object) = self.by_name.get(name).cloned() else {
            return failure(StatusCode::NOT_FOUND, "not found");
        };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(
                StatusCode::CONFLICT,
                "the UID in the precondition does not match",
            );
        }
        let grace = options["gracePeriodSeconds"].as_u64().unwrap_or(30);
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put(object.clone());
        self.collect(name);
        (StatusCode::OK, object)
    }

    /// An object goes when it is deleted, its grace is over and no finalizer keeps it.
    fn collect(&mut self, name: &str) {
        let meta = &self.by_name[name]["metadata"];
        let kept = meta["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if meta["deletionGracePeriodSeconds"] == json!(0) && !kept {
            self.by_name.remove(name);
        }
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
