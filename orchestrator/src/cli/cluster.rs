//! The Kubernetes API as this command uses it: `podmigrations`, `migrationnodes` and `storetasks`, nothing else.

use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    arguments::Access,
    failure::{Asking, Failure},
};
use crate::k8s::resource::{MigrationNode, PodMigration, StoreTask, StoreTaskSpec};

/// A connection, and the namespace the user means.
pub struct Cluster {
    client: Client,
    /// By flag, else the context's.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked of the cluster yet.
    pub async fn connect(access: &Access) -> Result<Self, Failure> {
        let Access {
            kubeconfig,
            context,
            namespace,
        } = access;
        let options = KubeConfigOptions {
            context: context.clone(),
            cluster: None,
            user: None,
        };
        let config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(kubeconfig_failure)?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(kubeconfig_failure)?
            }
            None => match Config::from_kubeconfig(&options).await {
                Ok(config) => config,
                // Inside a pod there is no kubeconfig but a ServiceAccount; a context that was named must exist.
                Err(error) if context.is_none() => {
                    Config::incluster().map_err(|_| kubeconfig_failure(error))?
                }
                Err(error) => return Err(kubeconfig_failure(error)),
            },
        };
        let namespace = namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(kubeconfig_failure)?;
        Ok(Self { client, namespace })
    }

    /// Migrations of one namespace.
    pub fn migrations(&self, namespace: &str) -> Api<PodMigration> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates a migration.
    pub async fn create(
        &self,
        namespace: &str,
        wanted: &PodMigration,
    ) -> Result<PodMigration, Failure> {
        let asking = Asking {
            verb: "create",
            resource: "podmigrations",
            name: "",
            namespace,
        };
        self.migrations(namespace)
            .create(&PostParams::default(), wanted)
            .await
            .map_err(|error| asking.failure(&error))
    }

    /// Writes notes (annotations) on an object. One that is gone meanwhile keeps none, which is no failure.
    pub async fn note(
        &self,
        namespace: &str,
        object: PodMigration,
        notes: &[(&str, String)],
    ) -> Result<PodMigration, Failure> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let asking = Asking {
            verb: "patch",
            resource: "podmigrations",
            name: &name,
            namespace,
        };
        let annotations: std::collections::BTreeMap<_, _> = notes.iter().cloned().collect();
        let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": annotations}}));
        let api = self.migrations(namespace);
        match api.patch(&name, &PatchParams::default(), &patch).await {
            Ok(noted) => Ok(noted),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(object),
            Err(error) => Err(asking.failure(&error)),
        }
    }

    /// One migration of the user's namespace.
    pub async fn get(&self, name: &str) -> Result<PodMigration, Failure> {
        let namespace = self.namespace.as_str();
        let asking = Asking {
            verb: "get",
            resource: "podmigrations",
            name,
            namespace,
        };
        self.migrations(namespace)
            .get(name)
            .await
            .map_err(|error| asking.failure(&error))
    }

    /// All migrations of a namespace, or of all, oldest first.
    pub async fn list(&self, all_namespaces: bool) -> Result<Vec<PodMigration>, Failure> {
        let (namespace, api) = if all_namespaces {
            ("", Api::all(self.client.clone()))
        } else {
            (self.namespace.as_str(), self.migrations(&self.namespace))
        };
        let asking = Asking {
            verb: "list",
            resource: "podmigrations",
            name: "",
            namespace,
        };
        let mut found: Vec<PodMigration> = api
            .list(&ListParams::default())
            .await
            .map_err(|error| asking.failure(&error))?
            .items;
        found.sort_by_key(|object| object.metadata.creation_timestamp.clone());
        Ok(found)
    }

    /// Deletes exactly this object: a namesake that was made meanwhile stays. One that is gone already is no error.
    pub async fn delete(&self, namespace: &str, object: &PodMigration) -> Result<(), Failure> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let asking = Asking {
            verb: "delete",
            resource: "podmigrations",
            name,
            namespace,
        };
        let exactly = DeleteParams::default().preconditions(Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: None,
        });
        let Err(error) = self.migrations(namespace).delete(name, &exactly).await else {
            return Ok(());
        };
        let failure = asking.failure(&error);
        if matches!(failure, Failure::NotFound { .. }) {
            return Ok(());
        }
        Err(failure)
    }

    /// Asks for something of the store.
    pub async fn ask_store(&self, spec: StoreTaskSpec) -> Result<StoreTask, Failure> {
        let mut task = StoreTask::new("", spec);
        task.metadata.name = None;
        task.metadata.generate_name = Some("migrate-".to_owned());
        Api::all(self.client.clone())
            .create(&PostParams::default(), &task)
            .await
            .map_err(|error| store_asking("create", "").failure(&error))
    }

    /// How far that is.
    pub async fn store_task(&self, name: &str) -> Result<StoreTask, Failure> {
        Api::all(self.client.clone())
            .get(name)
            .await
            .map_err(|error| store_asking("get", name).failure(&error))
    }

    /// It was read. Whoever may not delete it leaves it to the orchestrator.
    pub async fn forget_store_task(&self, name: &str) {
        let tasks: Api<StoreTask> = Api::all(self.client.clone());
        let _ = tasks.delete(name, &DeleteParams::default()).await;
    }

    /// What every node can do, by name.
    pub async fn nodes(&self) -> Result<Vec<MigrationNode>, Failure> {
        let asking = Asking {
            verb: "list",
            resource: "migrationnodes",
            name: "",
            namespace: "",
        };
        let mut found: Vec<MigrationNode> = Api::all(self.client.clone())
            .list(&ListParams::default())
            .await
            .map_err(|error| asking.failure(&error))?
            .items;
        found.sort_by_key(|node| node.metadata.name.clone());
        Ok(found)
    }
}

fn store_asking<'a>(verb: &'static str, name: &'a str) -> Asking<'a> {
    Asking {
        verb,
        resource: "storetasks",
        name,
        namespace: "",
    }
}

fn kubeconfig_failure(error: impl std::fmt::Display) -> Failure {
    Failure::Kubeconfig {
        reason: error.to_string(),
    }
}
