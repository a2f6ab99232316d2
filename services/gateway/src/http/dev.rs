//! The development issuer: a token for whoever asks.

use auth::{DevIssuer, Identity};
use axum::extract::State;
use chassis::{ApiError, Json};
use contracts::api::{Role, TokenAnswer, TokenRequest};

use super::{Gateway, request::Strict};

/// A token for any subject in any role. There only while the development issuer is on; 404 otherwise.
#[utoipa::path(
    post, path = "/api/dev/token", tag = "development", operation_id = "issueToken",
    request_body = TokenRequest,
    responses((status = 200, description = "A bearer token.", body = TokenAnswer)),
    security(())
)]
pub(super) async fn token(
    State(gateway): State<Gateway>,
    Strict(wish): Strict<TokenRequest>,
) -> Result<Json<TokenAnswer>, ApiError> {
    if wish.role == Role::Service {
        return Err(ApiError::invalid_field("role", "must be customer, operator, drone or base_station"));
    }
    if Identity::new(&wish.subject, wish.role).is_none() {
        let expected = match wish.role {
            Role::Drone => "must be a drone's UUID",
            _ => "must be 1 to 64 letters, digits, '.', '_', '@' or '-'",
        };
        return Err(ApiError::invalid_field("subject", expected));
    }
    let lifetime = chrono::Duration::hours(DevIssuer::USER_TOKEN_HOURS);
    let issued = gateway.issuer.issue(&wish.subject, wish.role, gateway.clock.now(), lifetime);
    let (token, expires_at) = issued.map_err(|error| ApiError::unavailable(&error))?;
    Ok(Json(TokenAnswer { token, expires_at }))
}
