//! How far relays have come in the change stream: one document, with a position for each bucket of the outbox.

use ::mongodb::{
    Database,
    bson::{self, Document, doc},
    change_stream::event::ResumeToken,
};
use contracts::Timestamp;
use messaging::{
    mongodb::{self, UpdateError},
    outbox::Bucket,
};

use super::documents::Unreadable;

pub(super) const COLLECTION: &str = "relay_positions";

/// The id of the only document.
const ID: &str = "packages";

/// Why positions could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PositionError {
    #[error("the positions cannot be read")]
    Driver(#[from] ::mongodb::error::Error),
    #[error("the positions cannot be written")]
    Update(#[from] UpdateError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The position behind which nothing of these buckets has been missed: the earliest of theirs. None where one of them
/// has none, or none since `oldest`.
pub(super) async fn load(
    database: &Database,
    buckets: &[Bucket],
    oldest: Timestamp,
) -> Result<Option<ResumeToken>, PositionError> {
    let found = database.collection::<Document>(COLLECTION).find_one(doc! { "_id": ID }).await?;
    let Some(document) = found else { return Ok(None) };
    let positions = document.get_document("buckets").map_err(Unreadable::new)?;
    let mut earliest: Option<(&str, &Document)> = None;
    for bucket in buckets {
        let Ok(position) = positions.get_document(bucket.to_string()) else { return Ok(None) };
        if position.get_i64("at_ms").map_err(Unreadable::new)? < oldest.timestamp_millis() {
            return Ok(None);
        }
        let token = position.get_document("token").map_err(Unreadable::new)?;
        // Hexadecimal, and made to be compared.
        let order = token.get_str("_data").map_err(Unreadable::new)?;
        if earliest.is_none_or(|(least, _)| order < least) {
            earliest = Some((order, token));
        }
    }
    let token = earliest.map(|(_, token)| bson::deserialize_from_document(token.clone()));
    Ok(token.transpose().map_err(Unreadable::new)?)
}

/// Says that everything of these buckets up to `token` has been published and has left its documents.
pub(super) async fn store(
    database: &Database,
    buckets: &[Bucket],
    token: &ResumeToken,
    now: Timestamp,
) -> Result<(), PositionError> {
    let token = bson::serialize_to_bson(token).map_err(Unreadable::new)?;
    let position = doc! { "token": token, "at_ms": now.timestamp_millis() };
    let fields: Document =
        buckets.iter().map(|bucket| (format!("buckets.{bucket}"), position.clone().into())).collect();
    // A relay that was paused past its lease sets nobody back.
    let statement = doc! { "q": { "_id": ID }, "u": { "$max": fields }, "upsert": true };
    let refused = mongodb::update(database, COLLECTION, &[statement]).await?;
    match refused.into_iter().next() {
        // Whoever lost the race for the document's first insert comes again.
        Some(refused) if !refused.lost => Err(UpdateError::Answer(refused.message).into()),
        _ => Ok(()),
    }
}
