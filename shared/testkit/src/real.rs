//! The real stores of tests: where `infra/local/up` says they are. Without them a test says that it was skipped, or fails
//! where `REQUIRE_REAL_STORES=1` says that they must be there.

use contracts::{Clock, SystemClock};

/// The environment variable that turns a skip into a failure.
pub const REQUIRED: &str = "REQUIRE_REAL_STORES";

/// The URL in the environment variable `name`; none where it is not set, after a word on standard error.
#[allow(clippy::panic, clippy::print_stderr, reason = "for tests")]
pub fn url(name: &str) -> Option<String> {
    let url = std::env::var(name).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let hint = "start the real stores: eval \"$(infra/local/up)\"";
        assert!(std::env::var(REQUIRED).as_deref() != Ok("1"), "{name} is not set, and {REQUIRED}=1; {hint}");
        eprintln!("skipped: {name} is not set; {hint}");
    }
    url
}

/// A name that no other test uses, fit for a schema, a database, a topic or a key's prefix.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}_{}", SystemClock.new_id().simple())
}

/// The URL of a fresh, empty schema in `TEST_POSTGRES_URL`'s database.
#[allow(clippy::unwrap_used, reason = "for tests")]
pub async fn postgres() -> Option<String> {
    let url = url("TEST_POSTGRES_URL")?;
    let schema = unique("t");
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create schema {schema}"))).execute(&pool).await.unwrap();
    pool.close().await;
    let separator = if url.contains('?') { '&' } else { '?' };
    Some(format!("{url}{separator}options[search_path]={schema}"))
}
