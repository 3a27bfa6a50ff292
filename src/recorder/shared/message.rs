//! What backends tell the workers when their transactions are rolled back by an error.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use pgrx::pg_sys;

use super::database::Serving;
use super::text::SharedText;
use super::{Shared, claim, messages_offset};

/// An error that has rolled a transaction or subtransaction back.
#[repr(C)]
pub struct Message {
    state: AtomicU32,
    database: AtomicU32,
    xid: AtomicU64,
    subxid: AtomicU64,
    text: SharedText,
}

const FREE: u32 = 0;
const WRITING: u32 = 1;
const READY: u32 = 2;
/// The worker reads it.
const HELD: u32 = 3;

/// What a message says.
pub struct News {
    /// The transaction.
    pub xid: u64,
    /// The subtransaction; 0 where it was the whole transaction.
    pub subxid: u64,
    /// The error.
    pub text: String,
}

impl Message {
    fn is_posted(&self) -> bool {
        matches!(self.state.load(Acquire), READY | HELD)
    }

    fn advance(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }
}

impl Shared {
    fn messages(self) -> &'static [Message] {
        // SAFETY: lay_out() has put that many initialized entries there.
        unsafe {
            let offset = messages_offset(self.0.databases, self.0.queue_size);
            std::slice::from_raw_parts(self.part(offset).cast(), self.0.queue_size)
        }
    }

    /// Posts an error to the worker of a database and wakes it. Cannot fail; where there is no room, or
    /// nobody to read it, the error's text is lost.
    pub fn post(self, oid: pg_sys::Oid, xid: u64, subxid: u64, text: &[u8]) {
        let database = self.database(oid);
        if database.is_none_or(|database| database.serving() == Serving::NoRoom) {
            return;
        }
        if !self.has_too_many_messages(oid)
            && let Some(message) = claim(self.messages(), &self.0.next_message, |message| {
                message.advance(FREE, WRITING)
            })
        {
            message.database.store(oid.to_u32(), Relaxed);
            message.xid.store(xid, Relaxed);
            message.subxid.store(subxid, Relaxed);
            message.text.set(text);
            message.state.store(READY, Release);
            self.0.messages.fetch_add(1, AcqRel);
        }
        if let Some(database) = database {
            database.worker.wake();
        }
    }

    /// Whether a database has three quarters of all messages: one whose worker reads none must leave room
    /// for others.
    fn has_too_many_messages(self, oid: pg_sys::Oid) -> bool {
        let messages = self.messages();
        let limit = messages.len() / 4 * 3;
        self.0.messages.load(Relaxed) as usize >= limit
            && messages
                .iter()
                .filter(|message| {
                    message.state.load(Relaxed) != FREE
                        && message.database.load(Relaxed) == oid.to_u32()
                })
                .count()
                >= limit
    }

    /// Takes the messages to the worker of a database.
    pub fn take_messages(self, oid: pg_sys::Oid) -> Vec<News> {
        if self.0.messages.load(Acquire) == 0 {
            return Vec::new();
        }
        self.messages_of(oid)
            .filter(|message| message.advance(READY, HELD))
            // Another may have come to its place meanwhile, to another worker.
            .filter(|message| self.is_to(oid, message))
            .map(|message| {
                let (xid, subxid) = (message.xid.load(Relaxed), message.subxid.load(Relaxed));
                let text = message.text.get();
                self.release(message);
                News { xid, subxid, text }
            })
            .collect()
    }

    /// Whether a message that was just taken is to the worker of `oid`. Where it is not, it goes back.
    fn is_to(self, oid: pg_sys::Oid, message: &Message) -> bool {
        let to = pg_sys::Oid::from(message.database.load(Relaxed));
        if to != oid && message.advance(HELD, READY) {
            match self.database(to) {
                Some(database) => database.worker.wake(),
                None => self.announce(to),
            }
        }
        to == oid
    }

    /// Drops the messages to the worker of a database.
    pub fn drop_messages(self, oid: pg_sys::Oid) {
        self.messages_of(oid).for_each(|message| self.release(message));
    }

    /// Whether there are messages to the worker of a database that it has not read, or starts.
    pub fn is_worker_wanted(self, oid: pg_sys::Oid) -> bool {
        self.0.messages.load(Acquire) > 0
            && self.messages_of(oid).any(|message| message.state.load(Acquire) == READY)
            || self.queued().any(|request| request.database() == oid)
    }

    /// Drops messages to databases that are not among `existing`. Only the launcher calls it.
    pub fn drop_messages_except(self, existing: &[pg_sys::Oid]) {
        for message in self.messages() {
            if message.is_posted()
                && !existing.contains(&pg_sys::Oid::from(message.database.load(Relaxed)))
            {
                self.release(message);
            }
        }
    }

    fn messages_of(self, oid: pg_sys::Oid) -> impl Iterator<Item = &'static Message> {
        self.messages().iter().filter(move |message| {
            message.is_posted() && message.database.load(Relaxed) == oid.to_u32()
        })
    }

    /// Frees a message that has been posted.
    fn release(self, message: &Message) {
        if [HELD, READY].into_iter().any(|from| message.advance(from, FREE)) {
            self.0.messages.fetch_sub(1, AcqRel);
        }
    }
}
