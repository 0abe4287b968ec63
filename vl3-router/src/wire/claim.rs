//! On whose behalf an intermediary asks: the earlier segments of the path.
//!
//! A path token is signed by its writer's SVID, which does not travel with it: only the direct
//! peer's can be verified here (the chain has done so). An intermediary that the document lists
//! (nsmgr, forwarder, proxy) is trusted to have verified the segment before its own in the same
//! way, one listed intermediary after the other. So the claim is the first subject, seen from
//! our end, that is no intermediary; nobody vouches for what stands before it.

use nsm_chain::Error;
use vl3_core::ids::SpiffeId;
use vl3_identity::token;
use vl3_proto::connection::Path;

/// The workload behind a listed intermediary; unset where the peer speaks for itself.
pub(crate) fn behind(
    path: Option<&Path>,
    peer: &SpiffeId,
    intermediary: impl Fn(&SpiffeId) -> bool,
) -> Result<Option<SpiffeId>, Error> {
    if !intermediary(peer) {
        return Ok(None);
    }
    // Our own segment stands at the index, the peer's before it.
    let before = path.map_or(&[][..], |path| {
        let peers = (path.index as usize).saturating_sub(1);
        path.path_segments.get(..peers).unwrap_or_default()
    });
    for (at, segment) in before.iter().enumerate().rev() {
        let field = || format!("path.path_segments[{at}].token");
        let claims = token::decode(&segment.token)
            .map_err(|error| Error::Denied(format!("{}: {error}", field())))?;
        if intermediary(&claims.subject) {
            continue;
        }
        if at > 0 {
            return Err(Error::Denied(format!(
                "{}: {} is no intermediary that the network document lists, so nobody vouches for the {at} segments before it",
                field(),
                claims.subject
            )));
        }
        return Ok(Some(claims.subject));
    }
    Err(Error::Denied(format!(
        "path: {peer} is an intermediary, and no workload's segment stands before it"
    )))
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use vl3_core::Wall;
    use vl3_identity::authority::Authority;
    use vl3_proto::connection::PathSegment;

    use super::*;

    const NOW: Wall = Wall::from_unix_secs(1_800_000_000);

    fn id(path: &str) -> SpiffeId {
        SpiffeId::new(&format!("spiffe://east.test/{path}")).unwrap()
    }

    /// A path in which those stand one after the other, and we at its end.
    fn path(writers: &[&str]) -> Path {
        let authority = Authority::create("east.test", NOW).unwrap();
        let day = Duration::from_secs(86_400);
        let mut path_segments: Vec<_> = writers
            .iter()
            .map(|writer| {
                let maker = authority.identity(writer, day, NOW).unwrap();
                let (token, _) = token::issue(&maker, None, day, NOW).unwrap();
                PathSegment {
                    token,
                    ..PathSegment::default()
                }
            })
            .collect();
        path_segments.push(PathSegment::default());
        Path {
            index: u32::try_from(writers.len()).unwrap(),
            path_segments,
        }
    }

    /// What the last writer, our peer, gets; `nsm/*` are listed.
    fn claimed(writers: &[&str]) -> Result<Option<SpiffeId>, String> {
        let peer = id(writers.last().unwrap());
        behind(Some(&path(writers)), &peer, |id| {
            id.path().starts_with("/nsm/")
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_workload_behind_listed_intermediaries_is_itself() {
        let alpha = Ok(Some(id("workload/alpha")));
        assert_eq!(claimed(&["workload/alpha", "nsm/manager"]), alpha);
        assert_eq!(
            claimed(&["workload/alpha", "nsm/manager", "nsm/forwarder"]),
            alpha
        );
    }

    #[test]
    fn a_peer_that_is_not_listed_speaks_for_itself_whatever_stands_before_it() {
        assert_eq!(claimed(&["workload/alpha"]), Ok(None));
        assert_eq!(claimed(&["workload/alpha", "workload/mallory"]), Ok(None));
    }

    #[test]
    fn a_first_token_that_nobody_vouches_for_wins_nothing() {
        let error = claimed(&["workload/alpha", "workload/mallory", "nsm/manager"]).unwrap_err();
        assert!(
            error.contains("path_segments[1]") && error.contains("workload/mallory"),
            "{error}"
        );
    }

    #[test]
    fn an_intermediary_is_no_workload() {
        for writers in [&["nsm/manager"][..], &["nsm/manager", "nsm/forwarder"]] {
            let error = claimed(writers).unwrap_err();
            assert!(error.contains("no workload's segment"), "{error}");
        }
        let mut path = path(&["workload/alpha", "nsm/manager"]);
        path.path_segments[0].token = "garbage".to_owned();
        let error = behind(Some(&path), &id("nsm/manager"), |_| true).unwrap_err();
        assert!(error.to_string().contains("path_segments[0].token"));
    }
}
