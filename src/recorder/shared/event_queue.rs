//! Events on their way from the transactions that made them to the worker that emits them.
//!
//! The events of one transaction are a batch: a chain of slots in shared memory, which the transaction
//! takes and fills before it commits, and puts into its database's list once it has. So nothing is left
//! to do after the commit that could fail, and a transaction that is long about its commit, since it
//! waits for a standby, keeps nobody else's events back: slots have no order.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use pgrx::pg_sys;

/// Bytes of events that a slot holds: most events fit into one.
pub const SLOT_BYTES: usize = 256;

/// Slots for each event that the queue is to hold: room for some that carry an error's text.
pub const SLOTS_PER_EVENT: usize = 4;

/// What the slots of all databases have in common.
#[repr(C)]
pub struct Pool {
    /// The first free slot, and in the upper half how often that has changed: one that was taken and given
    /// back meanwhile is not taken for unchanged.
    free: AtomicU64,
    /// Counts batches, in the order in which transactions begin to commit.
    next_ticket: AtomicU64,
}

/// A part of a batch. Links are places counted from 1; 0 is none.
#[repr(C)]
pub struct Slot {
    state: AtomicU32,
    /// The next free slot, or the next of the same batch.
    next: AtomicU32,
    /// Of a batch's first slot: the next batch in the database's list.
    next_batch: AtomicU32,
    /// Of a batch's first slot: its slots.
    count: AtomicU32,
    /// Of a batch's first slot: its bytes.
    length: AtomicU32,
    /// Of a batch's first slot: how many of its events have been emitted.
    emitted: AtomicU32,
    database: AtomicU32,
    /// The transaction that made it.
    xid: AtomicU32,
    ticket: AtomicU64,
}

/// The bytes of a slot.
pub type SlotBytes = [AtomicU8; SLOT_BYTES];

/// Of a slot that is free, or not the first of its batch.
const PART: u32 = 0;
/// The transaction that made the batch has not ended, or not told the worker yet.
const RESERVED: u32 = 1;
/// The worker has it, and keeps it until its events are emitted.
const HELD: u32 = 2;

/// The batches of one database.
#[repr(C)]
pub struct Batches {
    /// The list of those that are to be emitted, the newest first.
    first: AtomicU32,
    /// Those whose transactions have not ended.
    reserved: AtomicU32,
    /// Slots in use.
    slots: AtomicU32,
}

/// The events of a transaction. It is given to the worker or back exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    place: u32,
    /// Its place in the order in which transactions began to commit.
    pub ticket: u64,
}

/// The queue, in a process that has the shared memory.
#[derive(Clone, Copy)]
pub struct EventQueue {
    pub(super) pool: &'static Pool,
    pub(super) slots: &'static [Slot],
    pub(super) bytes: &'static [SlotBytes],
}

impl EventQueue {
    /// Makes every slot free, and numbers batches from `first_ticket` on. Called once, when the memory is new.
    pub fn lay_out(self, first_ticket: u64) {
        self.pool.next_ticket.store(first_ticket, Relaxed);
        self.pool.free.store(0, Relaxed);
        for place in (1..=self.slots.len()).rev() {
            self.release(u32::try_from(place).unwrap_or_default());
        }
    }

    fn slot(self, place: u32) -> Option<&'static Slot> {
        self.slots.get((place as usize).wrapping_sub(1))
    }

    /// Takes a free slot.
    fn claim(self) -> Option<u32> {
        let mut free = self.pool.free.load(Acquire);
        loop {
            let place = free as u32; // The lower half.
            let next = self.slot(place)?.next.load(Relaxed);
            let changed = (free >> 32).wrapping_add(1) << 32 | u64::from(next);
            match self.pool.free.compare_exchange_weak(free, changed, AcqRel, Acquire) {
                Ok(_) => return Some(place),
                Err(now) => free = now,
            }
        }
    }

    /// Makes a slot free.
    fn release(self, place: u32) {
        let Some(slot) = self.slot(place) else { return };
        slot.state.store(PART, Relaxed);
        let mut free = self.pool.free.load(Acquire);
        loop {
            slot.next.store(free as u32, Relaxed); // The lower half.
            let changed = (free >> 32).wrapping_add(1) << 32 | u64::from(place);
            match self.pool.free.compare_exchange_weak(free, changed, AcqRel, Acquire) {
                Ok(_) => return,
                Err(now) => free = now,
            }
        }
    }

    /// Draws `count` tickets in a row, and returns the first.
    pub fn draw_tickets(self, count: u64) -> u64 {
        self.pool.next_ticket.fetch_add(count, AcqRel)
    }

    /// Makes a batch of `payloads`, of transaction `xid` in `database`; `None` where there is no room for
    /// it.
    pub fn reserve(
        self,
        batches: &Batches,
        database: pg_sys::Oid,
        xid: pg_sys::TransactionId,
        payloads: &[u8],
    ) -> Option<Batch> {
        let count = payloads.len().div_ceil(SLOT_BYTES);
        let count = u32::try_from(count).ok().filter(|&count| count > 0)?;
        // A database whose worker takes none must leave room for others.
        let limit = self.slots.len() / 4 * 3;
        let used = batches.slots.fetch_add(count, AcqRel) + count;
        let mut first = 0;
        let mut taken = 0;
        if used as usize <= limit {
            while taken < count
                && let Some(place) = self.claim()
            {
                if let Some(slot) = self.slot(place) {
                    slot.next.store(first, Relaxed);
                }
                first = place;
                taken += 1;
            }
        }
        if taken < count {
            self.release_chain(first, taken);
            subtract(&batches.slots, count);
            return None;
        }
        let mut place = first;
        for part in payloads.chunks(SLOT_BYTES) {
            let bytes = self.bytes.get((place as usize).wrapping_sub(1))?;
            bytes.iter().zip(part).for_each(|(to, &from)| to.store(from, Relaxed));
            place = self.slot(place)?.next.load(Relaxed);
        }
        let head = self.slot(first)?;
        head.count.store(count, Relaxed);
        head.length.store(u32::try_from(payloads.len()).unwrap_or_default(), Relaxed);
        head.emitted.store(0, Relaxed);
        head.database.store(database.to_u32(), Relaxed);
        head.xid.store(xid.into_inner(), Relaxed);
        let ticket = self.draw_tickets(1);
        head.ticket.store(ticket, Relaxed);
        batches.reserved.fetch_add(1, AcqRel);
        head.state.store(RESERVED, Release);
        Some(Batch { place: first, ticket })
    }

    /// Gives a batch to the worker of its database; whether it found the list empty, and so must be woken.
    /// Cannot fail.
    pub fn publish(self, batches: &Batches, batch: Batch) -> bool {
        let Some(head) = self.slot(batch.place) else { return false };
        let mut first = batches.first.load(Acquire);
        loop {
            head.next_batch.store(first, Relaxed);
            match batches.first.compare_exchange_weak(first, batch.place, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        subtract(&batches.reserved, 1);
        first == 0
    }

    /// Frees a batch that was not published. Cannot fail.
    pub fn give_back(self, batches: Option<&Batches>, batch: Batch) {
        if let Some(batches) = batches {
            subtract(&batches.reserved, 1);
        }
        self.free(batches, batch);
    }

    /// Frees a batch.
    pub fn free(self, batches: Option<&Batches>, batch: Batch) {
        let Some(head) = self.slot(batch.place) else { return };
        let count = head.count.load(Relaxed);
        if let Some(batches) = batches {
            subtract(&batches.slots, count);
        }
        self.release_chain(batch.place, count);
    }

    fn release_chain(self, first: u32, count: u32) {
        let mut place = first;
        for _ in 0..count {
            let Some(slot) = self.slot(place) else { return };
            let next = slot.next.load(Relaxed);
            self.release(place);
            place = next;
        }
    }

    /// Takes the batches that `database` has published, in no order. Only its worker calls it.
    pub fn take(self, batches: &Batches, database: pg_sys::Oid) -> Vec<Batch> {
        let mut taken = Vec::new();
        let mut place = batches.first.swap(0, AcqRel);
        while let Some(head) = self.slot(place) {
            let next = head.next_batch.load(Relaxed);
            let batch = Batch { place, ticket: head.ticket.load(Relaxed) };
            // The entry of the database may have been another's when the transaction looked.
            if head.database.load(Relaxed) == database.to_u32() {
                head.state.store(HELD, Release);
                taken.push(batch);
            } else {
                self.free(None, batch);
            }
            place = next;
        }
        taken
    }

    /// The batches that a worker of `database` before this one had taken and not emitted.
    pub fn held(self, database: pg_sys::Oid) -> Vec<Batch> {
        self.heads(database, HELD)
            .map(|(place, head)| Batch { place, ticket: head.ticket.load(Relaxed) })
            .collect()
    }

    /// The batches of `database` whose transactions have not told the worker yet: their tickets, and the
    /// transactions.
    pub fn reserved(
        self,
        batches: &Batches,
        database: pg_sys::Oid,
    ) -> impl Iterator<Item = (u64, pg_sys::TransactionId)> {
        let any = batches.reserved.load(Acquire) > 0;
        let heads = any.then(|| self.heads(database, RESERVED));
        heads.into_iter().flatten().map(|(_, head)| {
            let xid = pg_sys::TransactionId::from_inner(head.xid.load(Relaxed));
            (head.ticket.load(Relaxed), xid)
        })
    }

    fn heads(
        self,
        database: pg_sys::Oid,
        state: u32,
    ) -> impl Iterator<Item = (u32, &'static Slot)> {
        (1..).zip(self.slots).filter(move |(_, head)| {
            head.state.load(Acquire) == state && head.database.load(Relaxed) == database.to_u32()
        })
    }

    /// The payloads of a batch, as they were passed.
    pub fn payloads(self, batch: Batch) -> Vec<u8> {
        let Some(head) = self.slot(batch.place) else { return Vec::new() };
        let length = head.length.load(Relaxed) as usize;
        let mut payloads = Vec::with_capacity(length);
        let mut place = batch.place;
        while payloads.len() < length
            && let Some(slot) = self.slot(place)
            && let Some(bytes) = self.bytes.get((place as usize).wrapping_sub(1))
        {
            let part = bytes.iter().take(length - payloads.len());
            payloads.extend(part.map(|byte| byte.load(Relaxed)));
            place = slot.next.load(Relaxed);
        }
        payloads
    }

    /// How many events of a batch have been emitted.
    pub fn emitted(self, batch: Batch) -> usize {
        self.slot(batch.place).map_or(0, |head| head.emitted.load(Relaxed) as usize)
    }

    /// Remembers how many events of a batch have been emitted: another worker goes on behind them.
    pub fn set_emitted(self, batch: Batch, count: usize) {
        if let Some(head) = self.slot(batch.place) {
            head.emitted.store(u32::try_from(count).unwrap_or(u32::MAX), Relaxed);
        }
    }

    /// Frees what a database has published and what its worker held: nobody will emit it.
    pub fn drop_all(self, batches: &Batches, database: pg_sys::Oid) {
        for batch in self.take(batches, database).into_iter().chain(self.held(database)) {
            self.free(Some(batches), batch);
        }
    }
}

/// Counts down, not below zero: the entry may have been another database's meanwhile.
fn subtract(counter: &AtomicU32, number: u32) {
    let _ = counter.fetch_update(AcqRel, Relaxed, |count| Some(count.saturating_sub(number)));
}

impl Batches {
    /// Whether some are to be emitted that the worker has not taken.
    pub fn is_any_published(&self) -> bool {
        self.first.load(Acquire) != 0
    }

    /// Forgets what another database has used the entry for.
    pub fn reset(&self) {
        self.reserved.store(0, Relaxed);
        self.slots.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const DATABASE: u32 = 5;

    fn queue(slots: usize) -> (EventQueue, &'static Batches) {
        let number = || AtomicU32::new(0);
        let slot = || Slot {
            state: number(),
            next: number(),
            next_batch: number(),
            count: number(),
            length: number(),
            emitted: number(),
            database: number(),
            xid: number(),
            ticket: AtomicU64::new(0),
        };
        let queue = EventQueue {
            pool: Box::leak(Box::new(Pool {
                free: AtomicU64::new(0),
                next_ticket: AtomicU64::new(0),
            })),
            slots: Vec::leak((0..slots).map(|_| slot()).collect()),
            bytes: Vec::leak(
                (0..slots).map(|_| [const { AtomicU8::new(0) }; SLOT_BYTES]).collect(),
            ),
        };
        queue.lay_out(0);
        let batches = Batches { first: number(), reserved: number(), slots: number() };
        (queue, Box::leak(Box::new(batches)))
    }

    fn reserve(queue: EventQueue, batches: &Batches, payloads: &[u8]) -> Option<Batch> {
        let (oid, xid) = (pg_sys::Oid::from(DATABASE), pg_sys::TransactionId::from_inner(7));
        queue.reserve(batches, oid, xid, payloads)
    }

    #[test]
    fn a_batch_is_read_as_it_was_written_and_its_room_comes_back() {
        let (queue, batches) = queue(8);
        let oid = pg_sys::Oid::from(DATABASE);
        for length in [1, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 6 * SLOT_BYTES] {
            for _ in 0..9 {
                let payloads: Vec<_> = (0..length).map(|place| place as u8).collect();
                let batch = reserve(queue, batches, &payloads).expect("room");
                assert_eq!(queue.reserved(batches, oid).count(), 1);
                assert!(queue.publish(batches, batch));
                assert!(batches.is_any_published());
                assert_eq!(queue.take(batches, oid), [batch]);
                assert_eq!(queue.held(oid), [batch]);
                assert_eq!(queue.payloads(batch), payloads);
                queue.free(Some(batches), batch);
                assert_eq!((queue.held(oid).len(), queue.reserved(batches, oid).count()), (0, 0));
            }
        }
    }

    #[test]
    fn a_database_gets_three_quarters_at_most_and_what_is_given_back_is_free() {
        let (queue, batches) = queue(8);
        assert!(reserve(queue, batches, &[0; 7 * SLOT_BYTES]).is_none());
        let all = reserve(queue, batches, &[0; 6 * SLOT_BYTES]).expect("room");
        assert!(reserve(queue, batches, &[0]).is_none());
        let (_, other) = self::queue(1);
        assert!(reserve(queue, other, &[0; 3 * SLOT_BYTES]).is_none(), "two are left");
        assert!(reserve(queue, other, &[0; 2 * SLOT_BYTES]).is_some());
        queue.give_back(Some(batches), all);
        assert!(reserve(queue, batches, &[0; 6 * SLOT_BYTES]).is_some());
    }

    #[test]
    fn what_another_database_left_in_an_entry_is_dropped() {
        let (queue, batches) = queue(4);
        let batch = reserve(queue, batches, &[0; 3 * SLOT_BYTES]).expect("room");
        queue.publish(batches, batch);
        assert!(queue.take(batches, pg_sys::Oid::from(DATABASE + 1)).is_empty());
        batches.reset();
        assert!(reserve(queue, batches, &[0; 3 * SLOT_BYTES]).is_some());
    }

    #[test]
    fn many_at_once_lose_and_double_nothing() {
        const EACH: u32 = 3_000;
        let (queue, batches) = queue(64);
        let oid = pg_sys::Oid::from(DATABASE);
        let mut received = Vec::new();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u32)
                .map(|thread| {
                    scope.spawn(move || {
                        for number in 0..EACH {
                            let payload = (thread * EACH + number).to_le_bytes();
                            let payloads = payload.repeat(1 + number as usize % 200);
                            let batch = loop {
                                match reserve(queue, batches, &payloads) {
                                    Some(batch) if number % 7 == 3 => {
                                        queue.give_back(Some(batches), batch);
                                    }
                                    Some(batch) => break Some(batch),
                                    None => thread::yield_now(),
                                }
                                if number % 7 == 3 {
                                    break None;
                                }
                            };
                            if let Some(batch) = batch {
                                queue.publish(batches, batch);
                            }
                        }
                    })
                })
                .collect();
            while !threads.iter().all(thread::ScopedJoinHandle::is_finished)
                || batches.is_any_published()
            {
                for batch in queue.take(batches, oid) {
                    let payloads = queue.payloads(batch);
                    let (words, rest) = payloads.as_chunks::<4>();
                    assert!(rest.is_empty());
                    let number = u32::from_le_bytes(words[0]);
                    assert_eq!(words.len(), 1 + (number % EACH) as usize % 200);
                    assert!(words.iter().all(|word| u32::from_le_bytes(*word) == number));
                    received.push(number);
                    queue.free(Some(batches), batch);
                }
            }
        });
        received.sort_unstable();
        let expected: Vec<_> = (0..4 * EACH).filter(|number| number % EACH % 7 != 3).collect();
        assert_eq!(received, expected);
        assert_eq!(batches.slots.load(Relaxed), 0);
        assert_eq!(batches.reserved.load(Relaxed), 0);
    }
}
