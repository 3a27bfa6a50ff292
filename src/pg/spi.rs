//! SQL statements that a session plans once and keeps, and the snapshots that they run with.

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::ptr;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, BuiltinOid};
use pgrx::spi::{self, SpiClient};
use pgrx::{FromDatum, IntoDatum, Spi};

/// A statement, planned at its first use in a session. PostgreSQL plans it again by itself when what
/// it names changes.
pub struct SavedPlan {
    sql: &'static CStr,
    arguments: &'static [BuiltinOid],
    plan: SavedPlanCell,
}

/// The plan of a statement whose text its user makes, when it is first used in a session.
pub struct SavedPlanCell(Cell<pg_sys::SPIPlanPtr>);

/// Which rows a statement sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Those that the transaction's isolation level shows.
    Transaction,
    /// Those that the calling statement sees: for functions that only read.
    Active,
    /// What is committed by now, in every isolation level, and without a predicate lock.
    ///
    /// For statements that find single rows by an index scan or by their TID: others need a snapshot
    /// that stands still.
    SelfLatest,
}

impl SavedPlan {
    /// The statement `sql`, whose `$n` are of the types `arguments`.
    pub const fn new(sql: &'static CStr, arguments: &'static [BuiltinOid]) -> Self {
        Self { sql, arguments, plan: SavedPlanCell::new() }
    }

    /// Runs the statement.
    pub fn run<'conn>(
        &self,
        client: &SpiClient<'conn>,
        sight: Snapshot,
        arguments: &[DatumWithOid<'_>],
    ) -> spi::Result<Rows<'conn>> {
        self.plan.run(client, || Cow::Borrowed(self.sql), self.arguments, sight, arguments)
    }
}

impl SavedPlanCell {
    /// Nothing planned yet.
    pub const fn new() -> Self {
        Self(Cell::new(ptr::null_mut()))
    }

    /// Runs the statement `sql`, always the same one, whose `$n` are of the types `types`.
    pub fn run<'conn>(
        &self,
        client: &SpiClient<'conn>,
        sql: impl FnOnce() -> Cow<'static, CStr>,
        types: &[BuiltinOid],
        sight: Snapshot,
        arguments: &[DatumWithOid<'_>],
    ) -> spi::Result<Rows<'conn>> {
        let fits =
            |(argument, oid): (&DatumWithOid<'_>, &BuiltinOid)| argument.oid() == oid.value();
        if arguments.len() != types.len() || !arguments.iter().zip(types).all(fits) {
            return Err(spi::Error::PreparedStatementArgumentMismatch {
                expected: types.len(),
                got: arguments.len(),
            });
        }
        if self.0.get().is_null() {
            let types: Vec<_> = types.iter().map(|oid| oid.value()).collect();
            let plan = prepare(client, &sql(), &types)?;
            // SAFETY: `plan` was just prepared, within the SPI connection of `client`.
            unsafe { pg_sys::SPI_keepplan(plan) };
            self.0.set(plan);
        }
        // SAFETY: a kept plan lives as long as the session; the arguments are of its types, as was just
        // checked.
        unsafe { execute(client, self.0.get(), sight, arguments) }
    }
}

/// Prepares `sql`, whose `$n` are of the types `arguments`, for as long as the SPI connection lasts.
fn prepare(
    _client: &SpiClient<'_>,
    sql: &CStr,
    arguments: &[pg_sys::Oid],
) -> spi::Result<pg_sys::SPIPlanPtr> {
    let mut types = arguments.to_vec();
    // SAFETY: SPI is connected while `_client` exists; `types` has as many entries as it is said to.
    let plan = unsafe {
        let count = i32::try_from(types.len()).unwrap_or_default();
        pg_sys::SPI_prepare(sql.as_ptr(), count, types.as_mut_ptr())
    };
    if plan.is_null() {
        // SAFETY: SPI_prepare() sets it when it returns NULL; a read of a backend's own global.
        Spi::check_status(unsafe { pg_sys::SPI_result })?;
    }
    Ok(plan)
}

/// Runs a prepared statement.
///
/// # Safety
/// `plan` is a plan that SPI returned and that has not been freed, for as many arguments, of these types.
unsafe fn execute<'conn>(
    _client: &SpiClient<'conn>,
    plan: pg_sys::SPIPlanPtr,
    sight: Snapshot,
    arguments: &[DatumWithOid<'_>],
) -> spi::Result<Rows<'conn>> {
    let (mut values, nulls): (Vec<_>, Vec<_>) = arguments
        .iter()
        .map(|argument| match argument.datum() {
            Some(datum) => (datum.sans_lifetime(), b' ' as c_char),
            None => (pg_sys::Datum::from(0), b'n' as c_char),
        })
        .unzip();
    let mut latest;
    let snapshot = match sight {
        Snapshot::Transaction | Snapshot::Active => ptr::null_mut(),
        Snapshot::SelfLatest => {
            // SAFETY: in a transaction, so there is a latest snapshot; the copy is used, and copied by
            // SPI, before another can be taken. Of type SELF the executor sees what is committed at
            // the moment, as foreign keys do, and takes no predicate locks ("special snapshots" in
            // predicate.c's SerializationNeededForRead()); its xmin, which SPI registers, keeps those
            // rows from being vacuumed.
            latest = unsafe { *pg_sys::GetLatestSnapshot() };
            latest.snapshot_type = pg_sys::SnapshotType::SNAPSHOT_SELF;
            &raw mut latest
        }
    };
    // SAFETY: SPI is connected while `_client` exists; values and nulls have an entry for each `$n` of
    // the plan, which the caller vouches for.
    unsafe {
        pg_sys::SPI_tuptable = ptr::null_mut();
        let code = pg_sys::SPI_execute_snapshot(
            plan,
            values.as_mut_ptr(),
            nulls.as_ptr(),
            snapshot,
            ptr::null_mut(),
            sight == Snapshot::Active,
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

/// What a statement returned or, where it returns nothing, how many rows it changed.
pub struct Rows<'conn> {
    connection: PhantomData<&'conn ()>,
    table: *mut pg_sys::SPITupleTable,
    count: u64,
}

impl Rows<'_> {
    /// How many rows there are.
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The value in `column`, counted from 1, of `row`, counted from 0; `None` where it is NULL or is
    /// not there.
    pub fn get<T: FromDatum + IntoDatum>(&self, row: u64, column: i32) -> Option<T> {
        if self.table.is_null() || row >= self.count {
            return None;
        }
        // SAFETY: the table lives as long as the SPI connection that 'conn stands for, and has `count`
        // rows. SPI_getbinval() itself checks the column's number.
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
    // SAFETY: a timestamptz is passed by value, as a bigint is, and all values of one are values of it.
    unsafe { DatumWithOid::new(micros, pg_sys::TIMESTAMPTZOID) }
}

/// Runs `body` with a new snapshot active: outside of a statement there is none.
pub fn with_active_snapshot<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: in a transaction; an error's abort pops the snapshot too.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let result = body();
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}
