//! Batches of access-log lines of some 170 bytes.

use flumen_event::{Batch, BatchBuilder, BatchError};

const PATHS: [&str; 6] = [
    "/api/v1/orders/",
    "/static/js/app.",
    "/api/v1/customers/",
    "/search?q=",
    "/images/products/",
    "/checkout/step/",
];
const STATUSES: [u16; 6] = [200, 200, 200, 304, 404, 503];
const AGENTS: [&str; 3] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Firefox/128.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X) Safari/605.1.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64) Chrome/131.0.0.0",
];

/// As many lines as have these bytes together; other seeds give other lines.
pub fn batch(bytes: usize, seed: u64) -> Result<Batch, BatchError> {
    let mut builder = BatchBuilder::with_capacity(bytes / 160, bytes);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (mut written, mut seconds) = (0, seed % 86_400);
    while written < bytes {
        seconds += u64::from(next(20) == 0);
        let (h, m, s) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        let path = PATHS.get(next(PATHS.len() as u64) as usize).copied().unwrap_or_default();
        let agent = AGENTS.get(next(AGENTS.len() as u64) as usize).copied().unwrap_or_default();
        let status = STATUSES.get(next(6) as usize).copied().unwrap_or(200);
        let line = format!(
            "10.{}.{}.{} - - [15/Jan/2026:{h:02}:{m:02}:{s:02} +0000] \"GET {path}{} HTTP/1.1\" {} {} \"-\" \"{agent}\" {}",
            next(4),
            next(256),
            next(256),
            next(100_000),
            status,
            next(50_000),
            next(3_000),
        );
        written += line.len();
        builder.push(1, written as u64, 1_700_000_000_000_000_000, line.as_bytes());
    }
    builder.finish(Vec::new())
}
