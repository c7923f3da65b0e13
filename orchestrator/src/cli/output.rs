//! Objects as JSON, YAML or names, for scripts; and the two streams: answers go to stdout, the story to stderr.

use std::io::Write;

use kube::{Resource, ResourceExt};
use serde::Serialize;

use super::{arguments::Format, failure::Failure};

/// Prints one object.
pub fn one<K>(object: &K, format: Format) -> Result<(), Failure>
where
    K: Resource<DynamicType = ()> + Serialize + Clone,
{
    let object = without_bookkeeping(object);
    match format {
        Format::Json => print(&json(&object)?),
        Format::Yaml => print(&yaml(&object)?),
        Format::Name => print(&format!("{}\n", name(&object))),
    }
}

/// Prints many, in a `List` as kubectl does.
pub fn many<K>(objects: &[K], format: Format) -> Result<(), Failure>
where
    K: Resource<DynamicType = ()> + Serialize + Clone,
{
    let items: Vec<K> = objects.iter().map(without_bookkeeping).collect();
    let list = List {
        api_version: "v1",
        kind: "List",
        items: &items,
    };
    match format {
        Format::Json => print(&json(&list)?),
        Format::Yaml => print(&yaml(&list)?),
        Format::Name => print(
            &items
                .iter()
                .map(|item| format!("{}\n", name(item)))
                .collect::<String>(),
        ),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a, K> {
    api_version: &'static str,
    kind: &'static str,
    items: &'a [K],
}

/// An answer. A reader that went away (`| head`) is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Print {
            format: "text",
            reason: error.to_string(),
        }),
        Ok(()) => Ok(()),
    }
}

/// `podmigration.longshore.dev/kuard-x7k2p`, as kubectl accepts it.
pub fn name<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!(
        "{}.{}/{}",
        K::kind(&()).to_lowercase(),
        K::group(&()),
        object.name_any()
    )
}

/// The API server's bookkeeping helps no reader; kubectl leaves it out too.
fn without_bookkeeping<K: Resource + Clone>(object: &K) -> K {
    let mut object = object.clone();
    object.meta_mut().managed_fields = None;
    object
}

fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::Print {
            format: "json",
            reason: error.to_string(),
        })
}

/// YAML of a value.
pub fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|error| Failure::Print {
        format: "yaml",
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    #[test]
    fn yaml_and_json_say_the_same() {
        let object = golden::recorded("succeeded");
        let from_yaml: serde_json::Value = serde_saphyr::from_str(&yaml(&object).unwrap()).unwrap();
        assert_eq!(from_yaml, serde_json::to_value(&object).unwrap());
    }

    #[test]
    fn a_name_is_one_that_kubectl_accepts() {
        assert_eq!(
            name(&golden::recorded("succeeded")),
            "podmigration.longshore.dev/kuard-x7k2p"
        );
    }
}
