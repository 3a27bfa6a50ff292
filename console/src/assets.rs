//! Files that pages load. They are part of the program.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path below /assets/, type and content of each.
const FILES: [(&str, &str, &str); 7] = [
    ("console.css", STYLE, include_str!("../assets/console.css")),
    ("console.js", SCRIPT, include_str!("../assets/console.js")),
    ("htmx.min.js", SCRIPT, include_str!("../assets/vendor/htmx.min.js")),
    ("htmx-ext-sse.min.js", SCRIPT, include_str!("../assets/vendor/htmx-ext-sse.min.js")),
    ("idiomorph-ext.min.js", SCRIPT, include_str!("../assets/vendor/idiomorph-ext.min.js")),
    ("uPlot.iife.min.js", SCRIPT, include_str!("../assets/vendor/uPlot.iife.min.js")),
    ("uPlot.min.css", STYLE, include_str!("../assets/vendor/uPlot.min.css")),
];

/// Part of each file's address, so that browsers keep it until there is another version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Serves the files.
pub fn router() -> Router {
    FILES.iter().fold(Router::new(), |router, &(name, kind, content)| {
        let serve = move || async move {
            let cached = [
                (header::CONTENT_TYPE, kind),
                (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
            ];
            (cached, content).into_response()
        };
        router.route(&format!("/assets/{VERSION}/{name}"), get(serve))
    })
}
