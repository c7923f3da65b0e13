//! The bar: a restore that is about to be given up is stopped before it is judged for the last time.
//!
//! ```text
//!  silence registry and images ─► freeze the pod's cgroup ─► look ─► restored: thaw, a success
//!                                                                └─► else it stands still until it is withdrawn
//! ```
//! Between a last look at a running node and the deletion of the pod's object its kubelet may try once more; what came
//! up in between and answered somebody would be lost. Silence outlives a reboot, which takes with it whatever the
//! freezer holds, so together they leave no moment. Only a pod that this journal says was barred is thawed here: a held
//! pod is none of ours.

use proto::worker::{Barred, DeliveredImage, Pod, Verified, Verify, verified_container::Origin};

use super::{HoldError, Holder, end};
use crate::{
    data::Data,
    journal::{Entry, Urgency},
};

impl Holder {
    /// Stops what is left of a restore, and says whether it came up after all. Repeating it looks again.
    pub async fn bar(
        &self,
        migration: &str,
        pod: &Pod,
        images: &[DeliveredImage],
        data: &dyn Data,
    ) -> Result<Barred, HoldError> {
        data.silence(migration, images).await?;
        let entry = Entry::Barring {
            migration: migration.to_owned(),
            pod_uid: pod.uid.clone(),
        };
        self.journal.append(vec![entry], Urgency::EndsAHold).await?;
        // None: its kubelet has not begun with the pod, and from now on finds no image for it.
        if let Some(cgroup) = self.node.find_cgroup(&pod.uid)? {
            self.node.freeze(&cgroup, &pod.uid).await?;
        }
        let verify = Verify {
            pod: Some(pod.clone()),
            migration_id: migration.to_owned(),
        };
        let verified = data.verify(&verify).await?;
        let restored = is_restored(pod, &verified);
        if restored {
            self.unbar(migration).await?;
        }
        let said = verified.containers.iter().map(|c| {
            let origin = c.origin().as_str_name();
            format!("{}: {origin} {}", c.name, c.detail)
                .trim()
                .to_owned()
        });
        Ok(Barred {
            restored,
            detail: said.collect::<Vec<_>>().join("; "),
        })
    }

    /// What was barred for this migration runs on: the log says that it was restored.
    pub async fn unbar(&self, migration: &str) -> Result<(), HoldError> {
        let Some(uid) = self.journal.recall().await?.migration(migration).barred else {
            return Ok(());
        };
        if let Some(cgroup) = self.node.find_cgroup(&uid)? {
            self.node.thaw(&cgroup, &uid).await?;
        }
        self.bar_ended(migration).await
    }

    /// What was barred for this migration ends for good, also where the journal that knew of it is lost: the frozen pod that
    /// is to be withdrawn is one that was barred, and frozen it might never die.
    ///
    /// Order: as with a held source, the kubelet should have begun to end the pod, or it makes the sandbox again just to
    /// end it; but nothing of the pod could start in it, so this is not insisted on.
    pub async fn end_barred(&self, migration: &str, withdrawn: &Pod) -> Result<(), HoldError> {
        let memory = self.journal.recall().await?;
        let uid = &withdrawn.uid;
        let forgotten = || -> Result<bool, HoldError> {
            let held = memory.holds().values().any(|hold| hold.pod_uid == *uid);
            Ok(!uid.is_empty() && !held && self.is_locked(uid)?)
        };
        let uid = match memory.migration(migration).barred {
            Some(uid) => uid,
            None if forgotten()? => uid.clone(),
            None => return Ok(()),
        };
        let _insisted_on_nothing = self
            .kubelet_ends(&uid, end::KUBELET_MAY_END_IT_WITHIN)
            .await?;
        if let Some(cgroup) = self.node.find_cgroup(&uid)? {
            self.node.kill(&cgroup, &uid).await?;
        }
        self.bar_ended(migration).await
    }

    async fn bar_ended(&self, migration: &str) -> Result<(), HoldError> {
        let entry = Entry::BarEnded {
            migration: migration.to_owned(),
        };
        Ok(self.journal.append(vec![entry], Urgency::EndsAHold).await?)
    }
}

fn is_restored(pod: &Pod, verified: &Verified) -> bool {
    let all = |origin| verified.containers.iter().all(|c| c.origin() == origin);
    !pod.containers.is_empty()
        && verified.containers.len() == pod.containers.len()
        && all(Origin::Restored)
}
