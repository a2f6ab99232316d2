//! Where the lake is: the object store behind its URL, one for both tables.

use std::{path::PathBuf, sync::Arc, time::Duration};

use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use object_store::{
    BackoffConfig, ObjectStore, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
};
use url::Url;

use super::{LakeError, durable::DurableFileSystem, schema::TableKind};

/// Times that the client repeats a request by itself: enough for a lost connection or one overloaded server. Whoever
/// called tries again anyway, from what the table then says.
const MAX_RETRIES: usize = 3;
/// No request is repeated after this. With the client's 30 s for each request, an answer takes 40 s at most.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between two of these requests: three of them fit into the time above.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// What `AmazonS3Builder` takes as credentials: one of these groups, whole.
const S3_CREDENTIALS: [&[AmazonS3ConfigKey]; 6] = {
    use AmazonS3ConfigKey as Key;
    [
        &[Key::AccessKeyId, Key::SecretAccessKey],
        &[Key::WebIdentityTokenFile, Key::RoleArn],
        &[Key::ContainerCredentialsRelativeUri],
        &[Key::ContainerCredentialsFullUri, Key::ContainerAuthorizationTokenFile],
        // An instance's own role: asked for by naming its metadata endpoint, so that nobody waits for one by mistake.
        &[Key::MetadataEndpoint],
        &[Key::SkipSignature],
    ]
};
/// The same of `MicrosoftAzureBuilder`.
const AZURE_CREDENTIALS: [&[AzureConfigKey]; 8] = {
    use AzureConfigKey as Key;
    [
        &[Key::AccessKey],
        &[Key::ClientSecret, Key::ClientId, Key::AuthorityId],
        &[Key::FederatedTokenFile, Key::ClientId, Key::AuthorityId],
        &[Key::SasKey],
        &[Key::Token],
        // A managed identity: asked for by naming its endpoint.
        &[Key::MsiEndpoint],
        &[Key::UseAzureCli],
        &[Key::SkipSignature],
    ]
};

/// Where a lake is.
#[derive(Clone)]
pub(crate) struct Location {
    url: Url,
    /// Rooted at the bucket, the container or the file system, not at the lake's folder.
    root: Arc<dyn ObjectStore>,
}

impl Location {
    /// Whether a text has the form of a lake's URL or path.
    pub(crate) fn is_named_by(text: &str) -> bool {
        parse_url(text).is_ok()
    }

    /// The lake at a URL or a path. Nothing is asked of the store yet.
    pub(crate) fn open(text: &str) -> Result<Self, LakeError> {
        let url = parse_url(text)?;
        let root: Arc<dyn ObjectStore> = match (url.scheme(), url.host_str()) {
            ("file", _) => Arc::new(DurableFileSystem::new()),
            ("s3", Some(bucket)) => s3(AmazonS3Builder::from_env(), bucket)?,
            ("az", Some(container)) => azure(MicrosoftAzureBuilder::from_env(), container)?,
            _ => return Err(LakeError::Url(text.to_owned())),
        };
        Ok(Self { url, root })
    }

    /// The log of a table, which also tells the store rooted at the table's folder.
    pub(crate) fn log_store(&self, kind: TableKind) -> Result<LogStoreRef, LakeError> {
        let location = self.url.join(&format!("{}/", kind.name())).map_err(LakeError::unavailable)?;
        let config = StorageConfig::default();
        let prefixed = config.decorate_store(self.root.clone(), &location)?;
        // It makes a commit by creating its file, which every one of these stores refuses where there is one already.
        Ok(default_logstore(Arc::from(prefixed), self.root.clone(), &location, &config))
    }

    /// The same place, reached through another store.
    #[cfg(test)]
    pub(crate) fn through(&self, store: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        Self { url: self.url.clone(), root: store(self.root.clone()) }
    }

    /// The same bucket or container, reached through another port, and the port that the environment names.
    #[cfg(test)]
    pub(crate) fn by_port(&self, port: u16) -> (Self, u16) {
        let host = self.url.host_str().unwrap();
        let name = if self.url.scheme() == "s3" { "AWS_ENDPOINT" } else { "AZURE_STORAGE_ENDPOINT" };
        let mut endpoint: Url = std::env::var(name).unwrap().parse().unwrap();
        let direct = endpoint.port().unwrap();
        endpoint.set_port(Some(port)).unwrap();
        let endpoint = endpoint.as_str().trim_end_matches('/').to_owned();
        let root = match self.url.scheme() {
            "s3" => s3(AmazonS3Builder::from_env().with_endpoint(endpoint), host).unwrap(),
            _ => azure(MicrosoftAzureBuilder::from_env().with_endpoint(endpoint), host).unwrap(),
        };
        (Self { url: self.url.clone(), root }, direct)
    }
}

/// The lake's URL as one that ends in a slash.
fn parse_url(text: &str) -> Result<Url, LakeError> {
    let wrong = || LakeError::Url(text.to_owned());
    let path = match text.split_once(':') {
        Some(("s3" | "az", _)) => return parse_remote(text).ok_or_else(wrong),
        Some(("file", _)) => {
            let url = Url::parse(text).map_err(|_| wrong())?;
            url.to_file_path().map_err(|()| wrong())?
        }
        Some((scheme, _)) if scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            return Err(wrong());
        }
        _ => PathBuf::from(text),
    };
    let path = std::path::absolute(path).map_err(|_| wrong())?;
    Url::from_directory_path(path).map_err(|()| wrong())
}

/// SCHEME://BUCKET/PREFIX/, and nothing else in it.
fn parse_remote(text: &str) -> Option<Url> {
    let mut url = Url::parse(text).ok()?;
    url.host_str().filter(|host| !host.is_empty())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    let whole = url.query().is_none() && url.fragment().is_none();
    // Delta's readers do not agree on how often an escaped character in a path is escaped.
    if !plain || !whole || url.path().contains('%') {
        return None;
    }
    let folder = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&folder);
    // Refuses empty names in the middle, which a store would keep as they are and others would not.
    ObjectStoreScheme::parse(&url).ok()?;
    Some(url)
}

fn s3(builder: AmazonS3Builder, bucket: &str) -> Result<Arc<dyn ObjectStore>, LakeError> {
    let get = |key: &AmazonS3ConfigKey| builder.get_config_value(key);
    if let Some(variable) = missing_credential(&S3_CREDENTIALS, get) {
        return Err(LakeError::Credentials { store: "s3", variable });
    }
    let builder = builder.with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
    Ok(Arc::new(builder.with_retry(retry()).build()?))
}

fn azure(builder: MicrosoftAzureBuilder, container: &str) -> Result<Arc<dyn ObjectStore>, LakeError> {
    let get = |key: &AzureConfigKey| builder.get_config_value(key);
    let account = missing_credential(&[&[AzureConfigKey::AccountName]], get);
    if let Some(variable) = account.or_else(|| missing_credential(&AZURE_CREDENTIALS, get)) {
        return Err(LakeError::Credentials { store: "az", variable });
    }
    Ok(Arc::new(builder.with_container_name(container).with_retry(retry()).build()?))
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: MAX_BACKOFF, ..BackoffConfig::default() };
    RetryConfig { backoff, max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT }
}

/// The environment variable to set where no group of credentials is there whole: what one that was begun lacks, else
/// the first one of all. Without this, a client asks an instance's metadata service, and fails after long with
/// words about that.
fn missing_credential<Key: AsRef<str>>(groups: &[&[Key]], get: impl Fn(&Key) -> Option<String>) -> Option<String> {
    let is_set = |key: &Key| get(key).is_some_and(|value| !value.is_empty() && value != "false");
    if groups.iter().any(|group| group.iter().all(is_set)) {
        return None;
    }
    let begun = groups.iter().find(|group| group.iter().any(is_set)).or(groups.first())?;
    begun.iter().find(|key| !is_set(key)).map(|key| key.as_ref().to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode};
    use object_store::{PutMode, PutOptions, path::Path};

    use super::*;

    #[test]
    fn a_lake_is_a_folder_wherever_it_is() {
        for (text, expected) in [
            ("s3://bucket", "s3://bucket/"),
            ("s3://bucket/a/lake", "s3://bucket/a/lake/"),
            ("az://container/lake//", "az://container/lake/"),
            ("file:///data/lake", "file:///data/lake/"),
            ("/data/lake", "file:///data/lake/"),
        ] {
            assert_eq!(parse_url(text).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn what_names_no_lake_is_refused() {
        for text in [
            "s3:",
            "s3://",
            "s3:///lake",
            "s3://key:secret@bucket/lake",
            "s3://bucket:80/lake",
            "s3://bucket/lake?region=x",
            "az://container/a//b",
            "az://container/a b",
            "gs://bucket/lake",
            "http://host/lake",
        ] {
            assert!(matches!(Location::open(text), Err(LakeError::Url(_))), "{text}");
        }
    }

    #[test]
    fn without_credentials_the_variable_to_set_is_named() {
        let key = |name: &str| name.parse::<AmazonS3ConfigKey>().unwrap();
        for (set, expected) in [
            (&[][..], Some("AWS_ACCESS_KEY_ID")),
            (&["aws_access_key_id"][..], Some("AWS_SECRET_ACCESS_KEY")),
            (&["aws_secret_access_key"], Some("AWS_ACCESS_KEY_ID")),
            (&["aws_access_key_id", "aws_secret_access_key"], None),
            (&["aws_web_identity_token_file"], Some("AWS_ROLE_ARN")),
            (&["aws_web_identity_token_file", "aws_role_arn"], None),
            (&["aws_container_credentials_relative_uri"], None),
            (&["aws_container_credentials_full_uri"], Some("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")),
            (&["aws_metadata_endpoint"], None),
        ] {
            let builder = set.iter().fold(AmazonS3Builder::new(), |to, name| to.with_config(key(name), "http://x"));
            let variable = match s3(builder, "bucket") {
                Ok(_) => None,
                Err(LakeError::Credentials { variable, .. }) => Some(variable),
                Err(error) => panic!("{error:?}"),
            };
            assert_eq!(variable.as_deref(), expected, "with {set:?}");
        }
        let unset = || MicrosoftAzureBuilder::new();
        for (builder, expected) in [
            (unset(), Some("AZURE_STORAGE_ACCOUNT_NAME")),
            (unset().with_account("a"), Some("AZURE_STORAGE_ACCOUNT_KEY")),
            (unset().with_account("a").with_access_key("a2V5"), None),
            (unset().with_account("a").with_msi_endpoint("http://x"), None),
            (unset().with_account("a").with_client_secret("s").with_client_id("c"), Some("AZURE_STORAGE_TENANT_ID")),
        ] {
            let variable = match azure(builder, "container") {
                Ok(_) => None,
                Err(LakeError::Credentials { variable, .. }) => Some(variable),
                Err(error) => panic!("{error:?}"),
            };
            assert_eq!(variable.as_deref(), expected);
        }
    }

    /// S3 answers 409 instead of 412 where two creations of one object meet.
    #[tokio::test]
    async fn a_conflict_while_creating_is_a_lost_race() {
        for status in [StatusCode::CONFLICT, StatusCode::PRECONDITION_FAILED] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let router = Router::new().fallback(move || async move { status });
            let serving = tokio::task::JoinSet::from_iter([async { axum::serve(listener, router).await.unwrap() }]);
            let builder = AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true);
            let store = s3(builder.with_access_key_id("a").with_secret_access_key("b"), "bucket").unwrap();
            let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = store.put_opts(&Path::from("_delta_log/1.json"), "x".into(), create).await;
            assert!(matches!(put, Err(object_store::Error::AlreadyExists { .. })), "{status}: {put:?}");
            drop(serving);
        }
    }
}
