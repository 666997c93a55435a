//! A request's body line by line, of any length, with no more than a line in memory.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::StreamExt as _;

use crate::error::{ApiError, ApiResult};

/// See the module.
pub(crate) struct Lines {
    chunks: BodyDataStream,
    /// What came and was not given out yet.
    chunk: Bytes,
    /// Longest time that the client may send nothing.
    idle: Duration,
    /// Longest line in bytes.
    max_line: usize,
    seen: u64,
}

impl Lines {
    pub(crate) fn new(body: Body, idle: Duration, max_line: usize) -> Self {
        Self { chunks: body.into_data_stream(), chunk: Bytes::new(), idle, max_line, seen: 0 }
    }

    /// Reads the next line into `line`, without its end; false where there is none. One that the body's end cuts is one too.
    pub(crate) async fn next(&mut self, line: &mut Vec<u8>) -> ApiResult<bool> {
        line.clear();
        loop {
            let end = self.chunk.iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&self.chunk[..end.unwrap_or(self.chunk.len())]);
            if line.len() > self.max_line {
                let (line, max) = (self.seen + 1, self.max_line);
                return Err(ApiError::unprocessable("corrupt_line", format!("line {line} is longer than {max} bytes")));
            }
            if let Some(end) = end {
                self.chunk = self.chunk.slice(end + 1..);
                self.seen += 1;
                return Ok(true);
            }
            let Some(chunk) = self.chunk().await? else {
                self.chunk = Bytes::new();
                self.seen += 1;
                return Ok(!line.is_empty());
            };
            self.chunk = chunk;
        }
    }

    async fn chunk(&mut self) -> ApiResult<Option<Bytes>> {
        let chunk = tokio::time::timeout(self.idle, self.chunks.next()).await;
        match chunk.map_err(|_| ApiError::body_timeout(self.idle.as_secs()))? {
            Some(Ok(chunk)) => Ok(Some(chunk)),
            Some(Err(_)) => Err(ApiError::bad_request("body_broken_off", "the body broke off; send it again")),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(chunks: &[&'static str], max_line: usize) -> ApiResult<Vec<String>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(chunk.as_bytes())).collect();
        let body = Body::from_stream(futures_util::stream::iter(chunks));
        let mut lines = Lines::new(body, Duration::from_secs(5), max_line);
        let (mut line, mut found) = (Vec::new(), Vec::new());
        while lines.next(&mut line).await? {
            found.push(String::from_utf8(line.clone()).unwrap());
        }
        Ok(found)
    }

    #[tokio::test]
    async fn lines_are_put_together_from_what_comes() {
        for chunks in [&["ab\ncd\n\nef\n"][..], &["a", "b\nc", "d\n\n", "ef"], &["ab\n", "cd\n", "\n", "ef\n"]] {
            assert_eq!(read(chunks, 2).await.unwrap(), ["ab", "cd", "", "ef"], "{chunks:?}");
        }
        assert_eq!(read(&[], 2).await.unwrap(), [""; 0]);
        let error = format!("{:?}", read(&["ab\nc", "de\n"], 2).await.unwrap_err());
        assert!(error.contains("line 2 is longer"), "{error}");
    }
}
