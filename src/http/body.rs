//! Bodies of requests: their size is bounded, packed or not.

use super::body_room::BodyRoom;
use super::error::{ApiError, ApiResult};
use crate::domain::json::from_agent;
use crate::domain::problem::ProblemKind;
use actix_web::http::header::CONTENT_ENCODING;
use actix_web::{HttpRequest, web};
use flate2::write::MultiGzDecoder;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::time::Duration;

/// How long a client may take to send its body.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    /// Of the body of a request.
    pub(super) fn of(request: &HttpRequest) -> ApiResult<Self> {
        let Some(encoding) = request.headers().get(CONTENT_ENCODING) else { return Ok(Self::Plain) };
        match encoding.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Plain),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            other => Err(ApiError::new(
                ProblemKind::UnsupportedEncoding,
                format!("Content-Encoding: {other:?} is not supported; gzip is"),
            )),
        }
    }
}

/// Bytes up to a limit, for which there is room.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    room: BodyRoom,
    refused: Option<ApiError>,
}

impl Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let refused = match self.bytes.len() + more.len() > self.max {
            true => Some(ApiError::too_large(self.max)),
            false => self.room.grow(more.len()).err(),
        };
        if refused.is_some() {
            self.refused = refused;
            return Err(io::Error::other("refused"));
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What has come of a body.
enum Unpacked {
    Plain(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
}

impl Unpacked {
    fn new(encoding: Encoding, max: usize, room: BodyRoom) -> Self {
        let bounded = Bounded { bytes: Vec::new(), max, room, refused: None };
        match encoding {
            Encoding::Plain => Self::Plain(bounded),
            Encoding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(bounded))),
        }
    }

    fn push(&mut self, chunk: &[u8]) -> ApiResult<()> {
        let written = match self {
            Self::Plain(bounded) => bounded.write_all(chunk),
            Self::Gzip(decoder) => decoder.write_all(chunk),
        };
        written.map_err(|error| self.refusal(&error))
    }

    fn refusal(&mut self, error: &io::Error) -> ApiError {
        let bounded = match self {
            Self::Plain(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_mut(),
        };
        if let Some(refused) = bounded.refused.take() {
            return refused;
        }
        ApiError::bad_request(format!("the body can't be unpacked as gzip, which Content-Encoding says: {error}"))
    }

    fn finish(mut self) -> ApiResult<Vec<u8>> {
        if let Self::Gzip(decoder) = &mut self
            && let Err(error) = decoder.try_finish()
        {
            return Err(self.refusal(&error));
        }
        // The room is given back here: results and metadata have limits of their own.
        Ok(match &mut self {
            Self::Plain(bounded) => std::mem::take(&mut bounded.bytes),
            Self::Gzip(decoder) => std::mem::take(&mut decoder.get_mut().bytes),
        })
    }
}

/// Reads a body of at most `max` bytes, unpacked, as far as there is room.
pub(super) async fn read(
    mut payload: web::Payload,
    encoding: Encoding,
    max: usize,
    room: BodyRoom,
) -> ApiResult<Vec<u8>> {
    let reading = async {
        let mut body = Unpacked::new(encoding, max, room);
        while let Some(chunk) = payload.next().await {
            body.push(&chunk.map_err(ApiError::bad_request)?)?;
        }
        body.finish()
    };
    tokio::time::timeout(TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| Err(ApiError::bad_request("the body did not come within 60 seconds")))
}

/// Reads an agent's JSON body of at most `max` bytes, and returns its size too. Errors name the key, line and column.
pub(super) async fn json<T: DeserializeOwned>(
    payload: web::Payload,
    encoding: Encoding,
    max: usize,
    room: BodyRoom,
) -> ApiResult<(T, usize)> {
    let body = read(payload, encoding, max, room).await?;
    Ok((from_agent(&body)?, body.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body_room::BodyRooms;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use uuid::Uuid;

    #[test]
    fn a_body_takes_room_as_it_comes_and_gives_it_back() {
        let rooms = BodyRooms::new(100);
        let most = 16 * 1024 * 1024 + 64 * 1024;
        let mut body = Unpacked::new(Encoding::Plain, usize::MAX, rooms.body(Uuid::nil()));
        body.push(&vec![b' '; most]).expect("there is room");
        let mut second = Unpacked::new(Encoding::Gzip, usize::MAX, rooms.body(Uuid::nil()));
        assert_eq!(
            second.push(&packed(&[b' '; 70_000])).and_then(|()| second.finish()).map_err(|error| status(&error)),
            Err(429)
        );
        assert_eq!(body.finish().expect("whole").len(), most);
        let mut third = Unpacked::new(Encoding::Plain, 100_000, rooms.body(Uuid::nil()));
        third.push(&[b' '; 70_000]).expect("it was given back");
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("packed")
    }

    fn unpack(encoding: Encoding, max: usize, chunks: &[&[u8]]) -> Result<Vec<u8>, u16> {
        let rooms = BodyRooms::new(max);
        let mut body = Unpacked::new(encoding, max, rooms.body(Uuid::nil()));
        for chunk in chunks {
            body.push(chunk).map_err(|error| status(&error))?;
        }
        body.finish().map_err(|error| status(&error))
    }

    fn status(error: &ApiError) -> u16 {
        use actix_web::ResponseError;
        error.status_code().as_u16()
    }

    #[test]
    fn a_body_is_read_in_whatever_pieces_it_comes() {
        let text = b"{\"a\": 1}";
        assert_eq!(unpack(Encoding::Plain, 8, &[text]).as_deref(), Ok(&text[..]));
        let gzip = packed(text);
        let bytes: Vec<&[u8]> = gzip.chunks(1).collect();
        assert_eq!(unpack(Encoding::Gzip, 8, &bytes).as_deref(), Ok(&text[..]));
        // Files that are packed in pieces, or put together, have several members.
        let members = [packed(&text[..3]), packed(&text[3..])];
        assert_eq!(unpack(Encoding::Gzip, 8, &[&members[0], &members[1]]).as_deref(), Ok(&text[..]));
    }

    #[test]
    fn the_size_is_bounded_after_unpacking() {
        assert_eq!(unpack(Encoding::Plain, 8, &[b"12345", b"6789"]), Err(413));
        let bomb = packed(&vec![b' '; 50_000_000]);
        assert!(bomb.len() < 100_000);
        assert_eq!(unpack(Encoding::Gzip, 1_000_000, &[&bomb]), Err(413));
    }

    #[test]
    fn what_is_not_gzip_or_ends_too_early_is_refused() {
        assert_eq!(unpack(Encoding::Gzip, 100, &[b"{}"]), Err(400));
        let gzip = packed(b"{\"a\": 1}");
        assert_eq!(unpack(Encoding::Gzip, 100, &[&gzip[..gzip.len() - 6]]), Err(400));
        assert_eq!(unpack(Encoding::Gzip, 100, &[]), Err(400));
    }
}
