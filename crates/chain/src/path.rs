//! The path of a connection: who passed it on, each with an id and a token (nsm-wire 3.1).

use vl3_proto::connection::{Connection, Path, PathSegment};

use crate::error::Error;

/// Longer paths are refused: the longest stock path has eight segments.
pub const SEGMENTS_MAX: usize = 16;
/// Names and ids.
pub const NAME_MAX: usize = 253;

/// What the caller must find again in its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerView {
    pub index: u32,
    pub id: String,
}

/// Refuses what no honest peer sends, before anything is built on it.
pub fn check(connection: &Connection) -> Result<(), Error> {
    let Some(path) = &connection.path else {
        return Ok(());
    };
    let count = path.path_segments.len();
    if count > SEGMENTS_MAX {
        return Err(Error::Invalid(format!(
            "path.path_segments: {count} is not allowed: at most {SEGMENTS_MAX}"
        )));
    }
    for (at, segment) in path.path_segments.iter().enumerate() {
        for (what, value) in [("name", &segment.name), ("id", &segment.id)] {
            if value.len() > NAME_MAX {
                return Err(Error::Invalid(format!(
                    "path.path_segments[{at}].{what}: {} bytes are not allowed: at most {NAME_MAX}",
                    value.len()
                )));
            }
        }
    }
    Ok(())
}

/// Moves the connection into this component's own segment; `new_id` makes a fresh UUIDv4.
/// Returns the caller's view, for [`restore`].
pub fn advance(
    connection: &mut Connection,
    name: &str,
    new_id: impl Fn() -> String,
) -> Result<CallerView, Error> {
    check(connection)?;
    let path = connection.path.get_or_insert_with(Path::default);
    if path.path_segments.is_empty() {
        path.index = 0;
        if connection.id.is_empty() {
            connection.id = new_id();
        }
        path.path_segments
            .push(segment(name, connection.id.clone()));
        return Ok(CallerView {
            index: 0,
            id: connection.id.clone(),
        });
    }
    let index = path.index as usize;
    let Some(current) = path.path_segments.get(index) else {
        return Err(Error::Invalid(format!(
            "path.index: {index} is not allowed: below the {} segments of the path",
            path.path_segments.len()
        )));
    };
    if current.name == name {
        connection.id = current.id.clone();
        return Ok(CallerView {
            index: path.index,
            id: connection.id.clone(),
        });
    }
    if current.id != connection.id {
        return Err(Error::Invalid(format!(
            "path.path_segments[{index}].id: {:?} is not allowed: the connection's id {:?}",
            current.id, connection.id
        )));
    }
    let view = CallerView {
        index: path.index,
        id: connection.id.clone(),
    };
    match path.path_segments.get_mut(index + 1) {
        Some(next) if next.name == name && !next.id.is_empty() => {}
        Some(next) => {
            name.clone_into(&mut next.name);
            next.id = new_id();
        }
        None => path.path_segments.push(segment(name, new_id())),
    }
    path.index += 1;
    connection.id = path.path_segments[index + 1].id.clone();
    Ok(view)
}

/// Gives the answer the caller's own id and index back.
pub fn restore(connection: &mut Connection, view: &CallerView) {
    if let Some(path) = &mut connection.path {
        path.index = view.index;
    }
    connection.id.clone_from(&view.id);
}

/// Cuts what stands after the own segment: for a component that did not pass the call on.
pub fn trim(connection: &mut Connection) {
    if let Some(path) = &mut connection.path {
        path.path_segments.truncate(path.index as usize + 1);
    }
}

/// The own segment and the one before it.
pub fn segments(connection: &Connection) -> Result<(Option<&PathSegment>, &PathSegment), Error> {
    let missing = || Error::Invalid("path: must hold this component's segment".to_owned());
    let path = connection.path.as_ref().ok_or_else(missing)?;
    let index = path.index as usize;
    let own = path.path_segments.get(index).ok_or_else(missing)?;
    let previous = index
        .checked_sub(1)
        .and_then(|before| path.path_segments.get(before));
    Ok((previous, own))
}

fn segment(name: &str, id: String) -> PathSegment {
    PathSegment {
        name: name.to_owned(),
        id,
        ..PathSegment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_client() -> Connection {
        Connection {
            id: "nsc-0".into(),
            path: Some(Path {
                index: 0,
                path_segments: vec![segment("nsc", "nsc-0".into())],
            }),
            ..Connection::default()
        }
    }

    #[test]
    fn a_first_request_gets_a_segment_and_the_caller_its_own_id_back() {
        let mut connection = from_client();
        let view = advance(&mut connection, "router", || "fresh".into()).unwrap();
        assert_eq!(connection.id, "fresh");
        assert_eq!(connection.path.as_ref().unwrap().index, 1);
        restore(&mut connection, &view);
        assert_eq!(
            (connection.id.as_str(), connection.path.unwrap().index),
            ("nsc-0", 0)
        );
    }

    #[test]
    fn a_refresh_keeps_the_id_of_the_own_segment() {
        let mut connection = from_client();
        let view = advance(&mut connection, "router", || "first".into()).unwrap();
        restore(&mut connection, &view);
        advance(&mut connection, "router", || "second".into()).unwrap();
        assert_eq!(connection.id, "first");
    }

    #[test]
    fn another_component_in_the_next_segment_is_replaced() {
        let mut connection = from_client();
        let path = connection.path.as_mut().unwrap();
        path.path_segments.push(segment("old-router", "old".into()));
        path.path_segments.push(segment("further", "x".into()));
        advance(&mut connection, "router", || "new".into()).unwrap();
        assert_eq!(connection.id, "new");
        assert_eq!(connection.path.as_ref().unwrap().path_segments.len(), 3);
        trim(&mut connection);
        assert_eq!(connection.path.unwrap().path_segments.len(), 2);
    }

    #[test]
    fn an_empty_path_starts_with_the_component_itself() {
        let mut connection = Connection::default();
        advance(&mut connection, "router", || "id".into()).unwrap();
        assert_eq!(connection.id, "id");
        assert_eq!(connection.path.unwrap().path_segments[0].name, "router");
    }

    #[test]
    fn impossible_paths_are_refused_by_field() {
        let mut beyond = from_client();
        beyond.path.as_mut().unwrap().index = 7;
        let mut foreign = from_client();
        foreign.id = "other".into();
        let mut long = from_client();
        long.path.as_mut().unwrap().path_segments = vec![segment("a", "b".into()); 17];
        for (mut connection, field) in [
            (beyond, "path.index"),
            (foreign, "path_segments[0].id"),
            (long, "path_segments: 17"),
        ] {
            let error = advance(&mut connection, "router", String::new).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
