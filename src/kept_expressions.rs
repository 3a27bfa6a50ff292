//! The conditions of a table's constraints, triggers and indexes, prepared once a session.
//!
//! PostgreSQL reads those of the table that a statement writes from the catalog's text, and prepares them,
//! anew for each statement: for a single row that is two fifths of all that a start and an end take. For
//! statements that a session keeps, they are kept with them. What is kept is found by the text or the tree
//! that it was made of, so a condition that is changed is prepared anew.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use pgrx::pg_sys::NodeTag;
use pgrx::{PgMemoryContexts, pg_guard, pg_sys};

use crate::lookup::is_postgresqls;
use crate::version::{check_states, has_virtual_columns, is_checked};

/// How many conditions are kept. The history has twelve that differ; a table that is changed over and over must not fill
/// the memory.
const MOST: usize = 64;

/// What kind of condition a text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A CHECK.
    Check,
    /// A trigger's WHEN.
    When,
}

/// What a condition was made of.
enum Source {
    /// The text of a condition of this kind.
    Text(Kind, Box<[u8]>),
    /// The tree of a predicate, first of this index.
    Predicate(pg_sys::Oid, *mut pg_sys::List),
}

/// A condition that was prepared.
struct Kept {
    source: Source,
    /// NULL where it can't be kept: PostgreSQL prepares it for each statement.
    state: *mut pg_sys::ExprState,
}

thread_local! {
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
    /// Whether the statement that starts next is one that the session keeps.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

static mut NEXT_HOOK: pg_sys::ExecutorStart_hook_type = None;

/// Listens to statements. Called once, when the library is loaded.
pub fn install() {
    // SAFETY: the library is loaded by a process's only thread.
    unsafe {
        NEXT_HOOK = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(on_start);
    }
}

/// Says that the statement that starts next is one that the session keeps. (Where it does not start, the one
/// after it is taken for it, which changes nothing but its speed.)
pub fn expect_statement() {
    EXPECTED.set(true);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    let expected = EXPECTED.replace(false);
    // SAFETY: PostgreSQL passes a query that is valid during the call, and what is passed on is what came.
    // NEXT_HOOK was set when the library was loaded. Once the query is started, its state is there until it
    // ends.
    unsafe {
        // Only the raw hook needs a guard; standard_ExecutorStart() comes with pgrx's.
        match NEXT_HOOK {
            Some(next) => pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| next(query, flags)),
            None => pg_sys::standard_ExecutorStart(query, flags),
        }
        if expected
            && !(*query).estate.is_null()
            && let Some(event) = only_writes(&*(*query).plannedstmt)
        {
            let memory = (*(*query).estate).es_query_cxt;
            PgMemoryContexts::For(memory)
                .switch_to(|_| lend((*(*query).estate).es_opened_result_relations, event));
        }
    }
}

/// The event of triggers that a statement fires which inserts or updates rows of one table, and no more: with
/// ON CONFLICT, indexes are opened otherwise. `None` for others.
///
/// # Safety
/// `statement` is a query's plan.
unsafe fn only_writes(statement: &pg_sys::PlannedStmt) -> Option<u32> {
    // SAFETY: a plan's node is of the type that its tag says.
    unsafe {
        let plan = statement.planTree.as_ref()?;
        if plan.type_ != NodeTag::T_ModifyTable || statement.hasModifyingCTE {
            return None;
        }
        let plan = statement.planTree.cast::<pg_sys::ModifyTable>();
        if (*plan).onConflictAction != pg_sys::OnConflictAction::ONCONFLICT_NONE {
            return None;
        }
        match (*plan).operation {
            pg_sys::CmdType::CMD_INSERT => Some(pg_sys::TRIGGER_TYPE_INSERT),
            pg_sys::CmdType::CMD_UPDATE => Some(pg_sys::TRIGGER_TYPE_UPDATE),
            _ => None,
        }
    }
}

/// Lends what is kept to the tables that a statement writes.
///
/// # Safety
/// `tables` is the list of tables that a started query has opened to write, and the current memory context
/// lives as long as that query.
unsafe fn lend(tables: *mut pg_sys::List, event: u32) {
    // SAFETY: the list holds tables that are open until the query ends, each with the description that
    // PostgreSQL has just made for it; what is not there is NULL.
    unsafe {
        let count = if tables.is_null() { 0 } else { (*tables).length };
        for place in 0..count {
            let table = pg_sys::list_nth(tables, place).cast::<pg_sys::ResultRelInfo>();
            let constraints = (*(*(*table).ri_RelationDesc).rd_att).constr;
            // A virtual column's expression stands for it in conditions.
            if constraints.is_null() || has_virtual_columns(&*constraints) {
                continue;
            }
            lend_checks(&*constraints, check_states(&mut *table));
            lend_whens(&*table, event);
            lend_predicates(table);
        }
    }
}

/// Fills the list of a table's prepared CHECKs, where all of them can be kept.
///
/// # Safety
/// `constraints` are those of a relation that is open, `states` belongs to a query that writes it, and the
/// current memory context lives as long as that query.
unsafe fn lend_checks(constraints: &pg_sys::TupleConstr, states: &mut *mut *mut pg_sys::ExprState) {
    if constraints.num_check == 0 || !states.is_null() {
        return;
    }
    // SAFETY: a relation has as many CHECKs as it says, whose text is a C string.
    let kept: Option<Vec<_>> = unsafe {
        std::slice::from_raw_parts(constraints.check, usize::from(constraints.num_check))
            .iter()
            .map(|check| match is_checked(check) {
                true => from_text(check.ccbin, Kind::Check),
                false => Some(ptr::null_mut()),
            })
            .collect()
    };
    let Some(kept) = kept else { return };
    // SAFETY: what is allocated has room for as many pointers as are copied.
    unsafe {
        let room = pg_sys::palloc(size_of_val(kept.as_slice())).cast();
        ptr::copy_nonoverlapping(kept.as_ptr(), room, kept.len());
        *states = room;
    }
}

/// Fills in the prepared WHENs of the triggers that a statement of `event` fires: preparing those of others
/// might fail.
///
/// # Safety
/// `table` belongs to a query that writes it.
unsafe fn lend_whens(table: &pg_sys::ResultRelInfo, event: u32) {
    if table.ri_TrigDesc.is_null() || table.ri_TrigWhenExprs.is_null() {
        return;
    }
    // SAFETY: the query has a list of its table's triggers, and room for as many conditions; a trigger's
    // condition is a C string, or NULL.
    unsafe {
        let count = usize::try_from((*table.ri_TrigDesc).numtriggers).unwrap_or_default();
        for place in 0..count {
            let trigger = &*(*table.ri_TrigDesc).triggers.add(place);
            let state = table.ri_TrigWhenExprs.add(place);
            if !trigger.tgqual.is_null() && (*state).is_null() && fires(trigger, event) {
                *state = from_text(trigger.tgqual, Kind::When).unwrap_or(ptr::null_mut());
            }
        }
    }
}

/// Whether a trigger is one for each row that `event` fires in this session, whatever columns it is of.
fn fires(trigger: &pg_sys::Trigger, event: u32) -> bool {
    // SAFETY: reads a setting of the session.
    let role = unsafe { pg_sys::SessionReplicationRole };
    let is_replica = role == pg_sys::SESSION_REPLICATION_ROLE_REPLICA.cast_signed();
    let in_role =
        if is_replica { pg_sys::TRIGGER_FIRES_ON_REPLICA } else { pg_sys::TRIGGER_FIRES_ON_ORIGIN };
    let kind = u32::from(trigger.tgtype.cast_unsigned());
    [in_role, pg_sys::TRIGGER_FIRES_ALWAYS].contains(&trigger.tgenabled.cast_unsigned())
        && kind & pg_sys::TRIGGER_TYPE_ROW != 0
        && kind & event != 0
        && trigger.tgnattr == 0
}

/// Opens a table's indexes, as the query would, and fills in the prepared predicates of those that have one.
///
/// # Safety
/// `table` belongs to a query that writes it, and the current memory context lives as long as that query.
unsafe fn lend_predicates(table: *mut pg_sys::ResultRelInfo) {
    // SAFETY: the query opens the indexes itself when it writes its first row, unless they are open, and
    // closes them when it ends; it has as many descriptions of indexes as it says.
    unsafe {
        if !(*(*(*table).ri_RelationDesc).rd_rel).relhasindex
            || !(*table).ri_IndexRelationDescs.is_null()
        {
            return;
        }
        pg_sys::ExecOpenIndices(table, false);
        for place in 0..usize::try_from((*table).ri_NumIndices).unwrap_or_default() {
            let index = *(*table).ri_IndexRelationInfo.add(place);
            if !(*index).ii_Predicate.is_null() && (*index).ii_PredicateState.is_null() {
                let oid = (**(*table).ri_IndexRelationDescs.add(place)).rd_id;
                (*index).ii_PredicateState = from_predicate(oid, (*index).ii_Predicate);
            }
        }
    }
}

/// The condition that is written as `text`; `None` where it can't be kept.
///
/// # Safety
/// `text` is a C string, of a condition of this kind.
unsafe fn from_text(text: *const c_char, kind: Kind) -> Option<*mut pg_sys::ExprState> {
    // SAFETY: promised by the caller.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    let is_same = |kept: &Kept| matches!(&kept.source, Source::Text(of, text) if *of == kind && **text == *bytes);
    let state = find(is_same).unwrap_or_else(|| {
        // SAFETY: the text is that of a condition, as PostgreSQL writes them.
        keep(|| unsafe {
            let tree = pg_sys::stringToNode(text).cast::<pg_sys::Node>();
            let state = match kind {
                Kind::Check => prepare(tree, |tree| pg_sys::ExecInitExpr(tree, ptr::null_mut())),
                Kind::When => {
                    // As of PostgreSQL's TriggerEnabled().
                    for (row, place) in [
                        (pg_sys::PRS2_OLD_VARNO, pg_sys::INNER_VAR),
                        (pg_sys::PRS2_NEW_VARNO, pg_sys::OUTER_VAR),
                    ] {
                        pg_sys::ChangeVarNodes(tree, row.cast_signed(), place, 0);
                    }
                    prepare_all(pg_sys::make_ands_implicit(tree.cast()))
                }
            };
            (Source::Text(kind, bytes.into()), state)
        })
    });
    Some(state).filter(|state| !state.is_null())
}

/// The prepared predicate; NULL where it can't be kept.
///
/// # Safety
/// `predicate` is that of `index`.
unsafe fn from_predicate(
    index: pg_sys::Oid,
    predicate: *mut pg_sys::List,
) -> *mut pg_sys::ExprState {
    let find_among = |those_of_it: bool| {
        find(|kept| match kept.source {
            Source::Predicate(of, tree) if (of == index) == those_of_it => {
                // SAFETY: both are trees; what is kept stays.
                unsafe { pg_sys::equal(tree.cast(), predicate.cast()) }
            }
            _ => false,
        })
    };
    // The index's number is quicker to compare than the trees of all. Indexes that have the same share one.
    let found = find_among(true).or_else(|| find_among(false));
    found.unwrap_or_else(|| {
        // SAFETY: a copy of a tree, of which the one copy is kept to be compared with, and never changed.
        keep(|| unsafe {
            let copy = || pg_sys::copyObjectImpl(predicate.cast::<c_void>()).cast::<pg_sys::List>();
            (Source::Predicate(index, copy()), prepare_all(copy()))
        })
    })
}

/// The state of the condition that is the one looked for, where there is one.
fn find(is_same: impl Fn(&Kept) -> bool) -> Option<*mut pg_sys::ExprState> {
    KEPT.with_borrow(|all| all.iter().find(|kept| is_same(kept)).map(|kept| kept.state))
}

/// The state of a condition that `make` makes and that is kept from then on; NULL where there is no room or it
/// can't be kept.
fn keep(make: impl FnOnce() -> (Source, *mut pg_sys::ExprState)) -> *mut pg_sys::ExprState {
    if KEPT.with_borrow(Vec::len) >= MOST {
        return ptr::null_mut();
    }
    // SAFETY: memory that goes with the statement, unless nothing fails; only what is kept is allocated there.
    let (source, state) = unsafe {
        let memory = pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"loader_history condition".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
        );
        let made = PgMemoryContexts::For(memory).switch_to(|_| make());
        pg_sys::MemoryContextSetParent(memory, pg_sys::TopMemoryContext);
        made
    };
    let kept = Kept { source, state };
    KEPT.with_borrow_mut(|all| all.push(kept));
    state
}

/// Prepares conditions that all are to be met; NULL where they can't be kept.
///
/// # Safety
/// As of [`prepare`].
unsafe fn prepare_all(conditions: *mut pg_sys::List) -> *mut pg_sys::ExprState {
    // SAFETY: promised by the caller; a list stays one when it is planned.
    unsafe {
        prepare(conditions.cast(), |planned| pg_sys::ExecInitQual(planned.cast(), ptr::null_mut()))
    }
}

/// Prepares a condition as PostgreSQL does; NULL where it can't be kept.
///
/// # Safety
/// `tree` is a condition on rows of a table, and not used elsewhere; the current memory context lives as long
/// as what `init` makes of it is used.
unsafe fn prepare(
    tree: *mut pg_sys::Node,
    init: impl FnOnce(*mut pg_sys::Expr) -> *mut pg_sys::ExprState,
) -> *mut pg_sys::ExprState {
    // SAFETY: promised by the caller.
    unsafe {
        if is_keepable(tree) {
            init(pg_sys::expression_planner(tree.cast()))
        } else {
            ptr::null_mut()
        }
    }
}

/// Whether an expression stays as it is prepared, and keeps nothing of the statement that it is first used in.
/// What is made of plain columns, constants and PostgreSQL's own functions does. Others may not: functions are
/// replaced, domains are changed, and a whole row is described in the statement's memory.
///
/// # Safety
/// `node` is an expression, as it is stored in the catalog, or NULL.
unsafe fn is_keepable(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node is of the type that its tag says; what is not there is NULL.
    unsafe {
        let Some(tag) = node.as_ref().map(|node| node.type_) else { return true };
        match tag {
            NodeTag::T_Const | NodeTag::T_CaseTestExpr => true,
            NodeTag::T_Var => (*node.cast::<pg_sys::Var>()).varattno > 0,
            NodeTag::T_List => {
                let list = node.cast::<pg_sys::List>();
                (0..(*list).length).all(|place| is_keepable(pg_sys::list_nth(list, place).cast()))
            }
            NodeTag::T_FuncExpr => {
                let call = node.cast::<pg_sys::FuncExpr>();
                is_postgresqls((*call).funcid) && is_keepable((*call).args.cast())
            }
            NodeTag::T_OpExpr | NodeTag::T_DistinctExpr | NodeTag::T_NullIfExpr => {
                let call = node.cast::<pg_sys::OpExpr>();
                pg_sys::set_opfuncid(call);
                is_postgresqls((*call).opfuncid) && is_keepable((*call).args.cast())
            }
            NodeTag::T_ScalarArrayOpExpr => {
                let call = node.cast::<pg_sys::ScalarArrayOpExpr>();
                pg_sys::set_sa_opfuncid(call);
                is_postgresqls((*call).opfuncid) && is_keepable((*call).args.cast())
            }
            NodeTag::T_BoolExpr => is_keepable((*node.cast::<pg_sys::BoolExpr>()).args.cast()),
            NodeTag::T_BooleanTest => is_keepable((*node.cast::<pg_sys::BooleanTest>()).arg.cast()),
            NodeTag::T_NullTest => {
                let test = node.cast::<pg_sys::NullTest>();
                !(*test).argisrow && is_keepable((*test).arg.cast())
            }
            NodeTag::T_RelabelType => is_keepable((*node.cast::<pg_sys::RelabelType>()).arg.cast()),
            NodeTag::T_CoalesceExpr => {
                is_keepable((*node.cast::<pg_sys::CoalesceExpr>()).args.cast())
            }
            NodeTag::T_CaseExpr => {
                let case = node.cast::<pg_sys::CaseExpr>();
                is_keepable((*case).arg.cast())
                    && is_keepable((*case).args.cast())
                    && is_keepable((*case).defresult.cast())
            }
            NodeTag::T_CaseWhen => {
                let when = node.cast::<pg_sys::CaseWhen>();
                is_keepable((*when).expr.cast()) && is_keepable((*when).result.cast())
            }
            NodeTag::T_ArrayExpr => {
                is_keepable((*node.cast::<pg_sys::ArrayExpr>()).elements.cast())
            }
            NodeTag::T_ArrayCoerceExpr => {
                let coercion = node.cast::<pg_sys::ArrayCoerceExpr>();
                is_keepable((*coercion).arg.cast()) && is_keepable((*coercion).elemexpr.cast())
            }
            _ => false,
        }
    }
}
