//! Who is calling: the bearer token of a request, verified.

use std::sync::Arc;

use ::auth::{Action, Identity, TokenError, Verified, Verifier, allow};
use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderMap, header, request::Parts},
};
use contracts::{Clock, Timestamp};

use crate::ApiError;

/// What a router's state must hold, so that [`Caller`] can be extracted.
#[derive(Clone)]
pub struct Authenticator {
    verifier: Arc<Verifier>,
    clock: Arc<dyn Clock>,
}

impl Authenticator {
    /// Verifies tokens as `verifier` does, by `clock`.
    pub fn new(verifier: Arc<Verifier>, clock: Arc<dyn Clock>) -> Self {
        Self { verifier, clock }
    }

    /// The authenticator of a node.
    pub fn of(node: &crate::Node) -> Self {
        Self::new(node.verifier.clone(), node.clock.clone())
    }

    fn identify(&self, headers: &HeaderMap) -> Result<Caller, TokenError> {
        let value = headers.get(header::AUTHORIZATION).ok_or(TokenError::Missing)?;
        let text = value.to_str().map_err(|_| TokenError::Invalid)?;
        let (scheme, token) = text.split_once(' ').ok_or(TokenError::Invalid)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(TokenError::Invalid);
        }
        let Verified { identity, ends_at } = self.verifier.verify(token.trim(), self.clock.now())?;
        Ok(Caller { identity, token: token.trim().to_owned(), ends_at })
    }
}

/// A verified caller. Extracting it refuses a request without a good token with 401.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// The token, to pass on.
    pub token: String,
    /// From then on the token is refused: an answer that goes on for long ends then.
    pub ends_at: Timestamp,
}

impl Caller {
    /// 403 unless the caller may do `action`. For an object with an owner use [`Self::sees`].
    pub fn may(&self, action: &Action<'_>) -> Result<(), ApiError> {
        allow(&self.identity, action).map_err(ApiError::from)
    }

    /// 404 unless the caller may do `action`: the answer for a foreign object is that for an absent one.
    pub fn sees(&self, action: &Action<'_>) -> Result<(), ApiError> {
        allow(&self.identity, action).map_err(|_| ApiError::not_found())
    }
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Authenticator: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Authenticator::from_ref(state).identify(&parts.headers)?)
    }
}

/// A caller that is one of our services: the only one that may say commands and internal queries.
#[derive(Debug, Clone)]
pub struct ServiceCaller;

impl<S> FromRequestParts<S> for ServiceCaller
where
    S: Send + Sync,
    Authenticator: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        caller.may(&Action::Command)?;
        Ok(Self)
    }
}
