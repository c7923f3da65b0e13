use orchestrator_core::{
    id::{NodeName, Revision},
    state::{Applied, Command},
};
use raft::eraftpb::Entry;

use super::*;

#[test]
fn yesterdays_bytes_are_read_and_written_again_the_same() {
    let command: &[u8] = include_bytes!("command.v1");
    let read = command_from_bytes(command).unwrap();
    let Command::Register { node, journal } = &read else {
        panic!("{read:?}");
    };
    assert_eq!((node, journal.as_str()), (&NodeName::from("node1"), "a"));
    assert_eq!(command_to_bytes(&read).unwrap(), command);

    let bytes: &[u8] = include_bytes!("state.v1");
    let state = state_from_bytes(bytes).unwrap();
    let mut fresh = State::default();
    let applied = fresh.apply(Revision(7), read);
    assert_eq!(applied, Ok(Applied::Registered(Revision(7))));
    assert_eq!(state, fresh);
    assert_eq!(state_to_bytes(&fresh).unwrap(), bytes);

    let entry: Entry = raft_from_bytes("an entry", include_bytes!("entry.v1")).unwrap();
    assert_eq!((entry.index, entry.term), (7, 2));
    assert_eq!(&entry.data[..], b"\x01{}");
}

#[test]
fn another_version_is_named_and_not_guessed_at() {
    let told = |bytes: &[u8]| command_from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(
        told(b"\x02{}"),
        "read a command: its format is version 2, this peer knows 1"
    );
    assert_eq!(told(b""), "read a command: it is empty");
}
