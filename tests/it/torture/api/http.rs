//! As much of HTTP/1.1 as a run needs: one GET after the other on a connection that is kept open.
//!
//! Owns the connection. It must not know what is asked. Invariant: after a request that failed or
//! was dropped the connection is closed, so no answer is taken for that of the next request.

use std::io::{Error, ErrorKind, Result};
use std::net::Ipv4Addr;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use unstale::change::Lsn;

const HEAD_BYTES_MAX: u64 = 16 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The parts of an answer that are judged.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its Consistency-Token.
    pub(super) token: Option<Lsn>,
    pub(super) etag: Option<String>,
    /// Its Cache-Status.
    pub(super) cache: String,
    pub(super) body: String,
}

#[derive(Default)]
pub(super) struct Client {
    open: Option<(u16, BufReader<TcpStream>)>,
}

impl Client {
    /// The header lines end in `\r\n` each.
    pub(super) async fn get(&mut self, port: u16, path: &str, headers: &str) -> Result<Answer> {
        let mut stream = match self.open.take() {
            Some((to, stream)) if to == port => stream,
            _ => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: api\r\n{headers}\r\n");
        stream.get_mut().write_all(request.as_bytes()).await?;
        let (answer, is_reusable) = receive(&mut stream).await?;
        if is_reusable {
            self.open = Some((port, stream));
        }
        Ok(answer)
    }
}

/// Reads an answer; whether the connection can be used again.
async fn receive(stream: &mut BufReader<TcpStream>) -> Result<(Answer, bool)> {
    let mut head = String::new();
    let mut bounded = (&mut *stream).take(HEAD_BYTES_MAX);
    while !head.ends_with("\r\n\r\n") {
        if bounded.read_line(&mut head).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let mut answer = Answer { status: status.ok_or_else(|| invalid(&head))?, ..Answer::default() };
    let mut length: Option<usize> = None;
    let mut is_reusable = true;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse().map_err(|_| invalid(&head))?),
            "connection" => is_reusable &= !value.eq_ignore_ascii_case("close"),
            "consistency-token" => answer.token = Some(value.parse().map_err(|_| invalid(&head))?),
            "etag" => answer.etag = Some(value.to_owned()),
            "cache-status" => value.clone_into(&mut answer.cache),
            _ => {}
        }
    }
    // These have no body, whatever their Content-Length.
    if !matches!(answer.status, 204 | 304) {
        let length = length.filter(|length| *length <= BODY_BYTES_MAX).ok_or_else(|| invalid(&head))?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        answer.body = String::from_utf8_lossy(&body).into_owned();
    }
    Ok((answer, is_reusable))
}

fn invalid(head: &str) -> Error {
    Error::new(ErrorKind::InvalidData, head.to_owned())
}
