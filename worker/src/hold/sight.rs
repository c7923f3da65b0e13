//! What is seen of a pod, and whether that is what should be. Seeing is in [`see`]; judging is pure.

use proto::worker::Pod;

use super::Tasks;
use crate::containerd::{Container, ContainerdError, Task, TaskState};

/// Exit status of a process that SIGKILL ended: the kubelet's or the kernel's when memory ran out.
const EXIT_KILLED: u32 = 137;

/// The containers of a pod and what their tasks do.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    containers: Vec<(Container, Option<Task>)>,
}

/// Looks at a pod through the runtime.
pub async fn see(tasks: &(impl Tasks + ?Sized), uid: &str) -> Result<Sight, ContainerdError> {
    let mut containers = Vec::new();
    for container in tasks.containers_of(uid).await? {
        let task = tasks.task(&container.id).await?;
        containers.push((container, task));
    }
    Ok(Sight { containers })
}

impl Sight {
    /// containerd knows nothing of the pod.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// The task of a container.
    pub fn task(&self, id: &str) -> Option<Task> {
        self.containers
            .iter()
            .find(|(container, _)| container.id == id)
            .and_then(|(_, task)| *task)
    }

    /// First processes of what is alive, containers before the sandbox.
    pub fn alive(&self) -> Vec<(&Container, Task)> {
        let mut alive: Vec<_> = self
            .containers
            .iter()
            .filter_map(|(container, task)| {
                Some((container, task.filter(|task| is_alive(task.state))?))
            })
            .collect();
        alive.sort_by_key(|(container, _)| container.is_sandbox);
        alive
    }

    /// Are exactly the containers that move in this state? Else the first thing that is not as it should be.
    pub fn stands(&self, pod: &Pod, wanted: TaskState) -> Result<(), String> {
        if pod.containers.is_empty() {
            return Err("the request names no container of the pod".to_owned());
        }
        for container in &pod.containers {
            self.container_stands(&container.name, &container.container_id, wanted)?;
        }
        let moves = |id: &str| {
            pod.containers
                .iter()
                .any(|container| container.container_id == id)
        };
        match self
            .alive()
            .iter()
            .find(|(container, _)| !container.is_sandbox && !moves(&container.id))
        {
            Some((stranger, _)) => Err(format!(
                "container {} ({}) of the pod runs too and is not among those that move",
                stranger.name,
                short(&stranger.id)
            )),
            None => Ok(()),
        }
    }

    fn container_stands(&self, name: &str, id: &str, wanted: TaskState) -> Result<(), String> {
        let successor = self
            .alive()
            .iter()
            .find(|(other, _)| other.name == name && other.id != id)
            .map(|(o, _)| short(&o.id));
        let instead = successor
            .map(|id| format!("; it was started anew as {id}"))
            .unwrap_or_default();
        let known = self
            .containers
            .iter()
            .find(|(container, _)| container.id == id);
        let Some((_, task)) = known else {
            return Err(format!("container {name} ({}) is gone{instead}", short(id)));
        };
        match task {
            None => Err(format!("container {name} has ended{instead}")),
            Some(Task { state, .. }) if *state == wanted => Ok(()),
            Some(Task {
                state: TaskState::Stopped,
                exit_status: EXIT_KILLED,
                ..
            }) => Err(format!(
                "container {name} was killed (out of memory, or by the kubelet){instead}"
            )),
            Some(Task {
                state: TaskState::Stopped,
                exit_status,
                ..
            }) => Err(format!(
                "container {name} ended with exit status {exit_status}{instead}"
            )),
            Some(Task { state, .. }) => {
                Err(format!("container {name} is {state:?} and not {wanted:?}"))
            }
        }
    }
}

/// Ids are shown as containerd's own tools show them.
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn is_alive(state: TaskState) -> bool {
    match state {
        TaskState::Created
        | TaskState::Running
        | TaskState::Paused
        | TaskState::Pausing
        | TaskState::Unknown => true,
        TaskState::Stopped => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ids: &[(&str, &str)]) -> Pod {
        let containers = ids.iter().map(|(name, id)| proto::worker::Container {
            name: (*name).into(),
            container_id: (*id).into(),
            ..Default::default()
        });
        Pod {
            containers: containers.collect(),
            ..Default::default()
        }
    }

    /// Name, id, and the task if there is one.
    type Seen<'a> = (&'a str, &'a str, Option<(TaskState, u32)>);

    fn sight(seen: &[Seen<'_>]) -> Sight {
        let containers = seen.iter().map(|(name, id, task)| {
            let container = Container {
                id: (*id).into(),
                name: (*name).into(),
                is_sandbox: name.is_empty(),
                runtime: String::new(),
            };
            (
                container,
                task.map(|(state, exit_status)| Task {
                    pid: 1,
                    state,
                    terminal: false,
                    exit_status,
                }),
            )
        });
        Sight {
            containers: containers.collect(),
        }
    }

    #[test]
    fn a_pod_stands_when_its_containers_do_whatever_the_sandbox_does() {
        let seen = sight(&[
            ("", "s", Some((TaskState::Running, 0))),
            ("a", "1", Some((TaskState::Paused, 0))),
        ]);
        assert_eq!(seen.stands(&pod(&[("a", "1")]), TaskState::Paused), Ok(()));
        let why = seen
            .stands(&pod(&[("a", "1")]), TaskState::Running)
            .unwrap_err();
        assert_eq!(why, "container a is Paused and not Running");
    }

    #[test]
    fn every_way_in_which_a_container_changed_is_told_apart() {
        let paused = Some((TaskState::Paused, 0));
        let cases = [
            (
                sight(&[("a", "2", paused)]),
                "container a (1) is gone; it was started anew as 2",
            ),
            (sight(&[("a", "1", None)]), "container a has ended"),
            (
                sight(&[("a", "1", Some((TaskState::Stopped, 3)))]),
                "container a ended with exit status 3",
            ),
            (
                sight(&[("a", "1", Some((TaskState::Stopped, 137)))]),
                "container a was killed (out of memory, or by the kubelet)",
            ),
            (
                sight(&[
                    ("a", "1", paused),
                    ("b", "2", Some((TaskState::Running, 0))),
                ]),
                "container b (2) of the pod runs too and is not among those that move",
            ),
        ];
        for (seen, why) in cases {
            assert_eq!(
                seen.stands(&pod(&[("a", "1")]), TaskState::Paused)
                    .unwrap_err(),
                why
            );
        }
        assert!(
            Sight::default()
                .stands(&pod(&[]), TaskState::Paused)
                .is_err(),
            "nothing held is not a hold"
        );
    }
}
