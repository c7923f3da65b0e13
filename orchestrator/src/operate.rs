//! The commands of operators, inside a peer's pod: `kubectl exec longshore-orchestrator-0 -- orchestrator peers`.
//!
//! They dial this peer over its loopback with its own certificate, and the leader where only that one can answer. When
//! there is no leader, or the one that is named has no majority behind it, they say so in words and fail.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use orchestrator_core::migration::Migration;
use proto::peer::{
    DescribeRequest, Description, ExportRequest, Peer, RemoveRequest, TransferRequest, Vote,
    operator_client::OperatorClient,
};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::{
    clock::unix_ms,
    config::{Command, Config, Output},
    consensus::{exported::Exported, node::found, storage::Owner},
    k8s::call,
    peers::{
        discovery::ordinal,
        record::{Record, Records},
    },
    tls::{Identity, peer_name},
};

/// A peer answers in milliseconds; asking a majority takes 2 s at most.
const WITHIN: Duration = Duration::from_secs(5);
/// A transfer takes milliseconds; raft gives it up after an election's time.
const DONE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What a full history weighs, as the export prints it, and room beside it.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Carries out a command.
///
/// # Errors
/// What didn't work, for the operator.
pub async fn run(config: &Config, command: Command) -> Result<ExitCode> {
    match command {
        Command::Peers { output } => {
            let seen = See::group(config).await?;
            print(&match output {
                Output::Text => seen.table(),
                Output::Json => seen.json_peers(),
            })?;
            Ok(seen.verdict())
        }
        Command::Leader { output } => {
            let seen = See::group(config).await?;
            print(&match output {
                Output::Text => seen.leader_line(),
                Output::Json => seen.json_leader(),
            })?;
            Ok(seen.verdict())
        }
        Command::Transfer { peer } => {
            let mut leader = See::group(config).await?.leader(config).await?;
            let request = TransferRequest { to: peer };
            leader.transfer(request).await.map_err(words)?;
            wait(config, &format!("peer {peer} to lead"), |seen| {
                seen.told.leader == peer && seen.told.quorum
            })
            .await?;
            print(&format!("peer {peer} leads"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Remove { peer } => {
            let mut leader = See::group(config).await?.leader(config).await?;
            let request = RemoveRequest { peer };
            leader.remove(request).await.map_err(words)?;
            wait(config, &format!("peer {peer} to be gone"), |seen| {
                seen.told.peers.iter().all(|known| known.id != peer)
            })
            .await?;
            print(&format!(
                "peer {peer} is removed; empty its disk before its pod starts again"
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Export { file, offline } => {
            let bytes = match offline {
                true => Exported::from_disk(&config.data_dir.join("raft/log.redb"))?.to_bytes()?,
                false => See::group(config).await?.export(config).await?,
            };
            write(&file, &bytes)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Import {
            file,
            enter_anew,
            set_aside,
        } => import(config, &file, enter_anew, set_aside).await,
    }
}

/// What a peer says of the group: the leader, if it can be reached, else the one that was asked.
struct See {
    told: Description,
}

impl See {
    async fn group(config: &Config) -> Result<Self> {
        let told = describe(&mut own(config).await?).await?;
        let seen = Self { told };
        if seen.told.leader == 0 || seen.told.leader == seen.told.peer {
            return Ok(seen);
        }
        // Only the leader knows how far the others are; without it this peer's word has to do.
        match seen.dial_leader(config).await {
            Ok(mut leader) => match describe(&mut leader).await {
                Ok(told) => Ok(Self { told }),
                Err(_) => Ok(seen),
            },
            Err(_) => Ok(seen),
        }
    }

    async fn dial_leader(&self, config: &Config) -> Result<OperatorClient<Channel>> {
        let leader = self.told.leader;
        if leader == self.told.peer {
            return own(config).await;
        }
        let known = self.told.peers.iter().find(|peer| peer.id == leader);
        let address = known
            .and_then(|peer| peer.address.as_ref())
            .with_context(|| format!("nobody knows where peer {leader} is, which leads"))?;
        let group: Uuid = self.told.group.parse().context("read the group's name")?;
        let host = match address.host.contains(':') {
            true => format!("[{}]", address.host),
            false => address.host.clone(),
        };
        let address = format!("https://{host}:{}", address.peer_port);
        dial(config, &address, &peer_name(group, leader)).await
    }

    /// The leader, for an order.
    async fn leader(&self, config: &Config) -> Result<OperatorClient<Channel>> {
        if self.told.leader == 0 || !self.told.quorum {
            bail!("{}", self.no_quorum());
        }
        self.dial_leader(config).await
    }

    async fn export(&self, config: &Config) -> Result<Vec<u8>> {
        let mut client = match self.told.quorum {
            true => self.dial_leader(config).await?,
            false => {
                tracing::warn!("{}; this peer's own state is exported", self.no_quorum());
                own(config).await?
            }
        };
        let exported = client.export(ExportRequest {}).await.map_err(words)?;
        let mut pieces = exported.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await.map_err(words)? {
            bytes.extend(piece.bytes);
        }
        Exported::from_bytes(&bytes).context("check the export")?;
        Ok(bytes)
    }

    fn verdict(&self) -> ExitCode {
        if self.told.quorum {
            return ExitCode::SUCCESS;
        }
        tracing::error!("{}", self.no_quorum());
        ExitCode::FAILURE
    }

    fn no_quorum(&self) -> String {
        let voters = self
            .told
            .peers
            .iter()
            .filter(|peer| peer.vote() != Vote::Learner);
        let (voters, leader) = (voters.count(), self.told.leader);
        let needed = voters / 2 + 1;
        match leader {
            0 => format!(
                "there is no quorum: peer {} knows no leader; {needed} of {voters} voters must run and reach one another",
                self.told.peer
            ),
            leader => format!(
                "there is no quorum: peer {leader} was the leader, but no majority answers it; {needed} of {voters} voters must run and reach one another"
            ),
        }
    }

    fn leader_line(&self) -> String {
        match self.told.leader {
            0 => "nobody leads".to_owned(),
            leader => format!(
                "peer {leader} {} (term {})",
                self.pod(leader),
                self.told.term
            ),
        }
    }

    fn pod(&self, peer: u64) -> &str {
        let known = self.told.peers.iter().find(|known| known.id == peer);
        known.map(|known| known.name.as_str()).unwrap_or_default()
    }

    fn json_leader(&self) -> String {
        json!({
            "peer": self.told.leader, "pod": self.pod(self.told.leader), "term": self.told.term,
            "quorum": self.told.quorum,
        })
        .to_string()
    }

    fn json_peers(&self) -> String {
        let peers = self.told.peers.iter().map(|peer| {
            json!({
                "id": peer.id, "pod": peer.name, "address": place(peer), "leader": peer.id == self.told.leader,
                "vote": vote(peer), "applied": peer.has_applied.then_some(peer.applied),
                "silentMilliseconds": peer.heard.then_some(peer.silent_ms),
            })
        });
        let peers: Vec<_> = peers.collect();
        json!({"group": self.told.group, "askedPeer": self.told.peer, "quorum": self.told.quorum, "peers": peers})
            .to_string()
    }

    fn table(&self) -> String {
        let mut rows =
            vec![["PEER", "POD", "ADDRESS", "ROLE", "VOTE", "APPLIED", "HEARD"].map(str::to_owned)];
        for peer in &self.told.peers {
            let known = |text: String, yes: bool| if yes { text } else { "?".to_owned() };
            rows.push([
                peer.id.to_string(),
                known(peer.name.clone(), !peer.name.is_empty()),
                place(peer),
                role(peer, self.told.leader).to_owned(),
                vote(peer).to_owned(),
                known(peer.applied.to_string(), peer.has_applied),
                known(format!("{} ms ago", peer.silent_ms), peer.heard),
            ]);
        }
        columns(&rows)
    }
}

fn role(peer: &Peer, leader: u64) -> &'static str {
    match peer.id == leader {
        true => "leader",
        false => "follower",
    }
}

fn vote(peer: &Peer) -> &'static str {
    match peer.vote() {
        Vote::Voter => "voter",
        Vote::Outgoing => "leaving",
        Vote::Learner => "learner",
        Vote::Unspecified => "?",
    }
}

fn place(peer: &Peer) -> String {
    match &peer.address {
        Some(address) => format!("{}:{}", address.host, address.peer_port),
        None => "?".to_owned(),
    }
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn wait(config: &Config, what: &str, done: impl Fn(&See) -> bool) -> Result<()> {
    let waited = tokio::time::timeout(DONE_WITHIN, async {
        loop {
            // While the lead changes hands nobody may know the leader: that is not the end.
            if See::group(config).await.is_ok_and(|seen| done(&seen)) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    waited.await.with_context(|| {
        format!(
            "wait {} s for {what}: it may come about still, see `orchestrator peers`",
            DONE_WITHIN.as_secs()
        )
    })
}

async fn own(config: &Config) -> Result<OperatorClient<Channel>> {
    let address = format!("https://127.0.0.1:{}", config.listen_peers.port());
    dial(config, &address, "localhost")
        .await
        .context("ask this peer's daemon: it doesn't run, or has found no place in the group yet (see its log)")
}

async fn dial(config: &Config, address: &str, name: &str) -> Result<OperatorClient<Channel>> {
    let identity = Identity::kept(&config.data_dir.join("tls"))?
        .context("this peer has no certificate yet: its daemon has not started")?;
    let channel = Endpoint::from_shared(address.to_owned())?
        .tls_config(identity.towards(name))?
        .connect_timeout(WITHIN)
        .timeout(WITHIN)
        .connect()
        .await
        .with_context(|| format!("dial {address}"))?;
    Ok(OperatorClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
}

async fn describe(client: &mut OperatorClient<Channel>) -> Result<Description> {
    let told = client.describe(DescribeRequest {}).await.map_err(words)?;
    Ok(told.into_inner())
}

/// A peer's refusal in its own words.
fn words(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

async fn import(
    config: &Config,
    file: &Path,
    enter_anew: bool,
    set_aside: bool,
) -> Result<ExitCode> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let exported = Exported::from_bytes(&bytes)?;
    let under_way: Vec<&Migration> = exported
        .state
        .migrations
        .values()
        .map(AsRef::as_ref)
        .filter(|migration| !migration.phase.ended())
        .collect();
    if !under_way.is_empty() && !enter_anew {
        let list: Vec<String> = under_way
            .iter()
            .map(|migration| format!("  {} {}", migration.object, migration.phase))
            .collect();
        bail!(
            "these migrations were under way:\n{}\nThey may have gone on after the export. If the export is of a disk that was \
             up to date to the end, import it with --enter-anew: workers refuse everything older from then on.",
            list.join("\n")
        );
    }
    let group = Uuid::new_v4();
    let (_, ordinal) = ordinal(&config.pod_name).with_context(|| {
        format!(
            "the pod's name {} has no ordinal at its end",
            config.pod_name
        )
    })?;
    let client = kube::Client::try_from(call::config().await.context("find the Kubernetes API")?)
        .context("make a Kubernetes client")?;
    let records = Records::new(client, &config.namespace);
    // Ids go on behind those of the old group, so that no old disk and no old certificate fits the new one.
    let found_record = records.read().await.context("read the group's record")?;
    let peer = found_record.as_ref().map_or(1, |(record, _)| record.next);
    let (index, running) = (exported.index, under_way.len());
    let founding = exported.founding(peer, unix_ms());
    let begins = founding.index;
    let log = config.data_dir.join("raft");
    if set_aside && log.exists() {
        let aside = config.data_dir.join(format!("raft.before-{group}"));
        std::fs::rename(&log, &aside)
            .with_context(|| format!("set {} aside as {}", log.display(), aside.display()))?;
    }
    // The disk first: one that is in use stops everything. Then the record, which makes it the group.
    found(&log, Owner { peer, group }, &founding)?;
    records
        .write(
            &Record::of_one(group, ordinal, peer, peer + 1),
            &found_record,
        )
        .await
        .context("write the group's record: empty this directory before the next try")?;
    print(&format!(
        "founded group {group} of peer {peer} at index {begins}, from index {index}; {running} migrations go on.\n\
         Empty the other peers' disks and start all: they join with new ids."
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    match file.to_str() {
        Some("-") => io::stdout().write_all(bytes).context("write the export"),
        Some(_) | None => {
            std::fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
        }
    }
}

fn print(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("print")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(leader: u64, quorum: bool) -> See {
        let peer = |id: u64, heard: bool| Peer {
            id,
            name: format!("longshore-orchestrator-{}", id - 1),
            address: Some(proto::peer::Address {
                host: format!("10.0.0.{id}"),
                peer_port: 7444,
                worker_port: 7443,
            }),
            vote: Vote::Voter.into(),
            has_applied: heard,
            applied: 100 + id,
            heard,
            silent_ms: 20 * id,
        };
        See {
            told: Description {
                group: Uuid::nil().to_string(),
                peer: 1,
                leader,
                term: 4,
                quorum,
                peers: vec![peer(1, true), peer(2, true), peer(3, false)],
            },
        }
    }

    #[test]
    fn the_table_says_who_leads_and_what_is_not_known() {
        let table = told(2, true).table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "PEER  POD                       ADDRESS        ROLE      VOTE   APPLIED  HEARD",
                "1     longshore-orchestrator-0  10.0.0.1:7444  follower  voter  101      20 ms ago",
                "2     longshore-orchestrator-1  10.0.0.2:7444  leader    voter  102      40 ms ago",
                "3     longshore-orchestrator-2  10.0.0.3:7444  follower  voter  ?        ?",
            ]
        );
    }

    #[test]
    fn without_a_quorum_it_says_what_is_needed() {
        let words = told(0, false).no_quorum();
        assert_eq!(
            words,
            "there is no quorum: peer 1 knows no leader; 2 of 3 voters must run and reach one another"
        );
        assert_eq!(
            told(2, true).leader_line(),
            "peer 2 longshore-orchestrator-1 (term 4)"
        );
    }
}
