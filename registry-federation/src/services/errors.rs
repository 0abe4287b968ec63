//! The one map from refusals to gRPC codes.

use tonic::Status;
use vl3_core::allocator;
use vl3_core::registry::{Refusal, Reply};

pub(super) fn status(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid { .. } | Refusal::UnknownNetwork { .. } => Status::invalid_argument(text),
        Refusal::Denied { .. } => Status::permission_denied(text),
        Refusal::Limit { .. } => Status::resource_exhausted(text),
        Refusal::Unavailable { .. } => Status::unavailable(text),
        Refusal::Lease(refusal) => match refusal {
            allocator::Refusal::Invalid { .. }
            | allocator::Refusal::GenerationTooHigh { .. }
            | allocator::Refusal::Collision { .. } => Status::invalid_argument(text),
            allocator::Refusal::HeldByOther { .. } => Status::permission_denied(text),
            allocator::Refusal::Fenced { .. } => Status::failed_precondition(text),
            allocator::Refusal::AcquireAgain { .. } => Status::not_found(text),
            allocator::Refusal::Exhausted { .. } => Status::resource_exhausted(text),
            allocator::Refusal::ReadoptOnly { .. } => Status::unavailable(text),
        },
    }
}

/// A machine that answers another question than was asked is broken.
pub(super) fn unexpected(reply: &Reply) -> Status {
    tracing::error!(
        ?reply,
        "the registry's machine gave an answer of another kind"
    );
    Status::internal("an answer of another kind")
}
