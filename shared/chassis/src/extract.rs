//! Extractors whose refusals are problem+json and name the field at fault.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};

use crate::{ApiError, serve::BODY_LIMIT_BYTES};

/// A JSON body; as an answer, JSON with status 200.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

/// Query parameters.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

/// Path parameters. One that is not legal names nothing, so the answer is 404.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            let detail = "the body must be of type application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        parse_json(&body_of(request).await?).map(Json)
    }
}

/// How much of a body that is too large is still read, and thrown away: who is answered while they send may lose the
/// answer with the connection. A body larger than this is not sent by mistake.
const MAX_DISCARDED_BYTES: usize = 64 * 1024 * 1024;

/// How long a body may take to arrive: 4 MiB at the pace of a poor mobile network.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// A request's whole body, at most [`BODY_LIMIT_BYTES`]. One that is larger is received all the same before it is
/// refused, so that its sender hears why.
pub async fn body_of(request: Request) -> Result<Bytes, ApiError> {
    let mut chunks = request.into_body().into_data_stream();
    let mut body = BytesMut::new();
    let mut received_bytes = 0_usize;
    let receiving = async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::malformed("the body could not be read"))?;
            received_bytes += chunk.len();
            if received_bytes > MAX_DISCARDED_BYTES {
                break;
            }
            if received_bytes <= BODY_LIMIT_BYTES {
                body.extend_from_slice(&chunk);
            }
        }
        Ok::<(), ApiError>(())
    };
    let too_slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    tokio::time::timeout(BODY_DEADLINE, receiving).await.map_err(too_slow)??;
    if received_bytes > BODY_LIMIT_BYTES {
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
    }
    Ok(body.freeze())
}

/// Reads JSON; the error names the field where it does not fit.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let deserializer = &mut serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut *deserializer).map_err(|error| {
        let field = error.path().to_string();
        let cause = error.inner();
        // serde_json calls some misfits a fault of syntax (a number where a name is expected), so the text itself
        // decides whether it is JSON.
        if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
            let message = without_place(cause);
            return ApiError::invalid_field(field_at_fault(&field, &message), message);
        }
        ApiError::malformed(format!("the body is not JSON: {cause}"))
    })?;
    deserializer.end().map_err(|error| ApiError::malformed(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// The path of the field at fault: a missing field is named by the message, not by the path that lacks it.
fn field_at_fault(path: &str, message: &str) -> String {
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match (path, missing) {
        (".", Some(field)) => field.to_owned(),
        (path, Some(field)) => format!("{path}.{field}"),
        (".", None) => "body".to_owned(),
        (path, None) => path.to_owned(),
    }
}

/// The error's words without "at line 1 column 7", which says nothing to who sent an object.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.find(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let deserializer = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(deserializer).map(Query).map_err(|error| {
            let field = error.path().to_string();
            let field = if field == "." || field.is_empty() { "query".to_owned() } else { field };
            ApiError::invalid_field(field, error.inner().to_string())
        })
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(ApiError::not_found()),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> OptionalFromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, ApiError> {
        if parts.uri.query().is_none() {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use contracts::{
        api::CreateDelivery,
        commands::{Commands, DroneReport, FlightReport},
    };

    use super::*;

    #[test]
    fn a_fault_names_its_field() {
        let error = parse_json::<CreateDelivery>(br#"{"pickup":{"latitude":"x","longitude":1}}"#).unwrap_err();
        assert_eq!(error.0.errors[0].field, "pickup.latitude");
        let error = parse_json::<CreateDelivery>(br#"{"pickup":{"latitude":1,"longitude":1,"up":2}}"#).unwrap_err();
        assert_eq!(error.0.errors[0].field, "pickup.up");
        let error = parse_json::<CreateDelivery>(
            br#"{"pickup":{"latitude":1,"longitude":1},"dropoff":{"latitude":1,"longitude":2},"package":{"size":1}}"#,
        )
        .unwrap_err();
        assert_eq!((error.0.status, error.0.errors[0].field.as_str()), (422, "package.size"));
        let error = parse_json::<CreateDelivery>(b"{}").unwrap_err();
        assert_eq!(error.0.errors[0].field, "pickup");
        let error = parse_json::<CreateDelivery>(br#"{"pickup":{"latitude":1}}"#).unwrap_err();
        assert_eq!(error.0.errors[0].field, "pickup.longitude");
    }

    #[test]
    fn a_fault_in_a_reports_fix_names_its_field() {
        let body = br#"{"commands":[{"drone_id":"0198c5a0-0000-7000-8000-00000000000d","battery":"full"}]}"#;
        let field = |error: ApiError| error.0.errors[0].field.clone();
        assert_eq!(field(parse_json::<Commands<DroneReport>>(body).unwrap_err()), "commands[0].battery");
        assert_eq!(field(parse_json::<Commands<FlightReport>>(body).unwrap_err()), "commands[0].battery");
    }

    #[test]
    fn what_is_not_json_is_a_400() {
        for body in [&b"{"[..], b"", b"NaN", b"{} {}", b"\xff", "[".repeat(10_000).as_bytes()] {
            let status = parse_json::<serde_json::Value>(body).unwrap_err().0.status;
            assert_eq!(status, 400, "{:?}", String::from_utf8_lossy(body));
        }
    }
}
