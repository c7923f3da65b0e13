//! A data path that keeps archives in a folder and does nothing else: for what is not about data.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proto::worker::{
    Deliver, Delivered, DeliveredImage, Disarm, ExportImages, ExportedImages, HasImages,
    ImportImages, Receive, Span, Tidy, Verified, Verify, Withdraw,
};
use tokio_util::sync::CancellationToken;
use worker::data::{Data, DataError, ProgressFn, Saved, Stores};

pub struct Pocket {
    pub folder: PathBuf,
    /// Delivering takes this long, unless it gives way.
    pub slow: Duration,
    /// How often something was delivered.
    pub delivered: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Data for Pocket {
    async fn save(&self, what: Stores<'_>, _progress: &ProgressFn) -> Result<Saved, DataError> {
        let Stores {
            migration: _,
            prefix,
            archives,
            base: _,
        } = what;
        let mut saved = Saved {
            manifest_key: format!("{prefix}manifest"),
            ..Saved::default()
        };
        for (container, path) in archives {
            let target = self.folder.join(format!("{container}.tar"));
            saved.raw_bytes += tokio::fs::copy(path, target)
                .await
                .map_err(|error| DataError(error.to_string()))?;
        }
        Ok(saved)
    }

    async fn copy(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError> {
        self.save(what, progress).await
    }

    async fn receive(
        &self,
        _migration: &str,
        _request: &Receive,
        _progress: &ProgressFn,
        _give_way: &CancellationToken,
    ) -> Result<Vec<Span>, DataError> {
        Ok(Vec::new())
    }

    async fn deliver(
        &self,
        _migration: &str,
        _revision: u64,
        _request: &Deliver,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(Delivered, Vec<Span>), DataError> {
        progress("fetch", 1, 2);
        let slow = give_way.run_until_cancelled(tokio::time::sleep(self.slow));
        slow.await.ok_or_else(|| DataError("gave way".to_owned()))?;
        self.delivered.fetch_add(1, Ordering::SeqCst);
        Ok((Delivered::default(), Vec::new()))
    }

    async fn verify(&self, _request: &Verify) -> Result<Verified, DataError> {
        Ok(Verified::default())
    }

    async fn disarm(&self, _request: &Disarm) -> Result<(), DataError> {
        Ok(())
    }

    async fn silence(&self, _: &str, _: &[DeliveredImage]) -> Result<(), DataError> {
        Ok(())
    }

    async fn withdraw(&self, _migration: &str, _request: &Withdraw) -> Result<(), DataError> {
        Ok(())
    }

    async fn tidy(&self, _migration: &str, _request: &Tidy) -> Result<(), DataError> {
        Ok(())
    }

    async fn has_images(&self, _request: &HasImages) -> Result<Vec<String>, DataError> {
        Ok(Vec::new())
    }

    async fn running_digests(
        &self,
        _containers: &[proto::worker::Container],
    ) -> Result<std::collections::HashMap<String, String>, DataError> {
        Ok(std::collections::HashMap::new())
    }

    async fn export_images(
        &self,
        _: &str,
        _: &ExportImages,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<ExportedImages, DataError> {
        Ok(ExportedImages::default())
    }

    async fn import_images(
        &self,
        _: &str,
        _: &ImportImages,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<(), DataError> {
        Ok(())
    }
}
