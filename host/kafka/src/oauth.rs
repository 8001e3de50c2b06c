//! The token of SASL OAUTHBEARER: from a file that something else keeps fresh.
//!
//! A JWT's `exp` and `sub` claims are used as they stand (the broker checks the token, not we). Another kind of
//! token is asked for again every [`limits::TOKEN_LIFE`].

use rdkafka::client::OAuthToken;
use serde_json::Value;

use crate::limits;
use crate::settings::Settings;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("token_file {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Nothing in it.
    #[error("token_file {0} is empty")]
    Empty(String),
    /// It is past its time.
    #[error("the token in {path} expired {seconds} s ago: whatever writes that file does not keep it fresh")]
    Expired {
        /// Which.
        path: String,
        /// Since when.
        seconds: i64,
    },
}

/// Reads the token.
pub fn token(settings: &Settings) -> Result<OAuthToken, TokenError> {
    let path = settings.token_file.clone().unwrap_or_default();
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(&path).map_err(|source| TokenError::Read { path: shown.clone(), source })?;
    let token = text.trim().to_owned();
    if token.is_empty() {
        return Err(TokenError::Empty(shown));
    }
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let claims = claims(&token);
    let claim = |name: &str| claims.as_ref().and_then(|claims| claims.get(name)).cloned();
    let expires_ms = match claim("exp").and_then(|exp| exp.as_f64()) {
        Some(seconds) => (seconds * 1_000.0) as i64,
        None => now_ms + i64::try_from(limits::TOKEN_LIFE.as_millis()).unwrap_or(i64::MAX),
    };
    if expires_ms <= now_ms {
        return Err(TokenError::Expired { path: shown, seconds: (now_ms - expires_ms) / 1_000 });
    }
    let principal =
        claim("sub").and_then(|sub| sub.as_str().map(str::to_owned)).unwrap_or_else(|| "flumen".into());
    Ok(OAuthToken { token, principal_name: principal, lifetime_ms: expires_ms })
}

/// The claims of a JWT; `None` for a token of another kind.
fn claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&decode_base64(payload)?).ok()
}

/// Base64 in either alphabet, with or without its padding.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn claims_of_a_jwt_are_read() {
        // {"alg":"none"}.{"sub":"alice","exp":4102444800}.
        let claims = claims("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.").unwrap();
        assert_eq!((claims["sub"].as_str(), claims["exp"].as_i64()), (Some("alice"), Some(4_102_444_800)));
    }

    proptest! {
        #[test]
        fn any_text_is_claims_or_none(text in ".*") {
            claims(&text);
        }
    }
}
