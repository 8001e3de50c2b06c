//! The disk has failed for good, or the journal closes while a destination has not decided: who waits for what cannot come hears so, and
//! nobody takes for true what may be from before a promise.

use super::*;
use crate::file::tests::disk::{Call, Fault};

const EIO: i32 = 5;
/// For what comes at once, on a machine that may stand still.
const LIMIT: Duration = Duration::from_secs(60);

fn open_on(disk: &MemDisk, readers: &[&str]) -> Arc<SourceBackedJournal> {
    let config = FileConfig {
        dir: "/j".into(),
        segment_bytes: 16 << 10,
        window_bytes: 2 << 10,
        reserve_bytes: 0,
        ..FileConfig::default()
    };
    let spec = |name: &str, readers: &[&str]| ChannelSpec {
        name: name.into(),
        readers: readers.iter().map(|reader| (*reader).to_owned()).collect(),
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    let (own, others) = (vec![spec("main", readers)], vec![spec("quarantine", &["keeper"])]);
    SourceBackedJournal::open(config, own, others, Arc::new(disk.clone()), Arc::new(OsClock)).unwrap()
}

/// Everything that changes it is refused from here on.
fn break_disk(disk: &MemDisk) {
    let all = [Call::Write, Call::Sync, Call::Create, Call::Preallocate, Call::Rename, Call::SyncDir];
    let fault = |call| Fault { call, skip: 0, times: u32::MAX, code: EIO };
    disk.faults(|faults| faults.armed = all.into_iter().map(fault).collect());
}

fn has_failed(outcome: Option<Result<u64, CommitError>>) -> bool {
    matches!(outcome, Some(Err(CommitError::Failed(_))))
}

/// A source's commit, delivered and promised, of which the destination has said nothing; the mark.
fn promise(journal: &Arc<SourceBackedJournal>) -> Vec<u8> {
    journal.commit(Commit { positions: position(b"s", 1).positions, ..put(&[1]) }, None).unwrap();
    let mut reader = journal.open_reader(CHANNEL, READER);
    assert_eq!(reader.next(Duration::ZERO).unwrap().unwrap().next, 1);
    let promise = reader.promise(1, &[], Duration::ZERO).unwrap().unwrap();
    promise.ticket.wait(None).unwrap().unwrap();
    promise.mark
}

/// One reader finds the disk dead. The other has acknowledged more, and waits for the first; a source waits for both.
#[test]
fn whoever_waits_for_an_acknowledgement_hears_that_the_disk_has_failed() {
    let disk = MemDisk::default();
    let journal = open_on(&disk, &["out", "second"]);
    journal.commit_and_wait(position(b"t", 1), None).unwrap();
    let withheld: Vec<_> = (0..3)
        .map(|number| {
            let commit = Commit { positions: position(b"s", number).positions, ..put(&[u64::from(number)]) };
            journal.commit(commit, None).unwrap()
        })
        .collect();
    let [first, ahead] = [1, 2].map(|cursor| journal.commit(ack(cursor), None).unwrap());
    assert!(journal.takes_acknowledgements());
    break_disk(&disk);
    let last = journal.commit(ack_of(SECOND, 1), None).unwrap();
    assert!(has_failed(first.wait(Some(LIMIT))) && has_failed(last.wait(Some(LIMIT))));
    assert!(!journal.takes_acknowledgements());
    assert!(has_failed(ahead.wait(Some(Duration::ZERO))), "it would wait for a reader that is gone");
    for ticket in &withheld {
        assert!(has_failed(ticket.wait(Some(Duration::ZERO))));
    }
    let next = [put(&[9]), ack(3), position(b"t", 2)].map(|commit| journal.commit(commit, None).err());
    assert!(next.iter().all(|error| matches!(error, Some(CommitError::Failed(_)))), "{next:?}");
    assert_eq!(journal.position(b"s"), Some(vec![2]), "what it was handed stays known");
    assert!(matches!(journal.close(), Err(CommitError::Failed(_))));
}

/// `status` says that nothing is left when files may go: what is acknowledged and not durably so, the next opening reads again.
#[test]
fn what_is_acknowledged_is_in_the_channel_until_that_is_durable() {
    let disk = MemDisk::default();
    let journal = open_on(&disk, &["out"]);
    let held = |journal: &SourceBackedJournal| {
        let status = journal.status();
        (status.channels[0].events, status.channels[0].bytes)
    };
    journal.commit(put(&[1, 2]), None).unwrap();
    let one = held(&journal);
    assert_eq!(one.0, 2);
    journal.commit_and_wait(ack(2), None).unwrap();
    assert_eq!(held(&journal), (0, 0));
    journal.commit(put(&[3, 4]), None).unwrap();
    break_disk(&disk);
    assert!(has_failed(journal.commit(ack(4), None).unwrap().wait(Some(LIMIT))));
    assert_eq!(held(&journal), one);
}

/// A sink that is cut back waits for the answer of one that decides. The journal closes: the position that it gets is from before the
/// promise, and cut back to that its destination would lack what the promise, once it is kept, says that it has.
#[test]
fn a_position_from_before_a_promise_is_not_taken_for_true_when_the_journal_closes() {
    let disk = MemDisk::default();
    let journal = open_on(&disk, &["decides"]);
    promise(&journal);
    drop(journal);
    let journal = open_on(&disk, &["decides"]);
    assert!(!journal.is_over());
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| (journal.position(b"s"), journal.is_over()));
        journal.close().unwrap();
        assert_eq!(asks.join().unwrap(), (None, true));
    });
    let journal = open_on(&disk, &["decides"]);
    assert!(!journal.is_read(), "it is as undecided as it was");
}

/// The destination has decided, and the disk does not take it: sources are told so, and a position that hangs on it is told by the next
/// opening.
#[test]
fn a_decision_that_the_disk_does_not_take_stays_undecided() {
    let disk = MemDisk::default();
    let journal = open_on(&disk, &["decides"]);
    let mark = promise(&journal);
    drop(journal);
    let journal = open_on(&disk, &["decides"]);
    break_disk(&disk);
    let mut reader = journal.open_reader(CHANNEL, READER);
    assert_eq!(reader.resolve(&mark), None, "it cannot be put into the journal");
    assert!(!journal.takes_acknowledgements() && !journal.is_read());
    let put = journal.commit(put(&[9]), Some(Instant::now() + LIMIT)).err();
    assert!(matches!(put, Some(CommitError::Failed(_))), "{put:?}: it would wait for ever");
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            drop(journal.position(b"s"));
            journal.is_over()
        });
        assert!(matches!(journal.close(), Err(CommitError::Failed(_))));
        assert!(asks.join().unwrap(), "what it was told does not count");
    });
    drop((reader, journal));
    disk.faults(|faults| faults.armed.clear());
    let journal = open_on(&disk, &["decides"]);
    let mut reader = journal.open_reader(CHANNEL, READER);
    assert_eq!(reader.resolve(&mark), Some(0), "it is kept");
    reader.seek(0).unwrap();
    assert_eq!(journal.position(b"s"), Some(vec![1]));
}
