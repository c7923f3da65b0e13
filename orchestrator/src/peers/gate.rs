//! The gate: who may speak as a peer. Strangers are refused and counted.
//!
//! TLS has proved that the certificate is the authority's; here it is proved to be that of the peer who is said to
//! speak, of this group, and one that belongs to it: a member by this peer's own log, or known by the record of the
//! group and not removed. The log alone would not do: a peer that is behind doesn't know its new leader yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use prometheus::IntCounterVec;
use proto::peer::{Greeting, ProtocolVersion};
use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};
use tokio::sync::watch;
use tonic::Status;
use uuid::Uuid;

use super::book::{Address, Book};
use crate::{consensus::core::Members, tls::peer_name};

/// Why somebody is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// No certificate of the authority: the handshake failed.
    NoCertificate,
    /// The certificate is another's.
    OtherName,
    /// Of another group.
    OtherGroup,
    /// Wants another peer.
    NotForUs,
    /// Is no member.
    NoMember,
    /// Was removed.
    Removed,
    /// Speaks another version.
    Protocol,
    /// Says what can't be understood.
    Malformed,
}

/// Every reason.
const STRANGERS: [Stranger; 8] = [
    Stranger::NoCertificate,
    Stranger::OtherName,
    Stranger::OtherGroup,
    Stranger::NotForUs,
    Stranger::NoMember,
    Stranger::Removed,
    Stranger::Protocol,
    Stranger::Malformed,
];

impl Stranger {
    fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::OtherName => "other_name",
            Self::OtherGroup => "other_group",
            Self::NotForUs => "not_for_us",
            Self::NoMember => "no_member",
            Self::Removed => "removed",
            Self::Protocol => "protocol",
            Self::Malformed => "malformed",
        }
    }
}

/// The gate. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    /// This peer.
    pub own: u64,
    /// Its group.
    pub group: Uuid,
    /// Where peers are.
    pub book: Book,
    members: watch::Receiver<Members>,
    refused: IntCounterVec,
    heard: Arc<Mutex<BTreeMap<u64, Instant>>>,
}

impl Gate {
    /// Of one peer; refusals are counted by their reason.
    #[must_use]
    pub fn new(
        own: u64,
        group: Uuid,
        book: Book,
        members: watch::Receiver<Members>,
        refused: IntCounterVec,
    ) -> Self {
        // Shown as 0 from the start: a counter that appears with its first stranger never shows an increase.
        for reason in STRANGERS {
            refused.with_label_values(&[reason.label()]);
        }
        Self {
            own,
            group,
            book,
            members,
            refused,
            heard: Arc::default(),
        }
    }

    /// Lets a peer in, or says why not. Its address goes into the book.
    ///
    /// # Errors
    /// The refusal, counted.
    pub fn admit(
        &self,
        certificates: Option<&[CertificateDer<'static>]>,
        greeting: Option<Greeting>,
    ) -> Result<u64, Status> {
        let Some(greeting) = greeting else {
            return Err(self.refuse(Stranger::Malformed, 0));
        };
        let Greeting {
            protocol,
            group,
            from,
            to,
            address,
        } = greeting;
        self.judge(certificates, protocol, &group, from, to)
            .map_err(|stranger| self.refuse(stranger, from))?;
        if let Some(address) = address.and_then(|address| address_of(&address)) {
            self.book.found(from, &address);
        }
        self.hears(from);
        Ok(from)
    }

    fn judge(
        &self,
        certificates: Option<&[CertificateDer<'static>]>,
        protocol: i32,
        group: &str,
        from: u64,
        to: u64,
    ) -> Result<(), Stranger> {
        let certificate = certificates
            .and_then(<[_]>::first)
            .ok_or(Stranger::NoCertificate)?;
        if protocol != ProtocolVersion::ProtocolVersion1 as i32 {
            return Err(Stranger::Protocol);
        }
        if group != self.group.to_string() {
            return Err(Stranger::OtherGroup);
        }
        if !is_of(certificate, &peer_name(self.group, from)) {
            return Err(Stranger::OtherName);
        }
        if to != self.own {
            return Err(Stranger::NotForUs);
        }
        let entries = self.book.entries();
        let entries = entries.borrow();
        if entries.removed.contains(&from) {
            return Err(Stranger::Removed);
        }
        let member = self.members.borrow().all().contains(&from);
        match member || entries.peers.contains_key(&from) {
            true => Ok(()),
            false => Err(Stranger::NoMember),
        }
    }

    /// Counts a refusal and makes the answer to it.
    pub fn refuse(&self, stranger: Stranger, from: u64) -> Status {
        self.refused.with_label_values(&[stranger.label()]).inc();
        tracing::debug!(from, ?stranger, "a stranger was refused");
        match stranger {
            Stranger::Removed => {
                Status::permission_denied("this peer was removed from the group: empty its disk")
            }
            Stranger::NoCertificate
            | Stranger::OtherName
            | Stranger::OtherGroup
            | Stranger::NotForUs
            | Stranger::NoMember
            | Stranger::Protocol
            | Stranger::Malformed => Status::permission_denied(stranger.label()),
        }
    }

    /// A peer was heard just now.
    pub fn hears(&self, peer: u64) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(peer, Instant::now());
    }

    /// When each peer was last heard.
    #[must_use]
    pub fn heard(&self) -> BTreeMap<u64, Instant> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes those that are members no more, until the log is gone.
    pub async fn note_removals(self) {
        let mut members = self.members.clone();
        let mut before: BTreeSet<u64> = BTreeSet::new();
        loop {
            let now = members.borrow_and_update().all();
            // One that was never a member has nothing to compare with: it joins.
            if !now.is_empty() {
                let gone: BTreeSet<u64> = before.difference(&now).copied().collect();
                if !gone.is_empty() {
                    tracing::info!(?gone, ?now, "peers were removed from the group");
                    self.book.removed(&gone);
                }
            }
            before = now;
            if members.changed().await.is_err() {
                return;
            }
        }
    }
}

fn is_of(certificate: &CertificateDer<'static>, name: &str) -> bool {
    let (Ok(certificate), Ok(name)) = (
        ParsedCertificate::try_from(certificate),
        ServerName::try_from(name),
    ) else {
        return false;
    };
    verify_server_name(&certificate, &name).is_ok()
}

/// The address of a greeting, if it is one.
fn address_of(wire: &proto::peer::Address) -> Option<Address> {
    Some(Address {
        host: Some(wire.host.clone()).filter(|host| !host.is_empty())?,
        peer_port: u16::try_from(wire.peer_port).ok()?,
        worker_port: u16::try_from(wire.worker_port).ok()?,
    })
}

/// An address as it is sent.
#[must_use]
pub fn wire_address(address: &Address) -> proto::peer::Address {
    proto::peer::Address {
        host: address.host.clone(),
        peer_port: u32::from(address.peer_port),
        worker_port: u32::from(address.worker_port),
    }
}
