//! The ProcessUtility hook: statements that need a database without a worker, or that change
//! whether it has the extension.

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use pgrx::pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
use pgrx::pg_sys::{self, NodeTag};
use pgrx::{PgList, is_a, pg_guard};

use super::xact_callbacks;
use crate::model::EXTENSION;
use crate::pg::latch::wait_in_session;
use crate::pg::syscache;
use crate::pg::xact::my_database;
use crate::shmem::workers;

/// The hook of another library, or PostgreSQL's own function.
static mut NEXT_HOOK: pg_sys::ProcessUtility_hook_type = None;

/// How often a statement that needs a database checks whether the worker has left it, and how many
/// times at most. PostgreSQL itself then waits another five seconds for other sessions to leave.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const POLLS: u32 = 500;

/// Installs the hook. Called once, by the postmaster.
pub fn install() {
    // SAFETY: runs in the postmaster, which has one thread, while it preloads libraries.
    unsafe {
        NEXT_HOOK = pg_sys::ProcessUtility_hook.or(Some(standard_process_utility));
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Call {
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
}

unsafe extern "C-unwind" {
    // PostgreSQL's tcop/utility.h. pgrx's own is guarded, and an error must not pass through Rust
    // frames here.
    #[link_name = "standard_ProcessUtility"]
    fn standard_process_utility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Called by PostgreSQL for each utility statement. Unguarded: for a statement that does not
/// concern the extension this is a call of the next hook, with nothing to unwind.
#[allow(clippy::too_many_arguments)] // PostgreSQL's
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let call = Call {
        statement,
        query,
        read_only_tree,
        context,
        parameters,
        environment,
        destination,
        completion,
    };
    // SAFETY: PostgreSQL passes a utility statement that is valid during the call.
    unsafe {
        if concerns_extension((*statement).utilityStmt) {
            process_guarded(call);
        } else {
            call.next();
        }
    }
}

impl Call {
    /// # Safety
    /// The call is PostgreSQL's. No frame that must be unwound is between an error and a guard.
    unsafe fn next(self) {
        // SAFETY: the arguments are passed on unchanged; NEXT_HOOK was set by the postmaster,
        // before any other process existed.
        unsafe {
            if let Some(next) = NEXT_HOOK {
                next(
                    self.statement,
                    self.query,
                    self.read_only_tree,
                    self.context,
                    self.parameters,
                    self.environment,
                    self.destination,
                    self.completion,
                );
            }
        }
    }
}

/// Whether a statement may be one of [`Command`]. Allocates nothing.
///
/// # Safety
/// `node` is a utility statement.
unsafe fn concerns_extension(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node's tag says which struct it is.
    unsafe {
        match (*node).type_ {
            NodeTag::T_TransactionStmt => {
                let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                [TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED].contains(&kind)
            }
            NodeTag::T_RenameStmt => {
                let kind = (*node.cast::<pg_sys::RenameStmt>()).renameType;
                kind == pg_sys::ObjectType::OBJECT_DATABASE
            }
            NodeTag::T_DropStmt => {
                use pg_sys::ObjectType::{OBJECT_EXTENSION, OBJECT_SCHEMA};
                let kind = (*node.cast::<pg_sys::DropStmt>()).removeType;
                [OBJECT_EXTENSION, OBJECT_SCHEMA].contains(&kind)
            }
            tag => matches!(
                tag,
                NodeTag::T_DropdbStmt
                    | NodeTag::T_CreatedbStmt
                    | NodeTag::T_AlterDatabaseStmt
                    | NodeTag::T_AlterDatabaseSetStmt
                    | NodeTag::T_CreateExtensionStmt
                    | NodeTag::T_AlterExtensionStmt
                    | NodeTag::T_DropOwnedStmt
            ),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn process_guarded(call: Call) {
    // SAFETY: the statement is valid during the call. It may be freed by the command (COMMIT does),
    // so it is read before.
    unsafe {
        let command = Command::of((*call.statement).utilityStmt);
        if let Some(command) = &command {
            command.before();
        }
        pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| call.next());
        if let Some(command) = command {
            command.after();
        }
    }
}

/// A statement that concerns workers.
enum Command {
    /// It needs a database without other sessions.
    NeedsDatabase(CString),
    /// It creates a database as a copy of another one, which it needs without other sessions.
    CopiesDatabase { template: CString, copy: CString },
    /// It commits a prepared transaction.
    CommitsPrepared,
    /// It rolls back a prepared transaction.
    RollsBackPrepared,
    /// It may create, alter or drop the extension, or change a setting of the database.
    ChangesExtension,
}

impl Command {
    /// # Safety
    /// `node` is a utility statement for which [`concerns_extension`] is true.
    unsafe fn of(node: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: a node's tag says which struct it is; strings of the parser are C strings or
        // NULL.
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
                    Some(Self::NeedsDatabase(owned((*statement).subname)?))
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
                    let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                    Some(if kind == TRANS_STMT_COMMIT_PREPARED {
                        Self::CommitsPrepared
                    } else {
                        Self::RollsBackPrepared
                    })
                }
                NodeTag::T_CreateExtensionStmt => {
                    let statement = node.cast::<pg_sys::CreateExtensionStmt>();
                    changes_extension(owned((*statement).extname))
                }
                NodeTag::T_AlterExtensionStmt => {
                    let statement = node.cast::<pg_sys::AlterExtensionStmt>();
                    changes_extension(owned((*statement).extname))
                }
                // The worker of another database checks its settings once a minute.
                NodeTag::T_AlterDatabaseSetStmt => {
                    let statement = node.cast::<pg_sys::AlterDatabaseSetStmt>();
                    let name = owned((*(*statement).setstmt).name);
                    let is_ours = |name: CString| {
                        name.to_bytes().to_ascii_lowercase().starts_with(b"loader_history.")
                    };
                    // RESET ALL names none.
                    name.is_none_or(is_ours).then_some(Self::ChangesExtension)
                }
                // Which objects they drop is not examined: the worker checks whether the extension
                // still exists.
                NodeTag::T_DropStmt | NodeTag::T_DropOwnedStmt => Some(Self::ChangesExtension),
                _ => None,
            }
        }
    }

    /// Makes the worker leave a database that the command needs.
    fn before(&self) {
        if matches!(self, Self::RollsBackPrepared) {
            workers::set_rolled_back_prepared();
        }
        let (Self::NeedsDatabase(name) | Self::CopiesDatabase { template: name, .. }) = self else {
            return;
        };
        let Some(database) = database_to_close(name) else { return };
        if !workers::close(database) {
            return;
        }
        xact_callbacks::reopen_databases_at_end();
        for _ in 0..POLLS {
            if !workers::block(database, |worker| worker.is_served()) {
                break;
            }
            workers::wake(database);
            wait_in_session(POLL_INTERVAL);
        }
    }

    /// Notifies the launcher or the worker when the command has committed.
    fn after(&self) {
        match self {
            Self::ChangesExtension => xact_callbacks::check_extension_at_commit(),
            Self::CommitsPrepared => workers::prepared_committed(my_database()),
            Self::RollsBackPrepared => {}
            Self::NeedsDatabase(name) | Self::CopiesDatabase { copy: name, .. } => {
                // SAFETY: in the command's transaction, which is to see what it did.
                let oid = unsafe {
                    pg_sys::CommandCounterIncrement();
                    pg_sys::get_database_oid(name.as_ptr(), true)
                };
                xact_callbacks::announce_at_commit(oid);
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

fn changes_extension(name: Option<CString>) -> Option<Command> {
    name.filter(|name| name.as_c_str() == EXTENSION).map(|_| Command::ChangesExtension)
}

/// The option TEMPLATE of CREATE DATABASE.
///
/// # Safety
/// `options` is a list of `DefElem` as the parser makes it.
unsafe fn template(options: *mut pg_sys::List) -> Option<CString> {
    // SAFETY: as the caller says.
    unsafe {
        PgList::<pg_sys::DefElem>::from_pg(options).iter_ptr().find_map(|option| {
            let is_template = CStr::from_ptr((*option).defname) == c"template";
            (is_template && is_a((*option).arg, NodeTag::T_String))
                .then(|| owned(pg_sys::defGetString(option)))
                .flatten()
        })
    }
}

/// The database of that name, if the current user owns it: another role must not make a worker
/// leave.
fn database_to_close(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog lookups in the command's transaction; the cache is that of pg_database, by
    // OID.
    unsafe {
        let oid = pg_sys::get_database_oid(name.as_ptr(), true);
        let row: pg_sys::FormData_pg_database =
            syscache::row(pg_sys::SysCacheIdentifier::DATABASEOID, oid)?;
        let allowed =
            pg_sys::superuser() || pg_sys::has_privs_of_role(pg_sys::GetUserId(), row.datdba);
        allowed.then_some(oid)
    }
}
