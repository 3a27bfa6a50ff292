//! Captures the error that aborts a transaction, until the transaction's end is reported to the
//! worker.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use pgrx::{PgLogLevel, pg_guard, pg_sys};

use crate::shmem::Text;

thread_local! {
    /// "23505: duplicate key value …", or its beginning.
    static TEXT: RefCell<Text> = const { RefCell::new(Text::EMPTY) };
    /// Whether the current transaction has started executions, so that its errors are captured.
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
}

static mut NEXT_HOOK: pg_sys::emit_log_hook_type = None;

/// Installs the hook. Called once, by the postmaster.
pub fn install() {
    // SAFETY: runs in the postmaster, which has one thread, while it preloads libraries.
    unsafe {
        NEXT_HOOK = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(on_log);
    }
}

/// Captures the errors of the current transaction, which has started executions.
pub fn begin() {
    IS_WATCHED.set(true);
}

/// Captures no more errors: the transaction has ended.
pub fn end() {
    IS_WATCHED.set(false);
    clear();
}

pub fn clear() {
    TEXT.with(|text| {
        if let Ok(mut text) = text.try_borrow_mut() {
            text.clear();
        }
    });
}

/// Calls `use_text` with the error, or with an empty text if there was none or it was not logged.
pub fn with<R>(use_text: impl FnOnce(&[u8]) -> R) -> R {
    TEXT.with(|text| match text.try_borrow() {
        Ok(text) => use_text(text.bytes()),
        Err(_) => use_text(&[]),
    })
}

/// Called by PostgreSQL for each message for the server log. Errors that are caught are not logged.
#[pg_guard]
unsafe extern "C-unwind" fn on_log(error: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL passes a message that is valid during the call, whose text is a C string
    // or NULL; the state of the transaction is that of the process, read at any time; NEXT_HOOK was
    // set by the postmaster, before any other process was there.
    unsafe {
        if let Some(message) = error.as_ref()
            && IS_WATCHED.get()
            && (message.elevel >= PgLogLevel::ERROR as i32 || is_lost_connection(message))
            && !message.message.is_null()
            // Later errors in an aborted transaction block are consequences of the first.
            && !pg_sys::IsAbortedTransactionBlockState()
        {
            capture(message.sqlerrcode, CStr::from_ptr(message.message));
        }
        if let Some(next) = NEXT_HOOK {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| next(error));
        }
    }
}

/// Whether the message is of class 08, connection exception: the connection to the client is lost,
/// which the server does not log as an error.
const fn is_lost_connection(message: &pg_sys::ErrorData) -> bool {
    let class = message.sqlerrcode & 0xfff;
    // MAKE_SQLSTATE() of PostgreSQL's elog.h: six bits a character, the first lowest, '0' being 0.
    class == 8 << 6
}

fn capture(sqlstate: i32, message: &CStr) {
    let code = |place| b'0' + u8::try_from((sqlstate >> (6 * place)) & 0x3f).unwrap_or_default();
    TEXT.with(|text| {
        if let Ok(mut text) = text.try_borrow_mut() {
            text.clear();
            text.push((0..5).map(code).chain(*b": "));
            text.push(message.to_bytes().iter().copied());
        }
    });
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    /// "22012", as MAKE_SQLSTATE() packs it.
    const DIVISION_BY_ZERO: i32 = 2 | 2 << 6 | 1 << 18 | 2 << 24;

    fn captured(message: &str) -> String {
        capture(DIVISION_BY_ZERO, &CString::new(message).expect("no NUL"));
        with(|text| str::from_utf8(text).expect("whole characters").to_owned())
    }

    #[test]
    fn an_error_is_kept_until_it_is_cleared() {
        assert_eq!(captured("division by zero"), "22012: division by zero");
        assert_eq!(captured("x"), "22012: x");
        clear();
        assert!(with(<[u8]>::is_empty));
    }
}
