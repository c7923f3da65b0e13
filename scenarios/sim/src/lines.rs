//! Lives that go on: whoever comes to run must have everything that its life had come to.

use std::collections::BTreeMap;

use crate::truth::{Container, Line, LocalPod};

/// By pod and container.
pub(crate) type Lines = BTreeMap<(String, String), Line>;

/// Every container that this pod ever had is up.
pub(crate) fn is_whole(pod: &LocalPod, lines: &Lines) -> bool {
    let known = lines.range((pod.name.clone(), String::new())..);
    let mut names = known
        .map(|(key, _)| key)
        .take_while(|(of, _)| *of == pod.name);
    names.all(|(_, name)| pod.alive().any(|c| c.name == *name && !c.stray))
}

/// Another container of the pod ran on when this one's last attempt had ended: the pod stands as it never did.
pub(crate) fn went_back_alone(pod: &[Container], container: &Container) -> bool {
    let same = |other: &&Container| other.name == container.name;
    let earlier = pod
        .iter()
        .filter(same)
        .filter(|other| other.started && other.id != container.id);
    let Some(ended_ms) = earlier.map(|other| other.ended_ms).max() else {
        return false;
    };
    let mut others = pod.iter().filter(|other| !same(other) && other.is_alive());
    others.any(|other| other.started_ms < ended_ms)
}

/// A container comes to run: says what is wrong when it is not where its life had come to.
pub(crate) fn goes_on(
    lines: &mut Lines,
    pod: &str,
    container: &mut Container,
    alone: bool,
) -> Option<String> {
    let memory = container.memory.as_mut().filter(|_| !container.stray)?;
    let key = (pod.to_owned(), container.name.clone());
    let line = lines.entry(key).or_insert(Line {
        memory: *memory,
        lost_by_accident: false,
    });
    // Lives are numbered: a newer one is a fresh start that has come to run. And what came after a checkpoint went with
    // the accident that ended it: the checkpoint is the best there is.
    let is_new = memory.life > line.memory.life;
    if is_new || line.lost_by_accident && memory.life == line.memory.life {
        line.memory = *memory;
    }
    let stale = (*memory != line.memory)
        .then(|| format!("goes on at {memory:?}, it had come to {:?}", line.memory));
    memory.ran += 1;
    line.memory.ran += 1;
    // Gone back alone after an accident, it is no success: whoever ends it loses nothing new.
    line.lost_by_accident &= alone;
    stale
}
