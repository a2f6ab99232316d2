//! The one error that HTTP handlers answer: problem+json (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::api::{FieldError, Problem};
use messaging::outbox::chain;

/// An error on its way to a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError(pub Problem);

impl ApiError {
    /// An error of that status, in words.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self(Problem {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: Some(detail.into()),
            errors: Vec::new(),
        })
    }

    /// 404. Also for what exists but belongs to somebody else.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no such thing, or it is not yours")
    }

    /// 401.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// 403, for what has no owner.
    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "your role may not do this")
    }

    /// 409.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 422, naming the fields at fault.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "some fields are not valid");
        error.0.errors = errors;
        error
    }

    /// 422 for one field.
    pub fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(field, message)])
    }

    /// 400: the body cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 503: something this needs is away; the same request may succeed later. The cause is logged, not told.
    pub fn unavailable(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::warn!(error = %chain(cause), "answering 503");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not available now; try again")
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<auth::TokenError> for ApiError {
    fn from(error: auth::TokenError) -> Self {
        Self::unauthorized(error.to_string())
    }
}

impl From<auth::Denied> for ApiError {
    fn from(_: auth::Denied) -> Self {
        Self::forbidden()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
