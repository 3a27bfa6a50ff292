//! What backends tell the workers when their transactions end.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};

use pgrx::pg_sys;

use super::database::Serving;
use super::text::SharedText;
use super::{Shared, claim, messages_offset};

/// What a backend tells a worker at the end of a transaction or subtransaction.
#[repr(C)]
pub struct Message {
    state: AtomicU32,
    database: AtomicU32,
    kind: AtomicU32,
    xid: AtomicU64,
    subxid: AtomicU64,
    execution_id: AtomicI64,
    loader_id: AtomicI64,
    start: AtomicI64,
    abandoned: AtomicI64,
    prepared: AtomicU64,
    notify: AtomicBool,
    text: SharedText,
}

const FREE: u32 = 0;
const WRITING: u32 = 1;
const READY: u32 = 2;
/// The worker has read it, and keeps it until it has done what it says.
const HELD: u32 = 3;
/// The worker is doing what it says.
const BEGUN: u32 = 4;

/// Kinds of messages.
const ERROR: u32 = 0;
const LOST_START: u32 = 1;

/// What a message says.
pub enum News {
    /// A transaction, or a subtransaction of it, was rolled back by an error.
    Error {
        /// The transaction.
        xid: u64,
        /// The subtransaction; 0 where it was the whole transaction.
        subxid: u64,
        /// The error.
        text: String,
    },
    /// A start recorded in the caller's own transaction was rolled back with it.
    LostStart(LostStart),
}

/// A start that was rolled back together with the caller's transaction, or may yet be.
pub struct LostStart {
    /// The execution's id.
    pub execution_id: i64,
    /// The loader's id.
    pub loader_id: i64,
    /// When it started, in PostgreSQL's microseconds.
    pub start: i64,
    /// The execution that the worker may have recorded in its stead; 0 for none.
    pub abandoned: i64,
    /// The prepared transaction that has recorded it: it is lost if that is rolled back. 0 where it is lost.
    pub prepared: u64,
    /// Whether the session that started it wants events.
    pub notify: bool,
    /// The error that did it; empty where none is known.
    pub text: String,
    /// The message that said so, to release once it is recorded.
    pub message: Option<&'static Message>,
}

/// A message as a callback posts it: without an allocation.
pub enum Posting<'a> {
    /// As [`News::Error`].
    Error {
        /// The transaction.
        xid: u64,
        /// The subtransaction, or 0.
        subxid: u64,
        /// The error.
        text: &'a [u8],
    },
    /// As [`News::LostStart`].
    LostStart {
        /// The execution's id.
        execution_id: i64,
        /// The loader's id.
        loader_id: i64,
        /// When it started, in PostgreSQL's microseconds.
        start: i64,
        /// The execution that the worker may have recorded in its stead; 0 for none.
        abandoned: i64,
        /// The prepared transaction that may yet be rolled back, or 0.
        prepared: u64,
        /// Whether the session wants events.
        notify: bool,
        /// The error that did it.
        text: &'a [u8],
    },
}

impl Message {
    fn is_posted(&self) -> bool {
        matches!(self.state.load(Acquire), READY | HELD | BEGUN)
    }

    fn advance(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }

    fn is_error(&self) -> bool {
        self.kind.load(Relaxed) == ERROR
    }

    /// Whether it is about the execution `id`, whose start was recorded otherwise than through the worker.
    fn is_about(&self, id: i64) -> bool {
        !self.is_error() && self.execution_id.load(Relaxed) == id
    }

    /// The worker of `oid` begins to record the lost start of an execution; false where the message that it held
    /// is not there any more.
    pub fn begin(&self, oid: pg_sys::Oid, execution_id: i64) -> bool {
        let is_mine = || self.is_about(execution_id) && self.database.load(Relaxed) == oid.to_u32();
        if !is_mine() || !self.advance(HELD, BEGUN) {
            return false;
        }
        // Another may have come to its place meanwhile, which another worker holds.
        is_mine() || {
            self.advance(BEGUN, HELD);
            false
        }
    }

    /// The worker could not record it, and will try again.
    pub fn put_off(&self) {
        self.advance(BEGUN, HELD);
    }

    fn news(&'static self) -> News {
        let text = self.text.get();
        if self.is_error() {
            News::Error { xid: self.xid.load(Relaxed), subxid: self.subxid.load(Relaxed), text }
        } else {
            News::LostStart(LostStart {
                execution_id: self.execution_id.load(Relaxed),
                loader_id: self.loader_id.load(Relaxed),
                start: self.start.load(Relaxed),
                abandoned: self.abandoned.load(Relaxed),
                prepared: self.prepared.load(Relaxed),
                notify: self.notify.load(Relaxed),
                text,
                message: Some(self),
            })
        }
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

    /// Posts a message to the worker of a database and wakes it. Cannot fail; where there is no room, or
    /// nobody to read it, the message is lost, and with it an error's text or a plain start. A start takes
    /// the place of an error where there is no other: a text can be missing.
    pub fn post(self, oid: pg_sys::Oid, posting: &Posting<'_>) {
        let database = self.database(oid);
        let is_error = matches!(posting, Posting::Error { .. });
        if is_error && database.is_none_or(|database| database.serving() == Serving::NoRoom) {
            return;
        }
        let message = if self.has_too_many_messages(oid) {
            (!is_error).then(|| self.displace_error(Some(oid))).flatten()
        } else {
            claim(self.messages(), &self.0.next_message, |message| message.advance(FREE, WRITING))
                .or_else(|| (!is_error).then(|| self.displace_error(None)).flatten())
        };
        if let Some(message) = message {
            message.database.store(oid.to_u32(), Relaxed);
            match *posting {
                Posting::Error { xid, subxid, text } => {
                    message.kind.store(ERROR, Relaxed);
                    message.xid.store(xid, Relaxed);
                    message.subxid.store(subxid, Relaxed);
                    message.text.set(text);
                }
                Posting::LostStart {
                    execution_id,
                    loader_id,
                    start,
                    abandoned,
                    prepared,
                    notify,
                    text,
                } => {
                    message.abandoned.store(abandoned, Relaxed);
                    message.prepared.store(prepared, Relaxed);
                    message.notify.store(notify, Relaxed);
                    message.kind.store(LOST_START, Relaxed);
                    message.execution_id.store(execution_id, Relaxed);
                    message.loader_id.store(loader_id, Relaxed);
                    message.start.store(start, Relaxed);
                    message.text.set(text);
                }
            }
            message.state.store(READY, Release);
            self.0.messages.fetch_add(1, AcqRel);
        } else if let Some(database) = database.filter(|_| !is_error) {
            database.dropped_starts.fetch_add(1, Relaxed);
        }
        match database {
            Some(database) => database.worker.wake(),
            None => self.announce(oid),
        }
    }

    /// The place of an error that nobody has read, of the database `oid` or of any, to be written to.
    fn displace_error(self, oid: Option<pg_sys::Oid>) -> Option<&'static Message> {
        let is_wanted = |message: &Message| {
            message.is_error()
                && oid.is_none_or(|oid| message.database.load(Relaxed) == oid.to_u32())
        };
        let displaced = claim(self.messages(), &self.0.next_message, |message| {
            // Another may have taken the place meanwhile, and written something else.
            is_wanted(message)
                && message.advance(READY, WRITING)
                && (is_wanted(message) || !message.advance(WRITING, READY))
        });
        if displaced.is_some() {
            self.0.messages.fetch_sub(1, AcqRel);
        }
        displaced
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

    /// Takes the messages to the worker of a database. Those of lost starts are kept until
    /// [`Self::release`].
    pub fn take_messages(self, oid: pg_sys::Oid) -> Vec<News> {
        if self.0.messages.load(Acquire) == 0 {
            return Vec::new();
        }
        self.messages_of(oid)
            .filter(|message| message.advance(READY, HELD))
            // Another may have come to its place meanwhile, to another worker.
            .filter(|message| self.is_to(oid, message))
            .map(|message| {
                let news = message.news();
                if matches!(news, News::Error { .. }) {
                    self.release(message);
                }
                news
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

    /// Has the messages that a worker before this one had kept read again.
    pub fn take_over_messages(self, oid: pg_sys::Oid) {
        for message in self.messages_of(oid) {
            let _ = message.advance(HELD, READY) || message.advance(BEGUN, READY);
        }
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

    /// Whether the start of an execution waits to be recorded as lost, and in which prepared transaction it
    /// was recorded, or 0.
    pub fn lost_in(self, oid: pg_sys::Oid, execution_id: i64) -> Option<u64> {
        if self.0.messages.load(Acquire) == 0 {
            return None;
        }
        self.messages_of(oid)
            .find(|message| message.is_about(execution_id))
            .map(|message| message.prepared.load(Relaxed))
    }

    /// Takes the lost start of an execution from the worker, which has not begun to record it, to be recorded
    /// otherwise. Not where that has recorded another execution in its stead.
    pub fn take_lost_start(self, oid: pg_sys::Oid, execution_id: i64) -> Option<LostStart> {
        let is_wanted = |message: &Message| {
            message.is_about(execution_id)
                && message.database.load(Relaxed) == oid.to_u32()
                && message.abandoned.load(Relaxed) == 0
                && message.prepared.load(Relaxed) == 0
        };
        let message = self.messages_of(oid).find(|message| is_wanted(message))?;
        let state = [READY, HELD].into_iter().find(|&state| message.advance(state, WRITING))?;
        if !is_wanted(message) {
            message.advance(WRITING, state);
            return None;
        }
        let lost = match message.news() {
            News::LostStart(lost) => Some(LostStart { message: None, ..lost }),
            News::Error { .. } => None,
        };
        message.advance(WRITING, FREE);
        self.0.messages.fetch_sub(1, AcqRel);
        lost
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
    pub fn release(self, message: &Message) {
        if [HELD, READY, BEGUN].into_iter().any(|from| message.advance(from, FREE)) {
            self.0.messages.fetch_sub(1, AcqRel);
        }
    }
}
