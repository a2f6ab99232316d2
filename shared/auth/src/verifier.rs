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

/// Verifies the tokens of one issuer.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
    /// Token -> caller and end. A signature costs 50 us to verify, a look-up nearly nothing.
    verified: Mutex<LruCache<String, (Identity, i64)>>,
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

    /// The caller that a token stands for, at `now`.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Identity, TokenError> {
        if let Some((identity, exp)) = self.remembered(token) {
            return check_expiry(exp, now).map(|()| identity);
        }
        let claims =
            jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).map_err(|_| TokenError::Invalid)?.claims;
        check_expiry(claims.exp, now)?;
        let identity = Identity::new(&claims.sub, claims.role).ok_or(TokenError::Invalid)?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.put(token.to_owned(), (identity.clone(), claims.exp));
        Ok(identity)
    }

    fn remembered(&self, token: &str) -> Option<(Identity, i64)> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(token).cloned()
    }
}

fn check_expiry(exp: i64, now: Timestamp) -> Result<(), TokenError> {
    if now.timestamp() > exp + LEEWAY_S { Err(TokenError::Expired) } else { Ok(()) }
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
            let identity = verifier.verify(&token, at(1)).unwrap();
            assert_eq!(identity, Identity::Customer("alice".parse().unwrap()));
        }
        assert_eq!(verifier.verify(&token, at(200)), Err(TokenError::Expired));
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
