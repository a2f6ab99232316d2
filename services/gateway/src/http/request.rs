//! What requests are read with: the caller, strict JSON bodies, headers, list parameters.

use std::ops::Deref;

use auth::Identity;
use axum::{
    extract::{FromRef, FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use chassis::{
    ApiError,
    auth::{Authenticator, Caller},
    extract::{body_of, parse_json},
};
use contracts::{
    CustomerId,
    api::{DEFAULT_PAGE, MAX_IDEMPOTENCY_KEY_CHARS, MAX_PAGE},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use url::form_urlencoded::Serializer;
use utoipa::IntoParams;

/// The longest cursor of another service that is passed on: longer than any of theirs, shorter than a URL's limit.
const MAX_CURSOR_CHARS: usize = 1_000;

/// A verified caller from outside. Our services' own tokens open nothing here.
#[derive(Debug, Clone)]
pub(crate) struct User(pub(crate) Caller);

impl User {
    /// The customer that the caller is; 403 for anybody else.
    pub(crate) fn customer(&self) -> Result<&CustomerId, ApiError> {
        match &self.identity {
            Identity::Customer(me) => Ok(me),
            _ => Err(ApiError::forbidden()),
        }
    }
}

impl Deref for User {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.0
    }
}

impl<S> FromRequestParts<S> for User
where
    S: Send + Sync,
    Authenticator: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if matches!(caller.identity, Identity::Service(_)) {
            return Err(ApiError::forbidden());
        }
        Ok(Self(caller))
    }
}

/// A JSON body without arrays. No body of this API has one, but a struct could be read from one, which nobody means.
#[derive(Debug, Clone)]
pub(crate) struct Strict<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Strict<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_media_type(request.headers(), &["application/json"])?;
        let bytes = body_of(request).await?;
        let value = read_json(&bytes)?;
        if has_array(&bytes) {
            // Rare, and wrong: worth reading it again for the place.
            let field = parse_json::<Value>(&bytes).ok().and_then(|value| array_in(&value)).unwrap_or_default();
            let field = if field.is_empty() { "body".to_owned() } else { field };
            return Err(ApiError::invalid_field(field, "must be an object, not an array"));
        }
        Ok(Self(value))
    }
}

/// Reads JSON; the error names the field where it does not fit. A number where a name is expected looks like broken
/// JSON to the parser, which then cannot say where: what is JSON after all is read again as such.
pub(crate) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let error = match parse_json(bytes) {
        Err(error) if error.status() == StatusCode::BAD_REQUEST => error,
        other => return other,
    };
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return Err(error) };
    match serde_path_to_error::deserialize::<_, T>(value) {
        Err(misfit) => Err(ApiError::invalid_field(misfit.path().to_string(), misfit.inner().to_string())),
        Ok(_) => Err(error),
    }
}

/// Whether legal JSON has an array anywhere: a bracket outside of strings.
fn has_array(json: &[u8]) -> bool {
    let (mut in_text, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' if !in_text => return true,
            _ => {}
        }
    }
    false
}

fn array_in(value: &Value) -> Option<String> {
    match value {
        Value::Array(_) => Some(String::new()),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let inner = array_in(value)?;
            Some(if inner.is_empty() { name.clone() } else { format!("{name}.{inner}") })
        }),
        _ => None,
    }
}

/// 415 unless the body is said to be of one of these types, as it is and not compressed.
pub(crate) fn check_media_type(headers: &HeaderMap, accepted: &[&str]) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if !accepted.iter().any(|accepted| essence.eq_ignore_ascii_case(accepted)) {
        let detail = format!("the body must be of type {}", accepted.join(" or "));
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let encoding = headers.get(header::CONTENT_ENCODING).map(axum::http::HeaderValue::as_bytes);
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must not be compressed"));
    }
    Ok(())
}

/// Whether the caller would rather have a stream.
pub(crate) fn wants_stream(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream"))
}

/// The header's name in requests and in problems.
pub(crate) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The Idempotency-Key, if there is one; 422 for one that is not legal, and for two.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let legal = value.as_bytes().iter().all(u8::is_ascii_graphic)
        && (1..=MAX_IDEMPOTENCY_KEY_CHARS).contains(&value.len())
        && values.next().is_none();
    match value.to_str() {
        Ok(key) if legal => Ok(Some(key)),
        _ => {
            let message = format!("must be one key of 1 to {MAX_IDEMPOTENCY_KEY_CHARS} visible ASCII characters");
            Err(ApiError::invalid_field(IDEMPOTENCY_KEY, message))
        }
    }
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// At most this many items.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<usize>,
}

/// The page's size that was asked for; 422 for one that is not legal.
pub(crate) fn page_size(limit: Option<usize>) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid_field("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    Ok(limit)
}

/// 422 for a text that cannot be a cursor; whether it is one, its owner says.
pub(crate) fn check_cursor(cursor: Option<&str>) -> Result<(), ApiError> {
    let Some(cursor) = cursor else { return Ok(()) };
    if (1..=MAX_CURSOR_CHARS).contains(&cursor.len()) && cursor.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(ApiError::invalid_field("cursor", "is not a cursor of this list"))
}

impl ListQuery {
    /// The same question for another service, after checking it.
    pub(crate) fn passed_on(&self) -> Result<String, ApiError> {
        let limit = page_size(self.limit)?;
        check_cursor(self.cursor.as_deref())?;
        Ok(with_query("", &[("cursor", self.cursor.as_deref()), ("limit", Some(&limit.to_string()))]))
    }
}

/// The path with those parameters that are given.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_found_outside_of_strings_only() {
        for (json, found) in [
            (r#"{"a":1}"#, false),
            (r#"{"a":"[x]"}"#, false),
            (r#"{"a":"\"[","b":"\\"}"#, false),
            (r"[1]", true),
            (r#"{"a":"\\","b":[1]}"#, true),
        ] {
            assert_eq!(has_array(json.as_bytes()), found, "{json}");
        }
        assert_eq!(array_in(&serde_json::json!({"a": {"b": [1]}})), Some("a.b".to_owned()));
    }

    #[test]
    fn a_key_has_1_to_128_visible_characters() {
        let key_of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", value.parse().unwrap());
            }
            idempotency_key(&headers).map(|key| key.map(str::to_owned)).map_err(|error| error.0.errors[0].field.clone())
        };
        assert_eq!(key_of(&[]), Ok(None));
        assert_eq!(key_of(&["order-1"]), Ok(Some("order-1".to_owned())));
        assert!(key_of(&[&"k".repeat(128)]).is_ok());
        for bad in [&[""][..], &["a b"], &["\u{e9}"], &["a", "b"], &["k".repeat(129).as_str()]] {
            assert_eq!(key_of(bad), Err("Idempotency-Key".to_owned()), "{bad:?}");
        }
    }

    #[test]
    fn a_stream_is_wanted_where_it_is_named() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_stream(&headers)
        };
        assert!(wants("text/event-stream"));
        assert!(wants("application/json;q=0.5, Text/Event-Stream;q=1"));
        assert!(!wants("*/*"));
        assert!(!wants("application/json"));
    }
}
