//! What the daemon announces on its channel: the keys that it removed.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::redis_error::redis_failure;
use crate::cmd::config_file::ConfigFile;
use crate::cmd::failure::Failure;
use crate::coherence::watermark::Names;
use crate::sink::{Broadcast, connect_subscriber};

/// How many announcements wait to be read.
const WAITING_MAX: usize = 1024;

/// The keys that one commit removed.
pub(super) struct Announcement {
    /// Without the namespace.
    pub(super) keys: Vec<String>,
    /// From the commit to the arrival of the announcement.
    pub(super) latency: Duration,
}

/// Receives announcements, each with the time of its arrival.
pub(super) struct Announcements {
    receiver: mpsc::Receiver<(Broadcast, SystemTime)>,
    namespace: String,
}

impl Announcements {
    /// Subscribes to the daemon's channel.
    pub(super) async fn follow(file: &ConfigFile) -> Result<Self, Failure> {
        let settings = &file.settings;
        let names = Names::new(&settings.namespace, &settings.slot);
        let channel = String::from_utf8_lossy(names.invalidations.as_bytes()).into_owned();
        let mut subscriber = connect_subscriber(&settings.redis).await?;
        subscriber.subscribe(channel).await.map_err(redis_failure)?;
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            let mut messages = subscriber.into_on_message();
            while let Some(message) = messages.next().await {
                let arrived = SystemTime::now();
                if let Ok(broadcast) = serde_json::from_slice(message.get_payload_bytes())
                    && sender.send((broadcast, arrived)).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { receiver, namespace: settings.namespace.clone() })
    }

    /// The next announcement, if one arrives in time.
    pub(super) async fn next(&mut self, time_max: Duration) -> Option<Announcement> {
        let (broadcast, arrived) = tokio::time::timeout(time_max, self.receiver.recv()).await.ok()??;
        Some(self.announcement(broadcast, arrived))
    }

    /// The next announcement, if one has arrived.
    pub(super) fn try_next(&mut self) -> Option<Announcement> {
        let (broadcast, arrived) = self.receiver.try_recv().ok()?;
        Some(self.announcement(broadcast, arrived))
    }

    fn announcement(&self, broadcast: Broadcast, arrived: SystemTime) -> Announcement {
        let committed = humantime::parse_rfc3339(&broadcast.at).unwrap_or(arrived);
        let key = |name: &str| name.strip_prefix(&self.namespace).unwrap_or(name).to_owned();
        Announcement {
            keys: broadcast.ops.iter().map(|op| key(&op.key)).collect(),
            latency: arrived.duration_since(committed).unwrap_or_default(),
        }
    }
}
