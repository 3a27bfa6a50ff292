//! Files that pages load. They are part of the program.

use std::sync::LazyLock;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path below /assets/, type and content of each.
const FILES: [(&str, &str, &str); 6] = [
    ("console.css", STYLE, include_str!("../assets/console.css")),
    ("console.js", SCRIPT, include_str!("../assets/console.js")),
    ("htmx.min.js", SCRIPT, include_str!("../assets/vendor/htmx.min.js")),
    ("idiomorph-ext.min.js", SCRIPT, include_str!("../assets/vendor/idiomorph-ext.min.js")),
    ("uPlot.iife.min.js", SCRIPT, include_str!("../assets/vendor/uPlot.iife.min.js")),
    ("uPlot.min.css", STYLE, include_str!("../assets/vendor/uPlot.min.css")),
];

/// Part of each file's address, so that browsers keep it until there is another: of what the files hold, since two
/// builds of the same version may differ.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        // FNV-1a: nobody but the console's own builds could bring two contents of the same hash about.
        let bytes = FILES.iter().flat_map(|(name, _, content)| name.bytes().chain(content.bytes()));
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:016x}")
    });
    &VERSION
}

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
        router.route(&format!("/assets/{}/{name}", version()), get(serve))
    })
}
