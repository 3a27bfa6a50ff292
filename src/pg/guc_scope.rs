//! Settings for the extension's own statements, whatever the session has set.

use std::ffi::CStr;

use pgrx::pg_sys;

/// A setting's name, and the value that it gets.
pub type Setting = (&'static CStr, &'static CStr);

/// Sets a setting until the current transaction ends.
pub fn set_local(name: &CStr, value: &CStr) {
    set_option(name, value, pg_sys::GucContext::PGC_SUSET, pg_sys::GucAction::GUC_ACTION_LOCAL);
}

fn set_option(
    name: &CStr,
    value: &CStr,
    context: pg_sys::GucContext::Type,
    action: pg_sys::GucAction::Type,
) {
    // SAFETY: in a transaction; PostgreSQL copies the C strings.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            context,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

/// Settings that are reset when this is dropped, with all that was set meanwhile.
pub struct GucScope(i32);

impl GucScope {
    /// Sets `settings` with the rights of any role.
    pub fn set(settings: &[Setting]) -> Self {
        Self::set_as(pg_sys::GucContext::PGC_USERSET, settings)
    }

    /// Sets `settings` with the rights of a superuser.
    pub fn set_as_superuser(settings: &[Setting]) -> Self {
        Self::set_as(pg_sys::GucContext::PGC_SUSET, settings)
    }

    fn set_as(context: pg_sys::GucContext::Type, settings: &[Setting]) -> Self {
        // SAFETY: in a transaction. An abort sets all back too.
        let level = unsafe { pg_sys::NewGUCNestLevel() };
        for (name, value) in settings {
            set_option(name, value, context, pg_sys::GucAction::GUC_ACTION_SAVE);
        }
        Self(level)
    }
}

impl Drop for GucScope {
    fn drop(&mut self) {
        // While an error unwinds, the abort that follows sets them back.
        if !std::thread::panicking() {
            // SAFETY: what set() began, in the same (sub)transaction.
            unsafe { pg_sys::AtEOXact_GUC(false, self.0) };
        }
    }
}
