//! The development issuer: signs tokens with an Ed25519 key that it made itself.

use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chrono::Duration;
use contracts::{Timestamp, api::Role};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use crate::{AUDIENCE, Claims, DEV_ISSUER, TokenError, Verifier};

/// An Ed25519 key pair in PKCS#8 (DER), as it is kept in a file.
#[derive(Clone)]
pub struct SigningKey {
    pkcs8: Vec<u8>,
}

impl SigningKey {
    /// A fresh key.
    pub fn generate() -> Result<Self, TokenError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).map_err(|_| TokenError::BadKey)?;
        Ok(Self { pkcs8: document.as_ref().to_vec() })
    }

    /// The key that [`Self::as_bytes`] gave.
    pub fn from_bytes(pkcs8: Vec<u8>) -> Result<Self, TokenError> {
        Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| TokenError::BadKey)?;
        Ok(Self { pkcs8 })
    }

    /// The key as bytes, secret.
    pub fn as_bytes(&self) -> &[u8] {
        &self.pkcs8
    }

    fn public_key(&self) -> Result<Vec<u8>, TokenError> {
        let pair = Ed25519KeyPair::from_pkcs8(&self.pkcs8).map_err(|_| TokenError::BadKey)?;
        Ok(pair.public_key().as_ref().to_vec())
    }
}

/// Issues tokens to whoever asks: for development and the demo only.
#[derive(Clone)]
pub struct DevIssuer {
    key: EncodingKey,
    verifier: Arc<Verifier>,
}

impl DevIssuer {
    /// How long a user's token lives, in hours.
    pub const USER_TOKEN_HOURS: i64 = 12;

    /// An issuer that signs with `key`.
    pub fn new(key: &SigningKey) -> Result<Self, TokenError> {
        let verifier = Arc::new(Verifier::new(&key.public_key()?));
        Ok(Self { key: EncodingKey::from_ed_der(key.as_bytes()), verifier })
    }

    /// The verifier of this issuer's tokens.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.verifier.clone()
    }

    /// A token for `subject` in `role`, valid from `now` for `lifetime`; and when it ends.
    pub fn issue(
        &self,
        subject: &str,
        role: Role,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<(String, Timestamp), TokenError> {
        let expires_at = now + lifetime;
        let claims = Claims {
            sub: subject.to_owned(),
            role,
            iss: DEV_ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: now.timestamp(),
            exp: expires_at.timestamp(),
        };
        let token =
            jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.key).map_err(|_| TokenError::BadKey)?;
        Ok((token, expires_at))
    }
}
