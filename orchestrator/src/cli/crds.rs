//! The custom resource definitions, from the types themselves. `deploy/base/crds.yaml` is this module's output, and a
//! test holds the file to it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::{failure::Failure, output};
use crate::k8s::resource::{MigrationNode, PodMigration, StoreTask};

/// Every resource of ours.
///
/// # Panics
/// Never: what is read back is what was written, less a hint.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    [PodMigration::crd(), MigrationNode::crd(), StoreTask::crd()]
        .iter()
        .map(|crd| {
            let mut json = serde_json::to_value(crd).expect("a definition is plain data");
            forget_unsigned_formats(&mut json);
            serde_json::from_value(json).expect("a definition without format hints is one")
        })
        .collect()
}

/// Kubernetes has no unsigned formats and warns of each at every apply; `minimum: 0`, which stays, says the same.
fn forget_unsigned_formats(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            if matches!(fields.get("format"), Some(Value::String(format)) if format.starts_with("uint"))
            {
                fields.remove("format");
            }
            fields.values_mut().for_each(forget_unsigned_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_unsigned_formats),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// As `kubectl apply` reads them.
pub(super) fn yaml() -> Result<String, Failure> {
    let mut text =
        String::from("# Written by `migrate crds`; a test compares. Change the types instead.\n");
    for crd in crds() {
        text.push_str("---\n");
        text.push_str(&output::yaml(&crd)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_deployed_definitions_are_what_the_types_say() {
        // Of the checkout that runs the test, which need not be the one that built it.
        let checkout = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
        let path = Path::new(&checkout).join("../deploy/base/crds.yaml");
        let deployed = std::fs::read_to_string(&path).unwrap();
        let wanted = yaml().unwrap();
        assert!(
            deployed == wanted,
            "deploy/base/crds.yaml is old; renew it: cargo run --bin migrate crds > deploy/base/crds.yaml"
        );
    }
}
