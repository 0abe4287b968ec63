//! NSM path tokens: compact JWS, ES256 (RFC 7515, RFC 7518 section 3.4), claims `sub`, `exp`
//! and `aud`, the last always an array.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use vl3_core::Wall;
use vl3_core::ids::SpiffeId;

use crate::{Identity, certificate};

/// Longer tokens are refused before anything is decoded.
const TOKEN_MAX: usize = 8 * 1024;

/// The claims of a token. Decoding proves nothing; [`verify`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub subject: SpiffeId,
    /// Whole seconds.
    pub expires: Wall,
    /// Empty when there was no TLS peer.
    pub audience: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("is no token: {0}")]
    Malformed(String),
    #[error("is signed with {0}; only ES256 is accepted")]
    WrongAlgorithm(String),
    #[error("is not signed by the peer's certificate")]
    BadSignature,
    #[error("could not be signed")]
    SigningFailed,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    alg: &'a str,
    #[serde(default)]
    typ: &'a str,
}

#[derive(Serialize, Deserialize)]
struct WireClaims {
    sub: String,
    exp: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aud: Vec<String>,
}

/// Makes a token of at most `lifetime`, ending with the own SVID at the latest. The returned
/// expiry is what travels beside the token.
pub fn issue(
    identity: &Identity,
    audience: Option<&SpiffeId>,
    lifetime: Duration,
    now: Wall,
) -> Result<(String, Wall), TokenError> {
    let expires = (now + lifetime).min(identity.not_after);
    let claims = WireClaims {
        sub: identity.id.to_string(),
        exp: i64::try_from(expires.unix_secs()).unwrap_or(i64::MAX),
        aud: audience.map(SpiffeId::to_string).into_iter().collect(),
    };
    let encode = |value: &[u8]| URL_SAFE_NO_PAD.encode(value);
    let json = |error: serde_json::Error| TokenError::Malformed(error.to_string());
    let header = serde_json::to_vec(&Header {
        alg: "ES256",
        typ: "JWT",
    })
    .map_err(json)?;
    let claims = serde_json::to_vec(&claims).map_err(json)?;
    let mut token = format!("{}.{}", encode(&header), encode(&claims));
    let signature = identity
        .sign(token.as_bytes())
        .ok_or(TokenError::SigningFailed)?;
    token.push('.');
    token.push_str(&encode(&signature));
    Ok((token, expires))
}

/// The claims without any proof.
pub fn decode(token: &str) -> Result<Claims, TokenError> {
    let malformed = |reason: &str| TokenError::Malformed(reason.to_owned());
    if token.len() > TOKEN_MAX {
        return Err(malformed("longer than 8 KiB"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("must have three parts"));
    };
    let bytes = |part: &str| {
        URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|error| TokenError::Malformed(error.to_string()))
    };
    let header = bytes(header)?;
    let header: serde_json::Value = serde_json::from_slice(&header)
        .map_err(|error| TokenError::Malformed(error.to_string()))?;
    let algorithm = header
        .get("alg")
        .and_then(serde_json::Value::as_str)
        .unwrap_or("nothing");
    if algorithm != "ES256" {
        return Err(TokenError::WrongAlgorithm(algorithm.to_owned()));
    }
    let claims: WireClaims = serde_json::from_slice(&bytes(claims)?)
        .map_err(|error| TokenError::Malformed(error.to_string()))?;
    let subject =
        SpiffeId::new(&claims.sub).map_err(|error| TokenError::Malformed(error.to_string()))?;
    let expires = Wall::from_unix_secs(u64::try_from(claims.exp).unwrap_or(0));
    Ok(Claims {
        subject,
        expires,
        audience: claims.aud,
    })
}

/// Decodes and checks the signature with the certificate's key. Expiry is the caller's
/// business (it has the clock).
pub fn verify(token: &str, certificate: &CertificateDer<'_>) -> Result<Claims, TokenError> {
    let claims = decode(token)?;
    let leaf = certificate::leaf(certificate).map_err(TokenError::Malformed)?;
    if !leaf.is_p256 {
        return Err(TokenError::BadSignature);
    }
    let (message, signature) = token
        .rsplit_once('.')
        .ok_or_else(|| TokenError::Malformed("has no signature".to_owned()))?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| TokenError::BadSignature)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &leaf.public_key)
        .verify(message.as_bytes(), &signature)
        .map_err(|_| TokenError::BadSignature)?;
    Ok(claims)
}

/// RFC 3339 in UTC with nanoseconds, as `nsm-client-token-expires` carries it.
pub fn format_rfc3339(wall: Wall) -> String {
    let (seconds, nanos) = (wall.unix_secs(), wall.0 % 1_000_000_000);
    let (year, month, day) = civil_of_days(seconds / 86_400);
    let second = seconds % 86_400;
    let mut text = format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    if nanos != 0 {
        let digits = format!("{nanos:09}");
        // Writing to a String does not fail.
        let _infallible = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// RFC 3339, any offset; `None` for anything else and for years before 1970.
pub fn parse_rfc3339(text: &str) -> Option<Wall> {
    let bytes = text.as_bytes();
    if bytes.len() > 64 || !text.is_ascii() || bytes.len() < 20 {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| bytes[*at] != *byte)
        || !matches!(bytes[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year < 1970
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut rest = &text[19..];
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(fraction.len());
        let digits = &fraction[..end.min(9)];
        if end == 0 {
            return None;
        }
        nanos = digits.parse::<u64>().ok()? * 10_u64.pow(u32::try_from(9 - digits.len()).ok()?);
        rest = &fraction[end..];
    }
    let offset_seconds: i64 = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = match rest.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = rest[1..].split_once(':')?;
            let (hours, minutes) = (hours.parse::<i64>().ok()?, minutes.parse::<i64>().ok()?);
            if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
                return None;
            }
            sign * (hours * 3600 + minutes * 60)
        }
    };
    let local = days_of_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = i64::try_from(local).ok()?.checked_sub(offset_seconds)?;
    let seconds = u64::try_from(seconds).ok()?;
    Some(Wall(
        seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?,
    ))
}

/// Gregorian date of a day since 1970-01-01 (era arithmetic over 400-year cycles).
fn civil_of_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Days since 1970-01-01 of a Gregorian date from 1970 on.
fn days_of_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let era = year / 400;
    let year_of_era = year % 400;
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    const NOW: Wall = Wall::from_unix_secs(1_800_000_000);

    fn identity(path: &str) -> Identity {
        let authority = Authority::create("east.test", NOW).unwrap();
        authority
            .identity(path, Duration::from_secs(3600), NOW)
            .unwrap()
    }

    #[test]
    fn a_token_verifies_with_its_makers_certificate_and_no_other() {
        let (maker, other) = (identity("workload/a"), identity("workload/a"));
        let audience = SpiffeId::new("spiffe://east.test/vl3/router/r").unwrap();
        let (token, expires) =
            issue(&maker, Some(&audience), Duration::from_secs(600), NOW).unwrap();
        assert_eq!(expires, NOW + Duration::from_secs(600));
        let claims = verify(&token, &maker.chain[0]).unwrap();
        assert_eq!(claims.subject, maker.id);
        assert_eq!(claims.audience, [audience.to_string()]);
        assert_eq!(
            verify(&token, &other.chain[0]),
            Err(TokenError::BadSignature)
        );
    }

    #[test]
    fn a_token_never_outlives_its_makers_svid() {
        let maker = identity("workload/a");
        let (_, expires) = issue(&maker, None, Duration::from_secs(7200), NOW).unwrap();
        assert_eq!(expires, maker.not_after);
    }

    #[test]
    fn the_audience_is_always_an_array() {
        let maker = identity("workload/a");
        let (token, _) = issue(&maker, Some(&maker.id), Duration::from_secs(1), NOW).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert!(claims.contains("\"aud\":[\"spiffe://"), "{claims}");
    }

    #[test]
    fn other_algorithms_and_rubbish_are_refused() {
        let none = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
            URL_SAFE_NO_PAD.encode("{}")
        );
        assert_eq!(
            decode(&none),
            Err(TokenError::WrongAlgorithm("none".to_owned()))
        );
        for bad in ["", "a", "a.b.c", "a.b.c.d", &"x".repeat(TOKEN_MAX + 1)] {
            assert!(decode(bad).is_err(), "{bad:.20}");
        }
    }

    #[test]
    fn timestamps_round_trip_with_nanoseconds_and_offsets() {
        let wall = Wall(1_700_000_000_000_000_005);
        assert_eq!(format_rfc3339(wall), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(parse_rfc3339(&format_rfc3339(wall)), Some(wall));
        assert_eq!(
            parse_rfc3339("2023-11-14T23:13:20.000000005+01:00"),
            Some(wall),
            "Go writes local offsets"
        );
        assert_eq!(
            format_rfc3339(Wall::from_unix_secs(951_782_400)),
            "2000-02-29T00:00:00Z"
        );
        for days in (0..200_000).step_by(37) {
            let (year, month, day) = civil_of_days(days);
            assert_eq!(days_of_civil(year, month, day), days);
        }
        for bad in [
            "",
            "2023-11-14",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20",
            "2023-11-14T22:13:20.Z",
            "1969-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
