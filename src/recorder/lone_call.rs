//! Whether a call of a function is all that its transaction does: then its commit follows at once.
//!
//! A client learns what such a call has returned when the transaction is committed, and not before. So it need
//! not wait for the disk twice, for the worker's commit and then for its own: what the worker has committed
//! stands before it in the log.

use std::ffi::{CStr, c_int};
use std::sync::LazyLock;

use pgrx::pg_sys::{self, NodeTag};

use crate::lookup::is_postgresqls;
use crate::version::client_has_sent_more;

unsafe extern "C-unwind" {
    // PostgreSQL's libpq.h: the next byte that the client has sent.
    fn pq_peekbyte() -> c_int;
}

/// The message with which a client asks for the end of a transaction, in PostgreSQL's extended protocol.
const SYNC: c_int = b'S' as c_int;

/// Whether `call`, as its caller's plan has it, is all that the current transaction does, and its commit waits
/// for the disk.
pub fn is_lone(call: *mut pg_sys::Node) -> bool {
    // SAFETY: reads the state of the current process. A portal that is active is valid, and has the plan of its
    // query where it runs one that returns rows.
    unsafe {
        // Only a client's own statement returns to the client: others, of background workers too, may go on.
        if pg_sys::MyProcPort.is_null()
            || pg_sys::IsTransactionBlock()
            || pg_sys::GetCurrentTransactionNestLevel() > 1
            || pg_sys::MyXactFlags.cast_unsigned() & pg_sys::XACT_FLAGS_PIPELINING != 0
            || commits_asynchronously()
        {
            return false;
        }
        let Some(portal) = pg_sys::ActivePortal.as_ref() else { return false };
        // Those of cursors and of EXECUTE have names.
        CStr::from_ptr(portal.name).is_empty()
            && portal.queryDesc.as_ref().is_some_and(|query| calls_only(&*query.plannedstmt, call))
            && (!portal.visible || sync_follows())
    }
}

/// Whether a commit does not wait for the disk, as the session is set now.
pub fn commits_asynchronously() -> bool {
    // SAFETY: reads a setting of the session.
    let level = unsafe { pg_sys::synchronous_commit };
    level == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF.cast_signed()
}

/// Whether the client has sent a Sync next. (In the simple protocol, whose portal is not visible, the end of the
/// statement is that of its transaction. In the other one more statements may follow in it.)
fn sync_follows() -> bool {
    // Where PostgreSQL checks its assertions, one says that only between two messages may it be looked.
    static CHECKS_ASSERTIONS: LazyLock<bool> = LazyLock::new(|| {
        // SAFETY: a setting of PostgreSQL's own, whose value is a C string.
        unsafe {
            let value = pg_sys::GetConfigOption(c"debug_assertions".as_ptr(), true, false);
            value.is_null() || CStr::from_ptr(value) != c"off"
        }
    });
    // SAFETY: in a process with a client; what is there is looked at and not taken.
    !*CHECKS_ASSERTIONS && client_has_sent_more() && unsafe { pq_peekbyte() == SYNC }
}

/// Whether a statement does `call` and no more, as SELECT f() or SELECT * FROM f(). Its arguments may call
/// PostgreSQL's own functions alone: others may leave something to be done at the commit.
///
/// # Safety
/// `statement` is a query's plan.
unsafe fn calls_only(statement: &pg_sys::PlannedStmt, call: *mut pg_sys::Node) -> bool {
    // SAFETY: a plan's node is of the type that its tag says; what is not there is NULL.
    unsafe {
        let Some(plan) = statement.planTree.as_ref() else { return false };
        if [plan.lefttree, plan.righttree].iter().any(|child| !child.is_null())
            || [plan.initPlan, plan.qual].iter().any(|list| !list.is_null())
        {
            return false;
        }
        let entry = |node: *mut pg_sys::Node| (*node.cast::<pg_sys::TargetEntry>()).expr.cast();
        let expression: Option<*mut pg_sys::Node> = match plan.type_ {
            NodeTag::T_Result => {
                let result = statement.planTree.cast::<pg_sys::Result>();
                only(plan.targetlist).filter(|_| (*result).resconstantqual.is_null()).map(entry)
            }
            NodeTag::T_FunctionScan => {
                let scan = statement.planTree.cast::<pg_sys::FunctionScan>();
                only(plan.targetlist)
                    .filter(|&column| is(entry(column), NodeTag::T_Var))
                    .and_then(|_| only((*scan).functions))
                    .map(|entry| (*entry.cast::<pg_sys::RangeTblFunction>()).funcexpr)
            }
            _ => None,
        };
        // The very call: one within its arguments is another's.
        expression.is_some_and(|node| {
            node == call
                && is(node, NodeTag::T_FuncExpr)
                && are_plain((*node.cast::<pg_sys::FuncExpr>()).args)
        })
    }
}

/// Whether a node is there, and of the type `tag`.
///
/// # Safety
/// `node` is a node, or NULL.
unsafe fn is(node: *mut pg_sys::Node, tag: NodeTag) -> bool {
    // SAFETY: promised by the caller.
    unsafe { node.as_ref() }.is_some_and(|node| node.type_ == tag)
}

/// Whether arguments are constants and parameters, or what PostgreSQL's own functions make of them.
///
/// # Safety
/// `arguments` is a list of expressions, or NULL.
unsafe fn are_plain(arguments: *mut pg_sys::List) -> bool {
    // SAFETY: promised by the caller; a node is of the type that its tag says.
    unsafe {
        let count = arguments.as_ref().map_or(0, |list| list.length);
        (0..count).all(|place| {
            let node: *mut pg_sys::Node = pg_sys::list_nth(arguments, place).cast();
            let call = node.cast::<pg_sys::FuncExpr>();
            is(node, NodeTag::T_Const)
                || is(node, NodeTag::T_Param)
                || is(node, NodeTag::T_FuncExpr)
                    && is_postgresqls((*call).funcid)
                    && are_plain((*call).args)
        })
    }
}

/// The only entry of a list of nodes.
///
/// # Safety
/// `list` is a list of nodes, or NULL.
unsafe fn only(list: *mut pg_sys::List) -> Option<*mut pg_sys::Node> {
    // SAFETY: promised by the caller.
    unsafe {
        let node = (list.as_ref()?.length == 1).then(|| pg_sys::list_nth(list, 0).cast());
        node.filter(|node: &*mut pg_sys::Node| !node.is_null())
    }
}
