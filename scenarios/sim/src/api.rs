//! Kubernetes' API server as far as pods need it: names taken once, resourceVersions, UID preconditions, finalizers,
//! graceful deletion, merge patches, binding. What it believes is checked on a real one by the stories.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

const COMMITTED: &str = "longshore.dev/committed";
const MADE_BY: &str = "longshore.dev/migration";

/// A status and a body.
pub type Answer = (u16, Value);

/// Pods of the one namespace.
#[derive(Debug, Default)]
pub struct Objects {
    pods: BTreeMap<String, Value>,
    versions: u64,
    uids: u64,
    by_user: BTreeMap<String, String>,
    /// Names by UID.
    taken_for_ours: BTreeMap<String, String>,
}

/// What a kubelet reads of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Where it is bound; "" before that.
    pub node: String,
    /// Somebody deleted it.
    pub deleting: bool,
    /// The migration that made it.
    pub made_by: Option<String>,
    /// Containers: name and image.
    pub containers: Vec<(String, String)>,
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub struct Call {
    /// GET, POST, PATCH, DELETE.
    pub method: String,
    /// `/api/v1/…` without its query.
    pub path: String,
    /// What follows the question mark.
    pub query: String,
    /// JSON or null.
    pub body: Value,
}

fn failure(code: u16, reason: &str, message: String) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, status)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Objects {
    /// Carries out a call.
    pub fn answer(&mut self, call: &Call) -> Answer {
        let parts: Vec<&str> = call
            .path
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        match (call.method.as_str(), parts.as_slice()) {
            ("GET", [_, _, "nodes"]) => {
                let nodes =
                    json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": [] });
                (200, nodes)
            }
            ("GET", [_, _, "nodes", name]) => (200, node(name)),
            ("GET", [_, _, _, _, "pods", name]) => match self.pods.get(*name) {
                Some(pod) => (200, pod.clone()),
                None => failure(404, "NotFound", format!("pods {name:?} not found")),
            },
            ("GET", [_, _, _, _, "pods"]) => {
                let list =
                    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [] });
                (200, list)
            }
            ("POST", [_, _, _, _, "pods"]) if call.query.contains("dryRun") => {
                (201, call.body.clone())
            }
            ("POST", [_, _, _, _, "pods"]) => self.create(call.body.clone()),
            ("POST", [_, _, _, _, "pods", name, "binding"]) => self.bind(name, &call.body),
            ("PATCH", [_, _, _, _, "pods", name]) => self.patch(name, &call.body),
            ("DELETE", [_, _, _, _, "pods", name]) => self.delete(name, &call.body),
            _ => failure(
                405,
                "MethodNotAllowed",
                format!("{} {}", call.method, call.path),
            ),
        }
    }

    /// A user's deletion, with the pod's own grace. True: it was there to be deleted, and not replaced already.
    pub fn user_deletes(&mut self, name: &str) -> bool {
        let Some(pod) = self.pods.get(name) else {
            return false;
        };
        let marked = pod["metadata"]["annotations"].get(COMMITTED).is_some();
        let deleting = pod["metadata"].get("deletionTimestamp").is_some();
        let uid = text(&pod["metadata"]["uid"]).to_owned();
        self.delete(name, &json!({ "gracePeriodSeconds": 30 }));
        if marked && !deleting {
            self.taken_for_ours.insert(uid.clone(), name.to_owned());
        }
        if marked || deleting {
            return false;
        }
        self.by_user.insert(name.to_owned(), uid);
        true
    }

    /// The user has deleted the pod of this UID when it bore our mark: nobody can tell that from our own deletion. It was
    /// their will all the same that it ends.
    #[must_use]
    pub fn ended_by_user(&self, uid: &str) -> bool {
        self.taken_for_ours.contains_key(uid)
    }

    /// Such a pod's object went, and no migration made another: it was its user's deletion after all.
    #[must_use]
    pub fn is_gone_by_user(&self, name: &str) -> bool {
        let theirs = self.taken_for_ours.values().any(|of| of == name);
        self.deleted_by_user(name) || (theirs && !self.pods.contains_key(name))
    }

    /// The user has deleted this pod.
    #[must_use]
    pub fn deleted_by_user(&self, name: &str) -> bool {
        self.by_user.contains_key(name)
    }

    /// What a kubelet sees of all pods bound to this node.
    #[must_use]
    pub fn seen_by(&self, node: &str) -> Vec<Seen> {
        let all = self.pods.values().map(seen);
        all.filter(|pod| pod.node == node).collect()
    }

    /// One pod as it is now.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<Seen> {
        self.pods.get(name).map(seen)
    }

    /// There is this pod, of this UID, and nobody has deleted it.
    #[must_use]
    pub fn is_current(&self, name: &str, uid: &str) -> bool {
        self.pods.get(name).is_some_and(|pod| {
            pod["metadata"]["uid"] == uid && pod["metadata"].get("deletionTimestamp").is_none()
        })
    }

    /// Annotations and finalizers of ours on the pod.
    #[must_use]
    pub fn marks(&self, name: &str) -> Vec<String> {
        let Some(pod) = self.pods.get(name) else {
            return Vec::new();
        };
        let metadata = &pod["metadata"];
        let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
        let finalizers = finalizers.map(|f| text(f).to_owned());
        let annotations = metadata["annotations"].as_object().into_iter().flatten();
        let annotations = annotations.map(|(key, _)| key.clone());
        finalizers
            .chain(annotations)
            .filter(|mark| {
                mark == "longshore.dev/held-for"
                    || mark == COMMITTED
                    || mark == "longshore.dev/hold"
            })
            .collect()
    }

    /// Makes a pod; the name is the fence.
    pub fn create(&mut self, mut pod: Value) -> Answer {
        let name = text(&pod["metadata"]["name"]).to_owned();
        if self.pods.contains_key(&name) {
            return failure(
                409,
                "AlreadyExists",
                format!("pods {name:?} already exists"),
            );
        }
        self.uids += 1;
        pod["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
        pod["metadata"]["resourceVersion"] = json!(self.next_version());
        self.pods.insert(name, pod.clone());
        (201, pod)
    }

    /// Gives a pod to a node: once, and not while it is being deleted.
    fn bind(&mut self, name: &str, binding: &Value) -> Answer {
        let version = self.next_version();
        let Some(pod) = self.pods.get_mut(name) else {
            return failure(404, "NotFound", format!("pods {name:?} not found"));
        };
        let wanted = &binding["metadata"];
        let other = |key: &str| !wanted[key].is_null() && wanted[key] != pod["metadata"][key];
        let deleting = pod["metadata"].get("deletionTimestamp").is_some();
        if other("uid") || other("resourceVersion") || deleting || is_bound(pod) {
            return failure(409, "Conflict", "it can't be assigned to a host".to_owned());
        }
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        pod["metadata"]["resourceVersion"] = json!(version);
        (
            201,
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }),
        )
    }

    /// Is this name free?
    #[must_use]
    pub fn is_free(&self, name: &str) -> bool {
        !self.pods.contains_key(name)
    }

    /// A mistake's work: the object of this UID leaves its name and stays.
    pub fn rename(&mut self, name: &str, uid: &str) {
        let ours = self
            .pods
            .get(name)
            .is_some_and(|pod| pod["metadata"]["uid"] == uid);
        if let Some(pod) = self.pods.remove(name).filter(|_| ours) {
            self.pods.insert(format!("{name} {uid}"), pod);
        }
    }

    /// A kubelet's word on a pod of this UID.
    pub fn write_status(&mut self, name: &str, uid: &str, status: Value) {
        let version = self.next_version();
        if let Some(pod) = self.pods.get_mut(name)
            && pod["metadata"]["uid"] == uid
        {
            pod["status"] = status;
            pod["metadata"]["resourceVersion"] = json!(version);
        }
    }

    fn next_version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }

    fn patch(&mut self, name: &str, change: &Value) -> Answer {
        let version = self.next_version();
        let Some(pod) = self.pods.get_mut(name) else {
            return failure(404, "NotFound", format!("pods {name:?} not found"));
        };
        let wanted = &change["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != pod["metadata"]["resourceVersion"] {
            return failure(409, "Conflict", "the object has been modified".to_owned());
        }
        merge(pod, change);
        pod["metadata"]["resourceVersion"] = json!(version);
        let pod = pod.clone();
        self.remove_if_free(name);
        (200, pod)
    }

    /// Deletes as Kubernetes does: at once when nothing keeps it, else it is marked.
    pub fn delete(&mut self, name: &str, options: &Value) -> Answer {
        let version = self.next_version();
        let Some(pod) = self.pods.get_mut(name) else {
            return failure(404, "NotFound", format!("pods {name:?} not found"));
        };
        let wanted = &options["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != pod["metadata"]["uid"] {
            return failure(
                409,
                "Conflict",
                "the UID in the precondition is another".to_owned(),
            );
        }
        let grace = options["gracePeriodSeconds"].as_u64().unwrap_or(30);
        // Nobody has it, so nobody needs time to end it.
        let grace = if is_bound(pod) { grace } else { 0 };
        let metadata = &mut pod["metadata"];
        let before = metadata["deletionGracePeriodSeconds"].as_u64();
        if before.is_none_or(|before| grace < before) {
            metadata["deletionTimestamp"] = json!("2033-05-18T03:33:20Z");
            metadata["deletionGracePeriodSeconds"] = json!(grace);
            metadata["resourceVersion"] = json!(version);
        }
        let pod = pod.clone();
        self.remove_if_free(name);
        (200, pod)
    }

    fn remove_if_free(&mut self, name: &str) {
        let free = self.pods.get(name).is_some_and(|pod| {
            let metadata = &pod["metadata"];
            let kept = metadata["finalizers"]
                .as_array()
                .is_some_and(|f| !f.is_empty());
            metadata["deletionGracePeriodSeconds"].as_u64() == Some(0) && !kept
        });
        if free {
            self.pods.remove(name);
        }
    }
}

/// JSON merge patch, RFC 7396.
fn merge(into: &mut Value, change: &Value) {
    let Value::Object(change) = change else {
        *into = change.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    if let Value::Object(into) = into {
        for (key, value) in change {
            if value.is_null() {
                into.remove(key);
            } else {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

fn is_bound(pod: &Value) -> bool {
    !text(&pod["spec"]["nodeName"]).is_empty()
}

fn seen(pod: &Value) -> Seen {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let made_by = pod["metadata"]["annotations"].get(MADE_BY);
    Seen {
        name: text(&pod["metadata"]["name"]).to_owned(),
        uid: text(&pod["metadata"]["uid"]).to_owned(),
        node: text(&pod["spec"]["nodeName"]).to_owned(),
        deleting: pod["metadata"].get("deletionTimestamp").is_some(),
        made_by: made_by.map(|id| text(id).to_owned()),
        containers: containers
            .map(|c| (text(&c["name"]).to_owned(), text(&c["image"]).to_owned()))
            .collect(),
    }
}

fn node(name: &str) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": name }, "spec": {},
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}
