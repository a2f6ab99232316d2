//! Verifies bearer tokens, and remembers the ones it has verified.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use contracts::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use lru::LruCache;

use crate::{AUDIENCE, Claims, DEV_ISSUER, Identity};

/// Verified tokens remembered: the callers of a busy minute; about 500 bytes each.
const REMEMBERED_TOKENS: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// How far the clocks of issuer and verifier may differ, in seconds.
const LEEWAY_S: i64 = 30;

/// Why a token is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("a bearer token is needed")]
    Missing,
    /// Not signed by our issuer, not for us, or not a token at all.
    #[error("the bearer token is not valid")]
    Invalid,
    /// It was good once.
    #[error("the bearer token has expired")]
    Expired,
    /// The issuer's key cannot sign.
    #[error("the signing key is not a usable Ed25519 key")]
    BadKey,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who is calling.
    pub identity: Identity,
    /// From then on the token is refused, and what was begun with it should end: its `exp`, and the leeway for clocks.
    pub ends_at: Timestamp,
}

/// Verifies the tokens of one issuer.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
    /// By token. A signature costs 50 us to verify, a look-up nearly nothing.
    verified: Mutex<LruCache<String, Verified>>,
}

impl Verifier {
    /// A verifier for an Ed25519 public key (32 bytes).
    pub fn new(public_key: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[DEV_ISSUER]);
        // Expiry is checked below, by the clock that is passed in.
        validation.validate_exp = false;
        Self {
            key: DecodingKey::from_ed_der(public_key),
            validation,
            verified: Mutex::new(LruCache::new(REMEMBERED_TOKENS)),
        }
    }

    /// The caller that a token stands for, at `now`, and until when it does.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, TokenError> {
        if let Some(known) = self.remembered(token) {
            return still_good(known, now);
        }
        let claims =
            jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).map_err(|_| TokenError::Invalid)?.claims;
        let identity = Identity::new(&claims.sub, claims.role).ok_or(TokenError::Invalid)?;
        let good = still_good(Verified { identity, ends_at: end_of(claims.exp) }, now)?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.put(token.to_owned(), good.clone());
        Ok(good)
    }

    fn remembered(&self, token: &str) -> Option<Verified> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(token).cloned()
    }
}

fn still_good(verified: Verified, now: Timestamp) -> Result<Verified, TokenError> {
    if now < verified.ends_at { Ok(verified) } else { Err(TokenError::Expired) }
}

/// When a token with that `exp` is refused for the first time. One that no calendar has never ends, or ended long ago.
fn end_of(exp: i64) -> Timestamp {
    let end_s = exp.saturating_add(LEEWAY_S).max(0);
    Timestamp::from_timestamp(end_s, 0).unwrap_or(Timestamp::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use chrono::Duration;
    use contracts::api::Role;

    use super::*;
    use crate::{DevIssuer, SigningKey};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::seconds(seconds)
    }

    #[test]
    fn a_token_stands_for_its_subject_until_it_ends() {
        let issuer = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
        let (token, ends) = issuer.issue("alice", Role::Customer, at(0), Duration::seconds(60)).unwrap();
        assert_eq!(ends, at(60));
        let verifier = issuer.verifier();
        for _ in 0..2 {
            let verified = verifier.verify(&token, at(1)).unwrap();
            assert_eq!(verified.identity, Identity::Customer("alice".parse().unwrap()));
            assert_eq!(verified.ends_at, at(60 + LEEWAY_S));
        }
        assert!(verifier.verify(&token, at(59 + LEEWAY_S)).is_ok());
        assert_eq!(verifier.verify(&token, at(60 + LEEWAY_S)), Err(TokenError::Expired));
    }

    #[test]
    fn an_end_beyond_all_calendars_is_never_or_long_ago() {
        assert_eq!((end_of(i64::MAX), end_of(i64::MIN)), (Timestamp::MAX_UTC, at(0)));
    }

    #[test]
    fn another_issuers_or_a_changed_token_is_refused() {
        let ours = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
        let theirs = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
        let (token, _) = theirs.issue("alice", Role::Operator, at(0), Duration::hours(1)).unwrap();
        assert_eq!(ours.verifier().verify(&token, at(1)), Err(TokenError::Invalid));
        let (mut token, _) = ours.issue("alice", Role::Customer, at(0), Duration::hours(1)).unwrap();
        token.truncate(token.len() - 2);
        assert_eq!(ours.verifier().verify(&token, at(1)), Err(TokenError::Invalid));
        assert_eq!(ours.verifier().verify("not.a.token", at(1)), Err(TokenError::Invalid));
    }

    #[test]
    fn a_subject_must_be_a_legal_id_of_its_role() {
        let issuer = DevIssuer::new(&SigningKey::generate().unwrap()).unwrap();
        let (token, _) = issuer.issue("not-a-uuid", Role::Drone, at(0), Duration::hours(1)).unwrap();
        assert_eq!(issuer.verifier().verify(&token, at(1)), Err(TokenError::Invalid));
    }
}
