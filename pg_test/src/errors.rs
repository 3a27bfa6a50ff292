//! What an error of the server says.

use postgres::error::DbError;

/// A result whose error a test looks at.
pub trait HasError {
    /// The server's error.
    ///
    /// # Panics
    /// When there is none, or when it lacks SQLSTATE `sqlstate`.
    fn error(self, sqlstate: &str) -> DbError;
}

impl<T> HasError for Result<T, postgres::Error> {
    #[track_caller]
    fn error(self, sqlstate: &str) -> DbError {
        let Err(error) = self else { panic!("expected SQLSTATE {sqlstate}, and it succeeded") };
        let error = error.as_db_error().expect("an error of the server").clone();
        assert_eq!(error.code().code(), sqlstate, "{error:?}");
        error
    }
}

/// The SQLSTATE of a result, "00000" where it succeeded.
pub fn sqlstate<T>(result: &Result<T, postgres::Error>) -> String {
    match result {
        Ok(_) => "00000".to_owned(),
        Err(error) => {
            error.code().map_or_else(|| format!("{error}"), |code| code.code().to_owned())
        }
    }
}
