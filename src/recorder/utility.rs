//! Commands that need the worker out of the way, or a worker to come.

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use pgrx::pg_sys::{self, NodeTag};
use pgrx::{is_a, pg_guard};

use super::EXTENSION;
use super::shared::{Serving, Shared, my_database, shared};
use super::start::wait_for_latch;
use super::transaction;

static mut NEXT_HOOK: pg_sys::ProcessUtility_hook_type = None;

/// How often a command that needs a database to itself looks whether the worker has left it.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How many times, at most. PostgreSQL itself then waits another five seconds for others to leave.
const POLLS: u32 = 500;

/// Listens to commands. Called once, by the postmaster.
pub fn install() {
    // SAFETY: runs in the postmaster, which has one thread, while it preloads libraries.
    unsafe {
        NEXT_HOOK = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(on_command);
    }
}

#[pg_guard]
#[allow(clippy::too_many_arguments)] // PostgreSQL's
unsafe extern "C-unwind" fn on_command(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL passes a utility statement that is valid during the call, and what is passed
    // on is what came. The statement may be freed by the command (COMMIT does), so it is read before.
    // NEXT_HOOK was set by the postmaster, before any other process was there.
    unsafe {
        let command = Command::of((*statement).utilityStmt);
        if let (Some(command), Some(shared)) = (&command, shared()) {
            command.before(shared);
        }
        // Only the raw hook needs a guard; standard_ProcessUtility() comes with pgrx's, and two of them
        // around one error would abort the process.
        match NEXT_HOOK {
            Some(next) => pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| {
                next(
                    statement,
                    query,
                    read_only_tree,
                    context,
                    parameters,
                    environment,
                    destination,
                    completion,
                );
            }),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                parameters,
                environment,
                destination,
                completion,
            ),
        }
        if let Some(command) = command {
            command.after();
        }
    }
}

/// What a command does that workers must know of.
enum Command {
    /// It needs a database to itself.
    NeedsDatabase(CString),
    /// It makes a database of another, which it needs to itself.
    CopiesDatabase { template: CString, copy: CString },
    /// It commits a prepared transaction.
    CommitsPrepared,
    /// It rolls back a prepared transaction.
    RollsBackPrepared,
    /// It may bring, change or take the extension, or change a setting of the database's.
    ChangesExtension,
}

impl Command {
    /// # Safety
    /// `node` is a valid utility statement.
    unsafe fn of(node: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: a node's tag says which struct it is; strings of the parser are C strings or NULL.
        unsafe {
            match (*node).type_ {
                NodeTag::T_DropdbStmt => {
                    let statement = node.cast::<pg_sys::DropdbStmt>();
                    Some(Self::NeedsDatabase(owned((*statement).dbname)?))
                }
                NodeTag::T_AlterDatabaseStmt => {
                    let statement = node.cast::<pg_sys::AlterDatabaseStmt>();
                    Some(Self::NeedsDatabase(owned((*statement).dbname)?))
                }
                NodeTag::T_RenameStmt => {
                    let statement = node.cast::<pg_sys::RenameStmt>();
                    ((*statement).renameType == pg_sys::ObjectType::OBJECT_DATABASE)
                        .then(|| owned((*statement).subname))
                        .flatten()
                        .map(Self::NeedsDatabase)
                }
                NodeTag::T_CreatedbStmt => {
                    let statement = node.cast::<pg_sys::CreatedbStmt>();
                    Some(Self::CopiesDatabase {
                        template: template((*statement).options)
                            .unwrap_or_else(|| c"template1".to_owned()),
                        copy: owned((*statement).dbname)?,
                    })
                }
                NodeTag::T_TransactionStmt => {
                    use pg_sys::TransactionStmtKind::{
                        TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED,
                    };
                    match (*node.cast::<pg_sys::TransactionStmt>()).kind {
                        TRANS_STMT_COMMIT_PREPARED => Some(Self::CommitsPrepared),
                        TRANS_STMT_ROLLBACK_PREPARED => Some(Self::RollsBackPrepared),
                        _ => None,
                    }
                }
                NodeTag::T_CreateExtensionStmt => {
                    let statement = node.cast::<pg_sys::CreateExtensionStmt>();
                    is_ours((*statement).extname)
                }
                NodeTag::T_AlterExtensionStmt => {
                    let statement = node.cast::<pg_sys::AlterExtensionStmt>();
                    is_ours((*statement).extname)
                }
                // Where it is another database's, its worker finds out by itself.
                NodeTag::T_AlterDatabaseSetStmt => {
                    let statement = node.cast::<pg_sys::AlterDatabaseSetStmt>();
                    let name = owned((*(*statement).setstmt).name);
                    let ours = |name: CString| {
                        name.to_bytes().to_ascii_lowercase().starts_with(b"loader_history.")
                    };
                    // RESET ALL names none.
                    name.is_none_or(ours).then_some(Self::ChangesExtension)
                }
                // What else they drop, and whether it takes the extension along, is not worth finding
                // out: the worker looks, and comes back.
                NodeTag::T_DropStmt => {
                    use pg_sys::ObjectType::{OBJECT_EXTENSION, OBJECT_SCHEMA};
                    let kind = (*node.cast::<pg_sys::DropStmt>()).removeType;
                    [OBJECT_EXTENSION, OBJECT_SCHEMA]
                        .contains(&kind)
                        .then_some(Self::ChangesExtension)
                }
                NodeTag::T_DropOwnedStmt => Some(Self::ChangesExtension),
                _ => None,
            }
        }
    }

    /// Has the worker leave a database that the command needs.
    fn before(&self, shared: Shared) {
        if matches!(self, Self::RollsBackPrepared) {
            shared.note_rollback_prepared();
        }
        let (Self::NeedsDatabase(name) | Self::CopiesDatabase { template: name, .. }) = self else {
            return;
        };
        let Some(oid) = database_of_ours(name) else { return };
        // One that no worker serves may be about to get one.
        if !shared.bar(oid) {
            return;
        }
        transaction::lift_bars_at_end();
        let is_served = || {
            shared.database(oid).is_some_and(|database| {
                database.worker.wake();
                matches!(database.serving(), Serving::Starting | Serving::Running)
            })
        };
        for _ in 0..POLLS {
            if !is_served() {
                break;
            }
            wait_for_latch(POLL_INTERVAL);
        }
    }

    /// Has the launcher look again when the command has committed.
    fn after(&self) {
        match self {
            Self::ChangesExtension => transaction::extension_changes(),
            Self::CommitsPrepared => {
                if let Some(database) = shared().and_then(|shared| shared.database(my_database())) {
                    database.commit_prepared_events();
                }
            }
            Self::RollsBackPrepared => {}
            Self::NeedsDatabase(name) | Self::CopiesDatabase { copy: name, .. } => {
                // SAFETY: in the command's transaction, which is to see what it did.
                let oid = unsafe {
                    pg_sys::CommandCounterIncrement();
                    pg_sys::get_database_oid(name.as_ptr(), true)
                };
                transaction::announce_at_commit(oid);
            }
        }
    }
}

/// # Safety
/// `name` is NULL or a C string.
unsafe fn owned(name: *const c_char) -> Option<CString> {
    // SAFETY: as the caller says.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_owned())
}

/// # Safety
/// `name` is NULL or a C string.
unsafe fn is_ours(name: *const c_char) -> Option<Command> {
    // SAFETY: as the caller says.
    unsafe { owned(name) }
        .filter(|name| name.as_c_str() == EXTENSION)
        .map(|_| Command::ChangesExtension)
}

/// The option TEMPLATE of CREATE DATABASE.
///
/// # Safety
/// `options` is a list of `DefElem` as the parser makes it.
unsafe fn template(options: *mut pg_sys::List) -> Option<CString> {
    // SAFETY: as the caller says; places are below the list's length.
    unsafe {
        let count = if options.is_null() { 0 } else { (*options).length };
        (0..count).find_map(|place| {
            let option = pg_sys::list_nth(options, place).cast::<pg_sys::DefElem>();
            let is_template = CStr::from_ptr((*option).defname) == c"template";
            (is_template && is_a((*option).arg, NodeTag::T_String))
                .then(|| owned(pg_sys::defGetString(option)))
                .flatten()
        })
    }
}

/// The database of that name, where the current user could do to it what needs it alone: others must
/// not make a worker leave.
fn database_of_ours(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog lookups in the command's transaction; the tuple is read before it is released.
    unsafe {
        let oid = pg_sys::get_database_oid(name.as_ptr(), true);
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::DATABASEOID.cast_signed(),
            pg_sys::Datum::from(oid),
        );
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
        let allowed =
            pg_sys::superuser() || pg_sys::has_privs_of_role(pg_sys::GetUserId(), (*form).datdba);
        pg_sys::ReleaseSysCache(tuple);
        allowed.then_some(oid)
    }
}
