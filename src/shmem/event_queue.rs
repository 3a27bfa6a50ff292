//! Events on their way from the transactions that made them to the worker that emits them.
//! README.md draws the states.
//!
//! The events of one transaction are a batch: a chain of slots, which the transaction reserves and
//! fills before it commits, and publishes when it has committed. So nothing that can fail is left
//! to do after the commit, and a transaction that waits for a standby when it commits does not
//! delay the events of other transactions.

use pgrx::pg_sys;

use crate::pg::segment::{Contents, Segment};

/// Bytes of events that a slot holds: most events fit into one.
const SLOT_BYTES: usize = 256;

/// Slots for each event that the queue is to hold: some carry an error's text.
const SLOTS_PER_EVENT: usize = 4;

/// No slot.
const NONE: u32 = u32::MAX;

/// The first sequence number of the batches of transactions; those that a worker leaves to its
/// successor have lower ones.
const FIRST_NUMBER: u64 = 1 << 63;

static QUEUE: Segment<Header, Slot> = Segment::new(c"loader_history event queue");

/// The header of the queue.
pub struct Header {
    /// The first free slot.
    free: u32,
    /// How many slots are free.
    free_count: u32,
    /// How many batches there are.
    batches: u32,
    /// The sequence number of the next batch of a transaction, in the order in which transactions
    /// begin to commit.
    next_sequence_number: u64,
    /// The sequence number of the next batch that a worker leaves to its successor.
    next_left: u64,
}

/// A part of a batch. All fields but `next` and `bytes` are those of the batch, and valid in its
/// first slot.
pub struct Slot {
    state: State,
    /// The next free slot, or the next of the batch.
    next: u32,
    database: pg_sys::Oid,
    /// The transaction that made the batch; invalid if a worker left it to its successor.
    xid: pg_sys::TransactionId,
    sequence_number: u64,
    /// Slots of the batch.
    count: u32,
    /// Bytes of the batch.
    length: usize,
    /// How many of its events have been emitted.
    emitted: usize,
    bytes: [u8; SLOT_BYTES],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is free, or not the first of a batch.
    Part,
    /// The transaction that made the batch has not published it.
    Reserved,
    /// The transaction has committed.
    Published,
    /// The worker emits its events.
    Taken,
}

pub type Queue<'a> = Contents<'a, Header, Slot>;

/// The events of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Batch {
    /// Its place in the order in which transactions begin to commit. A session that sees a commit
    /// and changes the same execution has a higher one.
    pub sequence_number: u64,
    slot: u32,
}

impl Batch {
    /// Whether a worker left it to its successor. Its events come before those of all transactions.
    pub const fn is_left_by_worker(self) -> bool {
        self.sequence_number < FIRST_NUMBER
    }
}

pub fn request(count: usize) {
    QUEUE.request(count * SLOTS_PER_EVENT);
}

pub fn initialize(count: usize) {
    let count = count * SLOTS_PER_EVENT;
    QUEUE.initialize(count, Header::all_free(count), |place| Slot::free(place, count));
}

/// Calls `work` with the queue, under the lock. Nothing of it can fail.
pub fn with<R: Default>(work: impl FnOnce(&mut Queue<'_>) -> R) -> R {
    QUEUE.with(work).unwrap_or_default()
}

impl Header {
    fn all_free(slots: usize) -> Self {
        let free_count = u32::try_from(slots).unwrap_or_default();
        Self { free: 0, free_count, batches: 0, next_sequence_number: FIRST_NUMBER, next_left: 0 }
    }
}

impl Slot {
    fn free(place: usize, slots: usize) -> Self {
        let next = u32::try_from(place + 1).unwrap_or(NONE);
        Self {
            state: State::Part,
            next: if place + 1 < slots { next } else { NONE },
            database: pg_sys::InvalidOid,
            xid: pg_sys::InvalidTransactionId,
            sequence_number: 0,
            count: 0,
            length: 0,
            emitted: 0,
            bytes: [0; SLOT_BYTES],
        }
    }
}

impl Queue<'_> {
    fn slot(&mut self, batch: Batch) -> &mut Slot {
        &mut self.entries[batch.slot as usize]
    }

    /// Reserves a batch for the payloads of transaction `xid` in `database`; `None` if there is no
    /// room for it.
    pub fn reserve(
        &mut self,
        database: pg_sys::Oid,
        xid: pg_sys::TransactionId,
        payloads: &[u8],
    ) -> Option<Batch> {
        let count = u32::try_from(payloads.len().div_ceil(SLOT_BYTES)).ok()?;
        if count == 0 || count > self.header.free_count || !self.may_use(database, count) {
            return None;
        }
        let first = self.header.free;
        let mut place = first;
        for part in payloads.chunks(SLOT_BYTES) {
            let slot = &mut self.entries[place as usize];
            slot.bytes[..part.len()].copy_from_slice(part);
            place = slot.next;
        }
        self.header.free = place;
        self.header.free_count -= count;
        self.header.batches += 1;
        let next = match xid {
            pg_sys::InvalidTransactionId => &mut self.header.next_left,
            _ => &mut self.header.next_sequence_number,
        };
        let sequence_number = *next;
        *next += 1;
        let head = &mut self.entries[first as usize];
        head.state = State::Reserved;
        head.database = database;
        head.xid = xid;
        head.sequence_number = sequence_number;
        head.count = count;
        head.length = payloads.len();
        head.emitted = 0;
        Some(Batch { sequence_number, slot: first })
    }

    /// Whether `database` may use `count` more slots: one whose worker takes none leaves a
    /// quarter to other databases.
    fn may_use(&self, database: pg_sys::Oid, count: u32) -> bool {
        let slots = u32::try_from(self.entries.len()).unwrap_or_default();
        let quarter = slots - slots / 4 * 3;
        // Only if little is free it matters who uses the rest.
        self.header.free_count - count >= quarter || {
            let heads = self.heads().filter(|(_, slot)| slot.database == database);
            heads.map(|(_, slot)| slot.count).sum::<u32>() + count <= slots - quarter
        }
    }

    fn heads(&self) -> impl Iterator<Item = (usize, &Slot)> {
        let places = self.entries.iter().enumerate();
        places.filter(|(_, slot)| slot.state != State::Part).take(self.header.batches as usize)
    }

    fn batches(&self, is_wanted: impl Fn(&Slot) -> bool) -> Vec<(Batch, pg_sys::TransactionId)> {
        let mut batches: Vec<_> = self
            .heads()
            .filter(|(_, slot)| is_wanted(slot))
            .map(|(place, slot)| {
                let slot_number = u32::try_from(place).unwrap_or(NONE);
                (Batch { sequence_number: slot.sequence_number, slot: slot_number }, slot.xid)
            })
            .collect();
        batches.sort_unstable_by_key(|(batch, _)| *batch);
        batches
    }

    /// Leaves a worker's own events to the next worker of `database`; false if the queue is full.
    pub fn leave(&mut self, database: pg_sys::Oid, payloads: &[u8]) -> bool {
        let batch = self.reserve(database, pg_sys::InvalidTransactionId, payloads);
        batch.map(|batch| self.publish(batch)).is_some()
    }

    pub fn publish(&mut self, batch: Batch) {
        self.slot(batch).state = State::Published;
    }

    /// The numbers and transactions of the batches of `database` that are not published.
    pub fn unpublished(&self, database: pg_sys::Oid) -> Vec<(u64, pg_sys::TransactionId)> {
        let is_wanted = |slot: &Slot| slot.state == State::Reserved && slot.database == database;
        let batches = self.batches(is_wanted).into_iter();
        batches.map(|(batch, xid)| (batch.sequence_number, xid)).collect()
    }

    /// Takes the batches that `database` has published, in their order. With `also_taken`, those
    /// too that an earlier worker had taken and not emitted.
    pub fn take(&mut self, database: pg_sys::Oid, also_taken: bool) -> Vec<Batch> {
        let is_wanted = |slot: &Slot| {
            slot.database == database
                && (slot.state == State::Published || also_taken && slot.state == State::Taken)
        };
        let batches: Vec<_> = self.batches(is_wanted).into_iter().map(|(batch, _)| batch).collect();
        for &batch in &batches {
            self.slot(batch).state = State::Taken;
        }
        batches
    }

    /// The payloads of a batch, and how many of them have been emitted.
    pub fn payloads(&mut self, batch: Batch) -> (Vec<u8>, usize) {
        let (length, emitted) = (self.slot(batch).length, self.slot(batch).emitted);
        let mut payloads = Vec::with_capacity(length);
        let mut place = batch.slot;
        while payloads.len() < length {
            let slot = &self.entries[place as usize];
            payloads.extend_from_slice(&slot.bytes[..SLOT_BYTES.min(length - payloads.len())]);
            place = slot.next;
        }
        (payloads, emitted)
    }

    /// Notes how many events of a batch have been emitted: the next worker continues behind them.
    pub fn set_emitted(&mut self, batch: Batch, count: usize) {
        self.slot(batch).emitted = count;
    }

    /// Frees what `database` has published and its worker has taken: no worker will emit it.
    pub fn drop_all(&mut self, database: pg_sys::Oid) {
        self.take(database, true).into_iter().for_each(|batch| self.free(batch));
    }

    pub fn free(&mut self, batch: Batch) {
        let count = self.slot(batch).count;
        self.slot(batch).state = State::Part;
        let mut last = batch.slot;
        for _ in 1..count {
            last = self.entries[last as usize].next;
        }
        self.entries[last as usize].next = self.header.free;
        self.header.free = batch.slot;
        self.header.free_count += count;
        self.header.batches -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: pg_sys::Oid = pg_sys::Oid::from_u32(5);
    const OTHER: pg_sys::Oid = pg_sys::Oid::from_u32(6);

    fn with_queue(slots: usize, test: impl FnOnce(&mut Queue<'_>)) {
        let mut entries: Vec<_> = (0..slots).map(|place| Slot::free(place, slots)).collect();
        let mut header = Header::all_free(slots);
        test(&mut Queue { header: &mut header, entries: &mut entries });
    }

    fn reserve(queue: &mut Queue<'_>, database: pg_sys::Oid, payloads: &[u8]) -> Option<Batch> {
        queue.reserve(database, pg_sys::TransactionId::from_inner(7), payloads)
    }

    #[test]
    fn a_batch_is_read_as_it_was_written_and_its_room_comes_back() {
        with_queue(8, |queue| {
            for length in [1, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 6 * SLOT_BYTES] {
                for _ in 0..9 {
                    let payloads: Vec<_> = (0..length).map(|place| place as u8).collect();
                    let batch = reserve(queue, MINE, &payloads).expect("room");
                    assert!(queue.take(MINE, true).is_empty(), "it is not published");
                    queue.slot(batch).state = State::Published;
                    assert!(queue.take(OTHER, true).is_empty());
                    assert_eq!(queue.take(MINE, false), [batch]);
                    assert!(queue.take(MINE, false).is_empty());
                    assert_eq!(queue.take(MINE, true), [batch]);
                    assert_eq!(queue.payloads(batch), (payloads, 0));
                    queue.free(batch);
                    assert_eq!((queue.header.free_count, queue.header.batches), (8, 0));
                }
            }
        });
    }

    #[test]
    fn batches_are_taken_in_the_order_of_their_reservation() {
        with_queue(8, |queue| {
            let first = reserve(queue, MINE, b"a").expect("room");
            let second = reserve(queue, MINE, b"b").expect("room");
            queue.free(first);
            let third = reserve(queue, MINE, b"c").expect("room");
            for batch in [third, second] {
                queue.slot(batch).state = State::Published;
            }
            assert_eq!(queue.take(MINE, false), [second, third]);
        });
    }

    #[test]
    fn what_a_worker_leaves_comes_first() {
        with_queue(8, |queue| {
            let session = reserve(queue, MINE, b"a").expect("room");
            let mut leave = |payloads: &[u8]| {
                let none = pg_sys::InvalidTransactionId;
                queue.reserve(MINE, none, payloads).expect("room")
            };
            let (first, second) = (leave(b"b"), leave(b"c"));
            assert!(first.is_left_by_worker() && !session.is_left_by_worker());
            for batch in [session, first, second] {
                queue.slot(batch).state = State::Published;
            }
            assert_eq!(queue.take(MINE, false), [first, second, session]);
        });
    }

    #[test]
    fn a_database_leaves_a_quarter_to_others() {
        with_queue(8, |queue| {
            assert!(reserve(queue, MINE, &[0; 7 * SLOT_BYTES]).is_none());
            let all = reserve(queue, MINE, &[0; 6 * SLOT_BYTES]).expect("room");
            assert!(reserve(queue, MINE, &[0]).is_none());
            assert!(reserve(queue, OTHER, &[0; 3 * SLOT_BYTES]).is_none(), "two are left");
            assert!(reserve(queue, OTHER, &[0; 2 * SLOT_BYTES]).is_some());
            queue.free(all);
            assert!(reserve(queue, MINE, &[0; 6 * SLOT_BYTES]).is_some());
        });
    }
}
