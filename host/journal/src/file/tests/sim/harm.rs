//! Damage to what was durable: exactly that is missing then, it is counted, and the journal goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use super::super::basic::{A, B, ack, batch, durable, open_with, put, specs};
use super::super::disk::MemDisk;
use super::step::{End, Hit};
use super::truth::{LATE, READERS, Truth, serial_of};
use super::world::{World, drain, keys, small, state_of};
use crate::Journal;
use crate::file::format::commit::{CommitHead, decode_lists};
use crate::file::format::frame::Kind;
use crate::file::format::snapshot::{SLOT_NAMES, Snapshot};
use crate::file::segment::{SegmentFile, segment_id};
use crate::file::state_load;

/// What the system gives up around a place that cannot be read.
const PAGE: usize = 4096;

/// A frame where it lies.
#[derive(Debug, Clone)]
struct FrameAt {
    path: String,
    range: Range<usize>,
    /// The commit, unless it is a checkpoint.
    serial: Option<u64>,
    commit: u64,
    durable: u64,
}

/// What was hit.
struct Harm {
    frames: Vec<FrameAt>,
    broken: Vec<(String, Range<usize>)>,
    is_state_hit: bool,
    has_no_slot: bool,
    /// The newest one is not left.
    has_old_slot: bool,
    /// The newest slot that is left is from before a deletion, and no whole file says up to where the state is saved.
    names_deleted: bool,
    /// Names of segments of another journal.
    foreign: Vec<String>,
    /// The highest number of a first commit in a header that is left: those before it were there once, whatever else says so.
    first_in_headers: u64,
}

impl Harm {
    /// Those that nothing else hit.
    fn foreign(&self, disk: &MemDisk) -> Vec<String> {
        let is_whole = |name: &&String| {
            let bytes = disk.0.lock().file(&format!("/j/{name}"));
            foreign().iter().any(|(other, whole)| other == *name && bytes.as_ref() == Some(whole))
        };
        let is_hit_again = |name: &&String| {
            let hits = self.broken.iter().filter(|(path, _)| path.ends_with(name.as_str()));
            hits.count() > 1
        };
        self.foreign.iter().filter(|name| is_whole(name) && !is_hit_again(name)).cloned().collect()
    }
}

/// Files of another journal, by segment.
fn foreign() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let disk = MemDisk::default();
        let journal = open_with(&disk, small(), specs()).unwrap();
        for n in 0..40 {
            durable(&journal, put(&[A, B], batch(1_000_000 + n, 1, 9_000)));
        }
        drop(journal);
        let segments = disk.names().into_iter().filter(|name| name.ends_with(".seg"));
        segments.map(|name| (name.clone(), disk.bytes(&format!("/j/{name}")))).collect()
    })
}

fn segments(disk: &MemDisk) -> Vec<String> {
    // Not those that were set aside.
    let names: BTreeSet<String> = disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect();
    let paths = names.into_iter().map(|name| format!("/j/{name}"));
    paths.filter(|path| disk.0.lock().file(path).is_some()).collect()
}

fn frames_of(disk: &MemDisk, path: &str) -> Vec<FrameAt> {
    let id = segment_id(path.trim_start_matches("/j/")).unwrap();
    let mut file = SegmentFile::open(disk, "/j".as_ref(), id, None).unwrap().with_keys(&keys(0));
    let len = file.len().unwrap();
    let mut frames = Vec::new();
    let mut at = 64;
    while let Some(frame) = file.frame(at, len, true).unwrap() {
        let serial = (frame.header.kind == Kind::Commit).then(|| {
            let head = CommitHead::decode(&frame.head).unwrap();
            let lists = &frame.data.as_ref().unwrap()[..head.lists_bytes as usize];
            serial_of(&decode_lists(lists).unwrap().0).unwrap()
        });
        let range = at as usize..frame.end() as usize;
        let (commit, durable) = (frame.header.commit, frame.header.durable);
        frames.push(FrameAt { path: path.to_string(), range, serial, commit, durable });
        at = frame.end();
    }
    frames
}

fn valid_slots(disk: &MemDisk) -> Vec<Snapshot> {
    let names = disk.names();
    let there = SLOT_NAMES.iter().filter(|slot| names.iter().any(|name| name == *slot));
    there
        .filter_map(|slot| Snapshot::decode_with(&disk.bytes(&format!("/j/{slot}")), &keys(0)).ok())
        .collect()
}

impl Harm {
    fn new(disk: &MemDisk) -> Harm {
        let frames = segments(disk).iter().flat_map(|path| frames_of(disk, path)).collect();
        Harm {
            frames,
            broken: Vec::new(),
            is_state_hit: false,
            has_no_slot: false,
            has_old_slot: false,
            names_deleted: false,
            foreign: Vec::new(),
            first_in_headers: 0,
        }
    }

    fn first_in_headers(&self, disk: &MemDisk, journal: u128) -> u64 {
        let header = |path: &String| {
            let id = segment_id(&path[3..]).unwrap();
            let file = SegmentFile::open_tolerant(disk, "/j".as_ref(), id, None).ok()?;
            file.header.ok().filter(|(header, _)| header.journal == journal)
        };
        let headers = segments(disk);
        headers.iter().filter_map(header).map(|(header, _)| header.first_commit).max().unwrap_or_default()
    }

    fn is_broken(&self, frame: &FrameAt) -> bool {
        let overlaps = |range: &Range<usize>| range.start < frame.range.end && frame.range.start < range.end;
        self.broken.iter().any(|(path, range)| *path == frame.path && overlaps(range))
    }

    fn segment(&self, disk: &MemDisk, file: usize) -> Option<String> {
        let all = segments(disk);
        all.get(file % all.len().max(1)).cloned()
    }

    /// Bytes of a file that mean something.
    fn used(&self, disk: &MemDisk, path: &str) -> usize {
        let frames = self.frames.iter().filter(|frame| frame.path == path);
        frames.map(|frame| frame.range.end).max().unwrap_or(64).min(disk.bytes(path).len())
    }

    /// `None`: they were so already.
    fn change(
        &mut self,
        disk: &MemDisk,
        path: &str,
        range: Range<usize>,
        with: impl Fn(u8) -> u8,
    ) -> Option<()> {
        let before = disk.bytes(path);
        let mut bytes = before.clone();
        let range = range.start.min(bytes.len())..range.end.min(bytes.len());
        bytes[range.clone()].iter_mut().for_each(|byte| *byte = with(*byte));
        let mut is_changed = false;
        for at in range.filter(|at| bytes[*at] != before[*at]) {
            is_changed = true;
            match self.broken.last_mut() {
                Some((of, last)) if of == path && last.end == at => last.end += 1,
                _ => self.broken.push((path.to_string(), at..at + 1)),
            }
        }
        disk.set_bytes(path, bytes);
        is_changed.then_some(())
    }

    fn hit_slot(&mut self, disk: &MemDisk, which: usize, place: u32) -> Option<()> {
        let path = format!("/j/{}", SLOT_NAMES[which]);
        let bytes = disk.0.lock().file(&path).filter(|bytes| bytes.len() >= 64)?;
        let payload = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let at = place as usize % (64 + payload).min(bytes.len());
        self.change(disk, &path, at..at + 1, |byte| byte ^ 4)
    }

    /// `None`: there is nothing to hit, or nothing changed.
    fn apply(&mut self, disk: &MemDisk, hit: &Hit) -> Option<()> {
        match *hit {
            Hit::Flip { file, place, bit } => {
                let path = self.segment(disk, file)?;
                let at = place as usize % self.used(disk, &path).max(1);
                self.change(disk, &path, at..at + 1, |byte| byte ^ (1 << bit))?;
            }
            Hit::Fill { file, place, bytes, with } => {
                let path = self.segment(disk, file)?;
                let at = place as usize % self.used(disk, &path).max(1);
                self.change(disk, &path, at..at + bytes, |_| with)?;
            }
            Hit::Spoil { file, place } => {
                let path = self.segment(disk, file)?;
                let at = place as usize % self.used(disk, &path).max(1) / PAGE * PAGE;
                disk.spoil(&path, at);
                self.broken.push((path, at..at + PAGE));
            }
            Hit::Shorten { file, place } => {
                let path = self.segment(disk, file)?;
                let mut bytes = disk.bytes(&path);
                let at = place as usize % self.used(disk, &path).max(1);
                bytes.truncate(at);
                disk.set_bytes(&path, bytes);
                self.broken.push((path, at..usize::MAX));
            }
            Hit::Remove { file } => {
                let path = self.segment(disk, file)?;
                disk.take(&path);
                self.broken.push((path, 0..usize::MAX));
            }
            Hit::Foreign { file } => {
                let newest =
                    segments(disk).last().and_then(|path| segment_id(&path[3..])).unwrap_or_default();
                let path = match file {
                    Some(file) => self.segment(disk, file)?,
                    None => format!("/j/{}", crate::file::segment_name(newest + 1)),
                };
                let (name, bytes) = foreign().iter().find(|(name, _)| path[3..] == *name)?;
                disk.take(&path);
                disk.add(&path, bytes.clone());
                self.foreign.push(name.clone());
                self.broken.push((path, 0..usize::MAX));
            }
            Hit::Slot { which, place } => self.hit_slot(disk, which, place)?,
            Hit::BothSlots { place } => {
                let first = self.hit_slot(disk, 0, place);
                self.hit_slot(disk, 1, place / 7).or(first)?;
            }
            Hit::StateFile { place } => {
                let name = disk.names().into_iter().rev().find(|name| name.ends_with(".state"))?;
                let path = format!("/j/{name}");
                let at = place as usize % disk.bytes(&path).len();
                self.is_state_hit = true;
                self.change(disk, &path, at..at + 1, |byte| byte ^ 2)?;
            }
        }
        Some(())
    }

    /// Without a slot, a segment has to say what there is: three copies are not all hit at once.
    fn leaves_registers(&self, disk: &MemDisk) -> bool {
        let is_headed = |path: &String| {
            let id = segment_id(&path[3..]).unwrap();
            SegmentFile::open_tolerant(disk, "/j".as_ref(), id, None).is_ok_and(|file| file.header.is_ok())
        };
        let first = |path: &String| self.frames.iter().find(|frame| frame.path == *path);
        let is_whole = |path: &String| {
            let header = FrameAt { path: path.clone(), range: 0..64, serial: None, commit: 0, durable: 0 };
            first(path).is_some_and(|frame| !self.is_broken(frame)) && !self.is_broken(&header)
        };
        // Most segments say which journal it is.
        let foreign = self.foreign.iter().filter(|name| disk.names().contains(name)).count();
        let own = segments(disk).iter().filter(|path| is_headed(path)).count().saturating_sub(foreign);
        let is_told = own > foreign || self.foreign.is_empty();
        let is_there = self.frames.is_empty() || segments(disk).iter().any(is_whole);
        !valid_slots(disk).is_empty() || (is_told && is_there)
    }

    /// Which readers the numbers in frames mean is told by the newest slot, or by the checkpoint of each segment: once a reader
    /// has come, the three are not all hit at once.
    fn leaves_names(&self, disk: &MemDisk, names: u32) -> bool {
        let slots = valid_slots(disk);
        let newest = slots.iter().max_by_key(|slot| slot.generation);
        let mut checkpoints = self.frames.iter().filter(|frame| frame.serial.is_none());
        newest.is_some_and(|slot| slot.registers.names_crc() == names)
            || !checkpoints.any(|frame| self.is_broken(frame))
    }

    fn names_deleted(&self, disk: &MemDisk, before: &MemDisk) -> bool {
        let slots = valid_slots(disk);
        let newest = slots.iter().max_by_key(|slot| slot.generation);
        let there = before.names();
        let is_deleted = |id: u64| !there.contains(&crate::file::segment_name(id));
        let has_file = there.iter().any(|name| name.ends_with(".state"));
        let names = newest.is_some_and(|slot| slot.segments.iter().any(|segment| is_deleted(segment.id)));
        names && (!has_file || self.is_state_hit)
    }

    /// Of a group that was written again the first copy may be whole: nothing then says that it does not count.
    fn leaves_copies(&self) -> bool {
        let whole: BTreeSet<u64> = self
            .frames
            .iter()
            .filter(|frame| !self.is_broken(frame))
            .filter_map(|frame| frame.serial)
            .collect();
        let mut broken =
            self.frames.iter().filter(|frame| self.is_broken(frame)).filter_map(|frame| frame.serial);
        broken.any(|serial| whole.contains(&serial))
    }

    /// Commits that were hit where they count (number and serial), and the number that the journal ends before, because nothing
    /// that is left says that more was durable.
    fn missing(&self, disk: &MemDisk, world: &World) -> (Vec<(u64, u64)>, u64) {
        let is_whole = |frame: &&FrameAt| !self.is_broken(frame);
        let named = |frame: &FrameAt| match frame.serial {
            Some(_) => frame.durable,
            None => frame.durable.max(frame.commit),
        };
        let proven = self.frames.iter().filter(is_whole).map(named).max().unwrap_or_default();
        let slots = valid_slots(disk).iter().map(|slot| slot.durable).max().unwrap_or_default();
        let names = disk.names();
        let journal = world.id;
        let files = state_load::durable_commit(disk, "/j".as_ref(), &names, journal);
        let proven = proven.max(slots).max(files);
        let mut hit = Vec::new();
        for op in &world.log {
            let frame = self.frames.iter().rev().find(|frame| frame.serial == Some(op.serial));
            hit.extend(frame.filter(|frame| self.is_broken(frame)).map(|frame| (frame.commit, op.serial)));
        }
        hit.sort();
        let end = hit.iter().map(|(commit, _)| *commit).find(|commit| *commit > proven);
        (hit, end.unwrap_or(u64::MAX))
    }
}

/// Ends the journal, harms it, and compares what is left.
pub fn harm(world: &mut World, end: &End, hits: &[Hit]) {
    world.go();
    let names = world.journal().shared.state.lock().registers.names_crc();
    match end {
        End::Close => drop(world.close()),
        End::Kill => world.drop_life(),
        End::Crash(seed) => world.lose_power(*seed),
    }
    world.figures.other_ends += usize::from(!matches!(end, End::Crash(_)));
    world.disk.write_back();
    let whole = world.disk.copy();
    let mut harm = Harm::new(&world.disk);
    let applied = hits.iter().filter(|hit| harm.apply(&world.disk, hit).is_some()).count();
    let leaves_names = !world.has_come() || harm.leaves_names(&world.disk, names);
    if !harm.leaves_registers(&world.disk) || !leaves_names || harm.leaves_copies() {
        world.figures.spared += 1;
        world.disk = whole;
        world.begin().unwrap();
        return world.check();
    }
    harm.has_no_slot = valid_slots(&world.disk).is_empty();
    let newest = |disk: &MemDisk| valid_slots(disk).iter().map(|slot| slot.generation).max();
    harm.has_old_slot = newest(&world.disk) < newest(&whole);
    harm.names_deleted = harm.names_deleted(&world.disk, &whole);
    let (hit, end) = harm.missing(&world.disk, world);
    let foreign = harm.foreign(&world.disk);
    harm.first_in_headers = harm.first_in_headers(&world.disk, world.id);
    world.begin().unwrap_or_else(|error| panic!("damage stops the start: {error}"));
    compare(world, &harm, &hit, end);
    goes_on(world);
    let names = world.disk.names();
    assert!(foreign.iter().all(|name| names.contains(name)), "a segment of another journal was deleted");
    world.figures.damaged += usize::from(applied > 0);
    world.figures.hits += applied;
    world.figures.lost += hit.len();
}

fn compare(world: &World, harm: &Harm, hit: &[(u64, u64)], end: u64) {
    let journal = world.journal();
    // What is behind the end has the highest numbers.
    let cut: BTreeSet<u64> =
        harm.frames.iter().filter(|f| f.commit >= end).filter_map(|f| f.serial).collect();
    let hit: Vec<(u64, u64)> = hit.iter().copied().filter(|(commit, _)| *commit < end).collect();
    let lost: BTreeSet<u64> = hit.iter().map(|(_, serial)| *serial).chain(cut.iter().copied()).collect();
    // A snapshot or a checkpoint behind some of them still has what they did to positions and cursors.
    let from = [0].into_iter().chain(hit.iter().map(|(commit, _)| *commit));
    let possible: Vec<Truth> = from
        .map(|from| {
            let behind = hit.iter().filter(|(commit, _)| *commit > from).map(|(_, serial)| *serial);
            Truth::without(&world.log, &behind.chain(cut.iter().copied()).collect())
        })
        .collect();
    let positions: BTreeMap<_, _> = journal.positions(b"").into_iter().collect();
    let cursors = READERS.map(|(channel, reader)| journal.open_reader(channel, reader).acknowledged());
    let is_one = |truth: &Truth| truth.positions == positions && truth.cursors[..LATE] == cursors[..LATE];
    assert!(
        possible.iter().any(is_one),
        "positions and cursors of no one moment: {cursors:?} {:?}\nhit {hit:?}, cut {cut:?}, last {}",
        positions
            .iter()
            .filter(|(key, value)| possible[0].positions.get(*key) != Some(*value))
            .collect::<Vec<_>>(),
        journal.status().last_commit
    );
    let state = state_of(journal);
    // Without the newest slot nothing may say that the youngest commits in its file were durable.
    let all = harm.has_old_slot.then_some(&world.truth);
    for (key, value) in &state {
        let has = |truth: &Truth| truth.state.get(key) == Some(value);
        assert!(possible.iter().chain(all).any(has), "state {key:?} {value:?}");
    }
    let is_known = |key| harm.is_state_hit || state.contains_key(key);
    let always = possible[0].state.keys().filter(|key| possible.iter().all(|t| t.state.contains_key(*key)));
    assert!(always.into_iter().all(is_known), "state is forgotten: {state:?}");

    let done = Truth::without(&world.log, &cut).cursors;
    let mut needed = BTreeSet::new();
    for (which, (channel, reader)) in READERS[..LATE].iter().copied().enumerate() {
        let all = &world.truth.channels[usize::from(channel.0)];
        // An acknowledgement was hit that had been acted on: what is gone since then was done with.
        let is_there = |(_, serial): &&(u64, u64)| harm.frames.iter().any(|f| f.serial == Some(*serial));
        let gone = all.iter().enumerate().filter(|(_, event)| !is_there(event)).map(|(at, _)| at as u64);
        assert!(
            gone.max().is_none_or(|last| last < world.truth.cursors[which]),
            "reader {which}: deleted early"
        );
        let rest: Vec<(u64, u64)> = all[done[which] as usize..].iter().filter(is_there).copied().collect();
        needed.extend(rest.iter().map(|(_, serial)| *serial).filter(|serial| lost.contains(serial)));
        let left = |events: &[(u64, u64)]| -> Vec<u64> {
            events.iter().filter(|(_, serial)| !lost.contains(serial)).map(|(event, _)| *event).collect()
        };
        let (found, _) = drain(journal.open_reader(channel, reader).as_mut());
        assert!(found.ends_with(&left(&rest)), "reader {which}: {found:?}\nhas not {:?}", left(&rest));
        // An acknowledgement was hit: what it was for may come again.
        let again: BTreeSet<u64> = left(&all[cursors[which] as usize..]).into_iter().collect();
        assert!(
            found.is_sorted() && found.iter().all(|event| again.contains(event)),
            "reader {which}: {found:?}"
        );
    }
    let counted = journal.status().damaged_commits;
    // Without a slot, a segment of which nothing is left does not say how many it had.
    let hidden = if harm.has_no_slot { 0 } else { needed.difference(&cut).count() as u64 };
    // Nothing is left that says that a deleted segment was done with, by its readers or for the plugins' state.
    let is_forgotten = cursors[..LATE] != world.truth.cursors[..LATE] || harm.names_deleted;
    let deleted = world.log.iter().filter(|op| !harm.frames.iter().any(|f| f.serial == Some(op.serial)));
    let told = harm.frames.iter().filter(|f| cut.iter().any(|serial| f.serial == Some(*serial)));
    let told = told.filter(|frame| frame.commit < harm.first_in_headers).count();
    let most = hit.len() + told + if is_forgotten { deleted.count() } else { 0 };
    assert!(
        counted >= hidden && counted <= most as u64,
        "{counted} commits are counted, {hidden} are missing of {hit:?}"
    );
}

/// New events arrive, once, over another crash.
fn goes_on(world: &mut World) {
    let next = 10_000_000;
    for round in 0..2 {
        let first = next + round * 10;
        assert!(matches!(world.commit_now(put(&[A, B], batch(first, 3, 20))), Some(Ok(()))));
        for (channel, reader) in READERS[..LATE].iter().copied() {
            let (found, _) = drain(world.journal().open_reader(channel, reader).as_mut());
            let (new, old): (Vec<u64>, Vec<u64>) = found.iter().partition(|event| **event >= next);
            assert_eq!(new, [first, first + 1, first + 2], "round {round}, {channel:?} {reader:?}");
            assert!(round == 0 || old.is_empty(), "events come again: {old:?}");
            let head = world.journal().shared.state.lock().registers.channels[usize::from(channel.0)].head;
            assert!(matches!(world.commit_now(ack(channel, reader, head)), Some(Ok(()))));
        }
        world.lose_power(round);
        world.begin().unwrap();
    }
    for (channel, reader) in READERS[..LATE].iter().copied() {
        let mut reader = world.journal().open_reader(channel, reader);
        assert!(reader.next(Duration::ZERO).unwrap().is_none());
    }
}
