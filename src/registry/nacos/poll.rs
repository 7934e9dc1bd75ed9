//! The queries of polling, in the interface that the server has.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use super::client::{ApiVersion, NacosClient, PAGE_SIZE};
use super::parse::InstanceList;
use crate::registry::failure::Failure;
use crate::registry::polling::{PolledAnswer, PolledList, PolledNames, PollingClient, Revision};

/// A client of one server that tells changes by digests, since Nacos has no revisions.
#[derive(Clone)]
pub(in crate::registry) struct NacosPoller {
    client: NacosClient,
    /// The interface of the server, once it is known.
    api: Arc<OnceLock<ApiVersion>>,
    hasher: RandomState,
    clusters: Arc<[String]>,
}

impl NacosPoller {
    pub(super) fn new(client: NacosClient, clusters: &[String]) -> Self {
        Self {
            client,
            api: Arc::default(),
            hasher: RandomState::default(),
            clusters: clusters.into(),
        }
    }

    async fn read_names(&self) -> Result<BTreeSet<Box<str>>, Failure> {
        if let Some(api) = self.api.get() {
            return self.client.names(*api).await;
        }
        let (api, names) = self.client.first_names().await?;
        self.api.get_or_init(|| api);
        Ok(names)
    }

    async fn read_list(
        &self,
        name: &str,
        known: Option<&Revision>,
    ) -> Result<PolledAnswer, Failure> {
        let api = *self.api.get_or_init(|| ApiVersion::V1);
        let answer = self.client.instances(api, name).await?;
        let instances = InstanceList::find(api, &answer.body)?;
        let revision: Revision = format!("{:x}", instances.digest(&self.hasher)).into();
        if known == Some(&revision) {
            return Ok(PolledAnswer::Unchanged);
        }
        let list = instances.list(name, &self.clusters);
        // Unknown services, emptied ones, and those that a restart has lost look alike.
        if list.instances == 0 {
            return Ok(PolledAnswer::Missing);
        }
        Ok(PolledAnswer::List(PolledList { revision: Some(revision), ..list }))
    }
}

impl PollingClient for NacosPoller {
    async fn names(&self, _known: Option<&Revision>) -> Result<Option<PolledNames>, Failure> {
        let names = self.read_names().await?;
        Ok(Some(PolledNames { revision: None, pages: names.len() / PAGE_SIZE + 1, names }))
    }

    async fn list(&self, name: &str, known: Option<&Revision>) -> Result<PolledAnswer, Failure> {
        let list = self.read_list(name, known).await;
        list.map_err(|failure| failure.of(&format!("read the service {name:?}")))
    }
}
