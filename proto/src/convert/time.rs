//! `google.protobuf.Timestamp` and wall time.

use prost_types::Timestamp;
use vl3_core::Wall;

use super::FieldError;

const NANOS: u64 = 1_000_000_000;

pub fn timestamp(wall: Wall) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(wall.0 / NANOS).unwrap_or(i64::MAX),
        nanos: i32::try_from(wall.0 % NANOS).unwrap_or(0),
    }
}

/// Times before the epoch read as the epoch: they are past either way.
pub fn wall(field: &str, time: &Timestamp) -> Result<Wall, FieldError> {
    let nanos = u64::try_from(time.nanos)
        .ok()
        .filter(|nanos| *nanos < NANOS)
        .ok_or_else(|| {
            FieldError::new(
                format!("{field}.nanos"),
                time.nanos.to_string(),
                "0 to 999999999",
            )
        })?;
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    Ok(Wall(seconds.saturating_mul(NANOS).saturating_add(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_and_bad_nanos_name_their_field() {
        let now = Wall(1_700_000_000_000_000_005);
        assert_eq!(wall("t", &timestamp(now)).unwrap(), now);
        let bad = wall(
            "expires",
            &Timestamp {
                seconds: 1,
                nanos: -1,
            },
        )
        .unwrap_err();
        assert_eq!(bad.field, "expires.nanos");
        assert_eq!(
            wall(
                "t",
                &Timestamp {
                    seconds: -5,
                    nanos: 0
                }
            )
            .unwrap(),
            Wall(0)
        );
    }
}
