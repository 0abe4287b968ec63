//! The client half: what to send, what to keep of an answer, when to refresh, what a monitor
//! event means. Pure; the dialling is the caller's.

use core::time::Duration;

use vl3_core::Wall;
use vl3_proto::connection::{
    Connection, ConnectionEvent, ConnectionEventType, Path, PathSegment, State,
};
use vl3_proto::networkservice::NetworkServiceRequest;

use crate::error::Error;
use crate::tokens::Tokens;

/// Stock's pause after a failed refresh.
const REFRESH_MIN: Duration = Duration::from_millis(200);

/// The path of a first Request: index 0, one segment.
pub fn first_path(name: &str, id: &str) -> Path {
    let own = PathSegment {
        name: name.to_owned(),
        id: id.to_owned(),
        ..PathSegment::default()
    };
    Path {
        index: 0,
        path_segments: vec![own],
    }
}

/// Checks an answer against what was asked (`tokens_valid`, `tokens_expired`, `tokens_chained`,
/// `next_token_signed`): our own id and index must be back, and the next segment must be the
/// server's.
pub fn check_answer(
    asked: &NetworkServiceRequest,
    answer: &Connection,
    tokens: &dyn Tokens,
    server_certificate: &[u8],
    now: Wall,
) -> Result<(), Error> {
    crate::path::check(answer)?;
    let asked = asked.connection.clone().unwrap_or_default();
    if answer.id != asked.id {
        return Err(Error::Invalid(format!(
            "answer.id: {:?} is not allowed: the id that was asked for, {:?}",
            answer.id, asked.id
        )));
    }
    let (path, asked) = (
        answer.path.clone().unwrap_or_default(),
        asked.path.unwrap_or_default(),
    );
    if path.index != asked.index {
        return Err(Error::Invalid(format!(
            "answer.path.index: {} is not allowed: the caller's own, {}",
            path.index, asked.index
        )));
    }
    let own = path.index as usize;
    let Some(next) = path.path_segments.get(own + 1) else {
        return Err(Error::Denied(
            "answer.path: the server's segment is missing".to_owned(),
        ));
    };
    let mut audience: Option<Vec<String>> = None;
    for (at, segment) in path.path_segments.iter().enumerate() {
        let field = format!("answer.path.path_segments[{at}].token");
        let claims = tokens
            .claims(&segment.token)
            .ok_or_else(|| Error::Denied(format!("{field}: is no token")))?;
        if claims.expires <= now {
            return Err(Error::Denied(format!("{field}: has expired")));
        }
        if audience.is_some_and(|audience| !audience.contains(&claims.subject)) {
            return Err(Error::Denied(format!(
                "{field}: subject {:?} is not in the audience of the token before it",
                claims.subject
            )));
        }
        audience = Some(claims.audience);
    }
    if !tokens.signed_by(&next.token, server_certificate) {
        return Err(Error::Denied(format!(
            "answer.path.path_segments[{}].token: is not signed by the server",
            own + 1
        )));
    }
    Ok(())
}

/// How long an answer is good, counted from `now`: refresh after that (nsm-wire 3.4). The
/// shortest life on the path times 1/3 for a path of one segment, else 0.2 + 0.2 * index / n.
pub fn refresh_after(path: &Path, now: Wall) -> Result<Duration, Error> {
    let shortest = life(path, now)?;
    let count = path.path_segments.len().max(1);
    let share = if count == 1 {
        1.0 / 3.0
    } else {
        // At most 16 segments: both are exact.
        0.2 + 0.2 * f64::from(path.index) / f64::from(u32::try_from(count).unwrap_or(u32::MAX))
    };
    Ok(shortest.mul_f64(share.clamp(0.0, 1.0)).max(REFRESH_MIN))
}

/// The shortest remaining life of the tokens on a path.
pub fn life(path: &Path, now: Wall) -> Result<Duration, Error> {
    let mut shortest: Option<Duration> = None;
    for (at, segment) in path.path_segments.iter().enumerate() {
        if let Some(expires) = &segment.expires {
            let end = vl3_proto::wall(&format!("path.path_segments[{at}].expires"), expires)?;
            let left = end.remaining(now);
            shortest = Some(shortest.map_or(left, |shortest| shortest.min(left)));
        }
    }
    shortest.ok_or_else(|| Error::Invalid("path: no segment has an expiry".to_owned()))
}

/// A refresh: what the server answered last, with the wanted context in it.
pub fn refresh(last: &Connection) -> NetworkServiceRequest {
    let mut connection = last.clone();
    connection.set_state(State::Up);
    NetworkServiceRequest {
        mechanism_preferences: connection.mechanism.clone().into_iter().collect(),
        connection: Some(connection),
    }
}

/// Starts over at another endpoint: mechanism and endpoint name unset (nsm-wire 3.4).
pub fn reselect(last: &Connection, keep_endpoint: bool) -> NetworkServiceRequest {
    let mut connection = last.clone();
    let preferences = connection.mechanism.take().into_iter().collect();
    if !keep_endpoint {
        connection.network_service_endpoint_name.clear();
    }
    connection.set_state(State::ReselectRequested);
    NetworkServiceRequest {
        connection: Some(connection),
        mechanism_preferences: preferences,
    }
}

/// What a monitor event says about one connection of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// The server holds it: path and context as it sees them.
    Up(Box<Connection>),
    /// The server asks for a Request now.
    RefreshRequested,
    /// Down or deleted: control is lost.
    Lost,
    /// An initial transfer without it: the server does not know it.
    Unknown,
}

/// Reads an event for the connection whose own segment is `(index, id)`: kept only if the
/// event's path holds our id at our index and stands at our index or the next (nsm-wire 3.5).
pub fn follow(event: &ConnectionEvent, index: u32, id: &str) -> Option<Followed> {
    let ours = event.connections.values().find(|connection| {
        connection.path.as_ref().is_some_and(|path| {
            (path.index == index || path.index == index + 1)
                && path
                    .path_segments
                    .get(index as usize)
                    .is_some_and(|segment| segment.id == id)
        })
    });
    match (event.r#type(), ours) {
        (ConnectionEventType::InitialStateTransfer, None) => Some(Followed::Unknown),
        (_, None) => None,
        (ConnectionEventType::Delete, Some(_)) => Some(Followed::Lost),
        (
            ConnectionEventType::InitialStateTransfer | ConnectionEventType::Update,
            Some(connection),
        ) => Some(match connection.state() {
            State::Up => Followed::Up(Box::new(connection.clone())),
            State::RefreshRequested => Followed::RefreshRequested,
            State::Down | State::ReselectRequested => Followed::Lost,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::elements::harness::{NOW, PlainTokens, first_request, plain_token, spiffe};
    use crate::server::tests_support::full_rig;

    #[tokio::test]
    async fn an_answer_of_our_own_server_passes_and_a_changed_one_does_not() {
        let (rig, _) = full_rig();
        let asked = first_request("nsc-0");
        let answer = rig
            .chain
            .request(rig.call("a"), asked.clone())
            .await
            .unwrap();
        let (tokens, router) = (PlainTokens(spiffe("a")), spiffe("router"));
        let check = |answer: &Connection, certificate: &str| {
            check_answer(&asked, answer, &tokens, certificate.as_bytes(), NOW.wall)
        };
        check(&answer, router.as_str()).unwrap();
        assert!(
            matches!(check(&answer, "other"), Err(Error::Denied(text)) if text.contains("not signed"))
        );
        let mut wrong = answer.clone();
        wrong.id = "x".into();
        assert!(
            check(&wrong, router.as_str())
                .unwrap_err()
                .to_string()
                .contains("answer.id")
        );
        let mut stale = answer.clone();
        stale.path.as_mut().unwrap().path_segments[1].token =
            plain_token(&router, &[&spiffe("a")], 1);
        assert!(
            check(&stale, router.as_str())
                .unwrap_err()
                .to_string()
                .contains("has expired")
        );
        let mut cut = answer;
        cut.path.as_mut().unwrap().path_segments.truncate(1);
        assert!(
            check(&cut, router.as_str())
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
    }

    #[test]
    fn the_first_of_two_refreshes_at_a_fifth_of_the_shortest_life() {
        let expires = |seconds: u64| {
            Some(vl3_proto::timestamp(
                NOW.wall + Duration::from_secs(seconds),
            ))
        };
        let mut path = first_path("nsc", "nsc-0");
        path.path_segments[0].expires = expires(600);
        assert_eq!(
            refresh_after(&path, NOW.wall).unwrap(),
            Duration::from_secs(200)
        );
        path.path_segments.push(PathSegment {
            expires: expires(300),
            ..PathSegment::default()
        });
        assert_eq!(
            refresh_after(&path, NOW.wall).unwrap(),
            Duration::from_secs(60)
        );
        path.path_segments[1].expires = expires(0);
        assert_eq!(refresh_after(&path, NOW.wall).unwrap(), REFRESH_MIN);
        assert!(refresh_after(&first_path("a", "b"), NOW.wall).is_err());
    }

    #[test]
    fn events_of_other_connections_say_nothing() {
        let mut view = first_request("nsc-0").connection.unwrap();
        view.path
            .as_mut()
            .unwrap()
            .path_segments
            .push(PathSegment::default());
        view.path.as_mut().unwrap().index = 1;
        view.set_state(State::RefreshRequested);
        let event = |kind: ConnectionEventType, view: Connection| ConnectionEvent {
            r#type: kind.into(),
            connections: BTreeMap::from([("server-id".to_owned(), view)]),
        };
        use ConnectionEventType::{Delete, InitialStateTransfer, Update};
        let update = event(Update, view.clone());
        assert_eq!(
            follow(&update, 0, "nsc-0"),
            Some(Followed::RefreshRequested)
        );
        assert_eq!(follow(&update, 0, "other"), None);
        assert_eq!(
            follow(&event(Delete, view), 0, "nsc-0"),
            Some(Followed::Lost)
        );
        let empty = ConnectionEvent {
            r#type: InitialStateTransfer.into(),
            ..Default::default()
        };
        assert_eq!(follow(&empty, 0, "nsc-0"), Some(Followed::Unknown));
    }

    #[test]
    fn a_reselect_clears_mechanism_and_endpoint() {
        let mut last = first_request("nsc-0").connection.unwrap();
        last.mechanism = Some(Default::default());
        last.network_service_endpoint_name = "red-east".into();
        let request = reselect(&last, false);
        let connection = request.connection.unwrap();
        assert_eq!(connection.state(), State::ReselectRequested);
        assert!(connection.mechanism.is_none());
        assert!(connection.network_service_endpoint_name.is_empty());
        assert_eq!(request.mechanism_preferences.len(), 1);
    }
}
