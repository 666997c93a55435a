//! The trace context of a job: W3C `traceparent` (<https://www.w3.org/TR/trace-context/>), carried from the HTTP request
//! through the job's row and the message to the worker.

use uuid::Uuid;

/// A valid `traceparent` of version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    text: String,
}

impl TraceContext {
    /// A new trace.
    pub fn new() -> Self {
        let trace = Uuid::new_v4().simple().to_string();
        Self { text: format!("00-{trace}-{}-01", span_id()) }
    }

    /// Continues the caller's trace with a span of our own; `None` where the header is none.
    pub fn continued(header: &str) -> Option<Self> {
        let parent = Self::parse(header)?;
        Some(Self { text: format!("00-{}-{}-{}", parent.trace_id(), span_id(), &header[53..55]) })
    }

    /// Reads a header as it was stored.
    pub fn parse(header: &str) -> Option<Self> {
        let lower_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parts: Vec<&str> = header.split('-').collect();
        let [version, trace, span, flags] = parts.as_slice() else { return None };
        let lengths = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
        let is_zero = |part: &str| part.bytes().all(|b| b == b'0');
        let valid = lengths && parts.iter().all(|p| lower_hex(p)) && *version == "00";
        (valid && !is_zero(trace) && !is_zero(span)).then(|| Self { text: header.to_owned() })
    }

    /// The id that every log line of the trace shows, 32 hex digits.
    pub fn trace_id(&self) -> &str {
        &self.text[3..35]
    }

    /// The header's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for TraceContext {
    fn default() -> Self {
        Self::new()
    }
}

fn span_id() -> String {
    Uuid::new_v4().simple().to_string()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continues_a_callers_trace() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let ours = TraceContext::continued(header).unwrap();
        assert_eq!(ours.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(ours.as_str(), header, "the span is ours");
        assert!(ours.as_str().ends_with("-00"), "the caller's choice not to sample stays");
        assert_eq!(TraceContext::parse(ours.as_str()), Some(ours));
        assert!(TraceContext::parse(TraceContext::new().as_str()).is_some());
    }

    #[test]
    fn refuses_what_is_none() {
        for header in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::continued(header), None, "{header}");
        }
    }
}
