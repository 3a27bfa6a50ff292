//! SQL statements that a session plans once and saves, and the snapshots that they run with.
//!
//! Functions return what SPI reports; errors of a statement pass as PostgreSQL raised them.

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::ptr;
use std::thread::LocalKey;

use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::pg_sys;
use pgrx::spi::{self, SpiClient};
use pgrx::{FromDatum, IntoDatum, Spi};

use crate::model::error::Error;

/// A statement, planned at its first use in a session. PostgreSQL replans it when what it names
/// changes.
pub struct SavedPlan {
    sql: &'static CStr,
    snapshot: Snapshot,
    plan: SavedPlanCell,
}

/// The plan of a statement whose text is made at its first use in a session, and the types of its
/// arguments.
pub struct SavedPlanCell(Cell<Option<(pg_sys::SPIPlanPtr, &'static [pg_sys::Oid])>>);

/// Which rows a statement sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Those that the transaction's isolation level shows.
    Transaction,
    /// Those that the calling statement sees: for functions that only read.
    Active,
    /// What is committed by now, in every isolation level, and without a predicate lock.
    ///
    /// For statements that find single rows by an index scan or by their TID: all others need a
    /// snapshot that does not change while they run.
    SelfLatest,
}

impl SavedPlan {
    /// The statement `sql`, which runs with the transaction's snapshot.
    pub const fn new(sql: &'static CStr) -> Self {
        Self { sql, snapshot: Snapshot::Transaction, plan: SavedPlanCell::new() }
    }

    /// The statement `sql`, which sees what is committed by now.
    pub const fn self_latest(sql: &'static CStr) -> Self {
        Self { sql, snapshot: Snapshot::SelfLatest, plan: SavedPlanCell::new() }
    }

    pub fn run<'conn>(
        &self,
        client: &SpiClient<'conn>,
        arguments: &[DatumWithOid<'_>],
    ) -> spi::Result<Rows<'conn>> {
        self.plan.run(client, || Cow::Borrowed(self.sql), self.snapshot, arguments)
    }
}

/// Runs a statement, and passes its rows to `read`.
pub fn query<R>(
    statement: &'static LocalKey<SavedPlan>,
    arguments: &[DatumWithOid<'_>],
    read: impl FnOnce(&Rows<'_>) -> R,
) -> Result<R, Error> {
    Spi::connect(|client| Ok(read(&statement.with(|plan| plan.run(client, arguments))?)))
}

/// Runs a statement, and returns the number of rows that it changed.
pub fn execute(
    statement: &'static LocalKey<SavedPlan>,
    arguments: &[DatumWithOid<'_>],
) -> Result<u64, Error> {
    query(statement, arguments, |rows| rows.len())
}

impl SavedPlanCell {
    pub const fn new() -> Self {
        Self(Cell::new(None))
    }

    /// Runs the statement `sql`, the same one at each call, with arguments of the same types.
    pub fn run<'conn>(
        &self,
        client: &SpiClient<'conn>,
        sql: impl FnOnce() -> Cow<'static, CStr>,
        snapshot: Snapshot,
        arguments: &[DatumWithOid<'_>],
    ) -> spi::Result<Rows<'conn>> {
        let types = arguments.iter().map(DatumWithOid::oid);
        let plan = match self.0.get() {
            Some((plan, planned)) if planned.iter().copied().eq(types.clone()) => plan,
            Some((_, planned)) => {
                let (expected, got) = (planned.len(), arguments.len());
                return Err(spi::Error::PreparedStatementArgumentMismatch { expected, got });
            }
            None => {
                let types = types.collect::<Vec<_>>().leak();
                let plan = prepare(client, &sql(), types)?;
                self.0.set(Some((plan, types)));
                plan
            }
        };
        // SAFETY: a saved plan lives as long as the session; the arguments are of its types.
        unsafe { run(client, plan, snapshot, arguments) }
    }
}

/// Prepares and saves `sql`, whose `$n` are of these types.
fn prepare(
    _client: &SpiClient<'_>,
    sql: &CStr,
    types: &mut [pg_sys::Oid],
) -> spi::Result<pg_sys::SPIPlanPtr> {
    // SAFETY: SPI is connected while `_client` exists. SPI_prepare() sets SPI_result if it returns
    // NULL.
    unsafe {
        let count = i32::try_from(types.len()).unwrap_or_default();
        let plan = pg_sys::SPI_prepare(sql.as_ptr(), count, types.as_mut_ptr());
        if plan.is_null() {
            Spi::check_status(pg_sys::SPI_result)?;
        }
        pg_sys::SPI_keepplan(plan);
        Ok(plan)
    }
}

/// # Safety
/// `plan` is a plan that SPI returned and that has not been freed, for arguments of these types.
unsafe fn run<'conn>(
    _client: &SpiClient<'conn>,
    plan: pg_sys::SPIPlanPtr,
    snapshot: Snapshot,
    arguments: &[DatumWithOid<'_>],
) -> spi::Result<Rows<'conn>> {
    let (mut values, nulls): (Vec<_>, Vec<_>) = arguments
        .iter()
        .map(|argument| match argument.datum() {
            Some(datum) => (datum.sans_lifetime(), b' ' as c_char),
            None => (pg_sys::Datum::from(0), b'n' as c_char),
        })
        .unzip();
    let read_only = snapshot == Snapshot::Active;
    let mut latest;
    let snapshot = match snapshot {
        Snapshot::Transaction | Snapshot::Active => ptr::null_mut(),
        Snapshot::SelfLatest => {
            // SAFETY: in a transaction, so there is a latest snapshot; the copy is used, and copied
            // by SPI, before another can be taken. Of type SELF the executor sees what is committed
            // at the moment, as foreign keys do, and takes no predicate locks ("special snapshots"
            // in predicate.c's SerializationNeededForRead()); its xmin, which SPI registers, keeps
            // those rows from being vacuumed.
            latest = unsafe { *pg_sys::GetLatestSnapshot() };
            latest.snapshot_type = pg_sys::SnapshotType::SNAPSHOT_SELF;
            &raw mut latest
        }
    };
    // SAFETY: SPI is connected while `_client` exists; values and nulls have an entry for each `$n`
    // of the plan, which the caller vouches for.
    unsafe {
        pg_sys::SPI_tuptable = ptr::null_mut();
        let code = pg_sys::SPI_execute_snapshot(
            plan,
            values.as_mut_ptr(),
            nulls.as_ptr(),
            snapshot,
            ptr::null_mut(),
            read_only,
            true,
            0,
        );
        Spi::check_status(code)?;
        Ok(Rows {
            connection: PhantomData,
            table: pg_sys::SPI_tuptable,
            count: pg_sys::SPI_processed,
        })
    }
}

/// The rows that a statement returned or, if it returns none, the number of those it changed.
pub struct Rows<'conn> {
    connection: PhantomData<&'conn ()>,
    table: *mut pg_sys::SPITupleTable,
    count: u64,
}

impl Rows<'_> {
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// The timestamptz in `column` of `row`, in PostgreSQL's microseconds.
    pub fn time(&self, row: u64, column: i32) -> Option<i64> {
        self.get::<TimestampWithTimeZone>(row, column).map(TimestampWithTimeZone::into_inner)
    }

    /// The value in `column`, counted from 1, of `row`, counted from 0; `None` if it is NULL or
    /// does not exist.
    pub fn get<T: FromDatum + IntoDatum>(&self, row: u64, column: i32) -> Option<T> {
        if self.table.is_null() || row >= self.count {
            return None;
        }
        // SAFETY: the table lives as long as the SPI connection that 'conn stands for, and has
        // `count` rows. SPI_getbinval() itself checks the column's number.
        unsafe {
            let descriptor = (*self.table).tupdesc;
            if pg_sys::SPI_gettypeid(descriptor, column) != T::type_oid() {
                return None;
            }
            let tuple = *(*self.table).vals.add(usize::try_from(row).ok()?);
            let mut null = false;
            let datum = pg_sys::SPI_getbinval(tuple, descriptor, column, &raw mut null);
            T::from_datum(datum, null)
        }
    }
}

/// A `timestamptz` of PostgreSQL's microseconds; the ends of the range are its infinities.
pub fn timestamptz(micros: i64) -> DatumWithOid<'static> {
    eight_bytes(Some(micros), pg_sys::TIMESTAMPTZOID)
}

/// An `xid8`; NULL for 0.
pub fn xid8(xid: u64) -> DatumWithOid<'static> {
    eight_bytes((xid != 0).then(|| xid.cast_signed()), pg_sys::XID8OID)
}

fn eight_bytes(value: Option<i64>, oid: pg_sys::Oid) -> DatumWithOid<'static> {
    // SAFETY: a value of the types above is passed by value, as a bigint is, and may have any bits.
    unsafe { DatumWithOid::new(value, oid) }
}

/// Runs `body` with a new snapshot active: outside of a statement there is none.
pub fn with_active_snapshot<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: in a transaction; an error's abort pops the snapshot too.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = body();
        pg_sys::PopActiveSnapshot();
        result
    }
}
