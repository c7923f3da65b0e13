//! The custom resource definitions, from the types themselves. `deploy/base/crds.yaml` is this module's output, and a
//! test holds the file to it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{failure::Failure, output};
use crate::k8s::resource::{MigrationNode, PodMigration};

/// Every resource of ours.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![PodMigration::crd(), MigrationNode::crd()]
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
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/crds.yaml");
        let deployed = std::fs::read_to_string(&path).unwrap();
        let wanted = yaml().unwrap();
        assert!(
            deployed == wanted,
            "deploy/base/crds.yaml is old; renew it: cargo run --bin migrate crds > deploy/base/crds.yaml"
        );
    }
}
