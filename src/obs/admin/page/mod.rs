//! The page for people: three files that are part of the program, so that it works offline and needs no build step.
//! What they show comes from `/api/v1/events` alone; nothing here may come from elsewhere.

/// What every answer bears. The policy lets a page load its own files and talk to its own address, and nothing else: no
/// script or style that stands in the page itself, no frame, no form.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/ui/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/ui/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/ui/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// Content type and text of a file of the page.
pub(super) fn file(path: &str) -> Option<(&'static str, &'static str)> {
    let known = FILES.iter().find(|(known, ..)| *known == path)?;
    Some((known.1, known.2))
}
