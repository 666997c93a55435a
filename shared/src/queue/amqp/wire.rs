//! A message as bytes: compact JSON with ids only, the trace context in a header.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::topology::short;
use crate::ids::JobId;
use crate::job::Lane;
use crate::queue::Message;

/// The form of the body. Another form goes to queues of another version.
const VERSION: u32 = 1;
const PERSISTENT: u8 = 2;
const TRACEPARENT: &str = "traceparent";
/// A trace context is 55 characters today; later versions of it may be longer.
const LONGEST_TRACEPARENT: usize = 256;

#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    lane: Lane,
    pipeline: String,
    /// Older versions do not say it.
    #[serde(default = "needs_models")]
    needs_models: bool,
    jobs: Vec<JobId>,
    alone: i32,
}

fn needs_models() -> bool {
    true
}

/// Why bytes are no message. The texts show nothing of the bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// No JSON, or not of this form.
    #[error("not a message: {0:?} error at column {1}")]
    Form(serde_json::error::Category, usize),
    /// A form of another version.
    #[error("a message of version {0}, of which this program knows nothing")]
    Version(u32),
    /// Nothing in it.
    #[error("a message without jobs")]
    Empty,
}

/// The body and the properties of a message that survives a restart of the broker.
pub(super) fn encode(message: &Message) -> (Vec<u8>, BasicProperties) {
    let body = Body {
        v: VERSION,
        lane: message.lane,
        pipeline: message.pipeline.clone(),
        needs_models: message.needs_models,
        jobs: message.jobs.clone(),
        alone: message.alone,
    };
    let body = serde_json::to_vec(&body).expect("numbers, texts and ids are always JSON; this is a bug");
    let mut properties = BasicProperties::default()
        .with_content_type(short("application/json"))
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&Uuid::now_v7().to_string()));
    if let Some(traceparent) = &message.traceparent {
        let mut headers = FieldTable::default();
        headers.insert(short(TRACEPARENT), AMQPValue::LongString(traceparent.as_str().into()));
        properties = properties.with_headers(headers);
    }
    (body, properties)
}

/// The message that `encode` made these of.
pub(super) fn decode(body: &[u8], properties: &BasicProperties) -> Result<Message, WireError> {
    let body: Body = serde_json::from_slice(body).map_err(|error| WireError::Form(error.classify(), error.column()))?;
    if body.v != VERSION {
        return Err(WireError::Version(body.v));
    }
    if body.jobs.is_empty() {
        return Err(WireError::Empty);
    }
    Ok(Message {
        lane: body.lane,
        pipeline: body.pipeline,
        needs_models: body.needs_models,
        jobs: body.jobs,
        alone: body.alone,
        traceparent: traceparent(properties),
    })
}

/// The message id as a text for logs.
pub(super) fn message_id(properties: &BasicProperties) -> &str {
    properties.message_id().as_ref().map_or("none", |id| id.as_str())
}

fn traceparent(properties: &BasicProperties) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    let text = match headers.inner().get(TRACEPARENT)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?,
        AMQPValue::ShortString(text) => text.as_str(),
        _ => return None,
    };
    (text.len() <= LONGEST_TRACEPARENT).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        for traceparent in [None, Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned())] {
            let jobs = vec![JobId::new(), JobId::new()];
            let (lane, pipeline) = (Lane::Bulk, "tiny".to_owned());
            let message = Message { lane, pipeline, needs_models: false, jobs, alone: 2, traceparent };
            let (body, properties) = encode(&message);
            assert_eq!(decode(&body, &properties).unwrap(), message);
            assert_eq!(properties.delivery_mode(), &Some(PERSISTENT));
        }
    }

    #[test]
    fn tells_what_is_no_message_without_showing_it() {
        let properties = BasicProperties::default();
        let secret = decode(br#"{"v":1,"secret":"hush"}"#, &properties).unwrap_err().to_string();
        assert!(!secret.contains("hush") && !secret.contains("secret"), "{secret}");
        let older =
            br#"{"v":1,"lane":"bulk","pipeline":"tiny","jobs":["01890000-0000-7000-8000-000000000000"],"alone":0}"#;
        assert!(decode(older, &properties).unwrap().needs_models);
        let newer = br#"{"v":2,"lane":"bulk","pipeline":"tiny","jobs":[],"alone":0}"#;
        assert!(matches!(decode(newer, &properties), Err(WireError::Version(2))));
        let empty = br#"{"v":1,"lane":"bulk","pipeline":"tiny","jobs":[],"alone":0}"#;
        assert!(matches!(decode(empty, &properties), Err(WireError::Empty)));
    }
}
