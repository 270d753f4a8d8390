//! An HTTP client for the API over plain sockets. It can also misbehave.
//!
//! Owns sockets and the parsing of answers. It must not know what is requested. Invariant: it never
//! waits forever for an answer or for the end of the connection.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;
use unstale::change::Lsn;

use crate::support::{EVENT_MAX, wait_until};

/// The address of the server. Each request has a connection of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    address: SocketAddr,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// The same, for another thread.
    pub(crate) fn client(&self) -> Self {
        *self
    }

    pub(crate) fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }

    pub(crate) fn try_connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        // Long enough to see the server disconnect an idle client.
        stream.set_read_timeout(Some(2 * EVENT_MAX))?;
        stream.set_write_timeout(Some(EVENT_MAX))?;
        stream.set_nodelay(true)?;
        Ok(Connection { reader: BufReader::new(stream) })
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request("GET", path, headers)
    }

    pub(crate) fn head(&self, path: &str) -> Answer {
        self.request("HEAD", path, &[])
    }

    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut connection = self.connect();
        connection.send(&request(method, path, &[headers, &[("Connection", "close")]].concat()));
        connection.answer(method).unwrap_or_else(|| panic!("{method} {path}: the connection ended without an answer"))
    }

    /// Everything the server sends in return for these bytes, until it closes the connection.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut connection = self.connect();
        connection.send(bytes);
        connection.rest()
    }

    /// Repeats the request until the answer comes from the cache.
    pub(crate) fn warm(&self, path: &str) -> Answer {
        self.wait_for(path, "it comes from the cache", Answer::is_hit)
    }

    /// Repeats the request until the answer is as expected.
    pub(crate) fn wait_for(&self, path: &str, what: &str, mut is_so: impl FnMut(&Answer) -> bool) -> Answer {
        let mut last = self.get(path);
        wait_until(EVENT_MAX, &format!("{path}: {what}"), || {
            let so = is_so(&last);
            if !so {
                last = self.get(path);
            }
            so
        });
        last
    }

    /// A counter of a read in `/stats`.
    pub(crate) fn stat(&self, read: &str, word: &str) -> u64 {
        let stats = self.get("/stats").json();
        stats["reads"][read][word].as_u64().unwrap_or_else(|| panic!("no {word} of {read} in {stats:#}"))
    }
}

/// The bytes of a request without a body.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    (text + "\r\n").into_bytes()
}

/// One connection, kept as long as the server keeps it.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Write errors are ignored: a server that has answered already may close without reading the
    /// rest.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// Shuts down one direction or both.
    pub(crate) fn shut(&mut self, how: Shutdown) {
        let _ = self.reader.get_mut().shutdown(how);
    }

    /// The next answer; None at the end of the connection.
    pub(crate) fn answer(&mut self, method: &str) -> Option<Answer> {
        Answer::read(&mut self.reader, method)
    }

    /// Everything until the end of the connection.
    pub(crate) fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.reader.read_to_end(&mut bytes) {
            assert!(is_end(&error), "{error}, after {:?}", String::from_utf8_lossy(&bytes));
        }
        bytes
    }
}

/// A reset, which a server causes by closing with unread input.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// All answers in these bytes.
    pub(crate) fn all(mut bytes: &[u8], method: &str) -> Vec<Self> {
        std::iter::from_fn(|| Self::read(&mut bytes, method)).collect()
    }

    fn read(reader: &mut impl BufRead, method: &str) -> Option<Self> {
        let status = line(reader)?;
        let code = status.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let code: u16 = code.unwrap_or_else(|| panic!("no answer begins with {status:?}"));
        let mut headers = Vec::new();
        while let Some(line) = line(reader).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if (100..200).contains(&code) {
            return Self::read(reader, method);
        }
        let mut answer = Self { status: code, headers, body: Vec::new() };
        if method != "HEAD" && !matches!(code, 204 | 304) {
            answer.body = answer.read_body(reader);
        }
        Some(answer)
    }

    fn read_body(&self, reader: &mut impl BufRead) -> Vec<u8> {
        let mut body = Vec::new();
        if self.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = line(reader).unwrap();
                let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).unwrap();
                let start = body.len();
                body.resize(start + size, 0);
                reader.read_exact(&mut body[start..]).unwrap();
                line(reader).unwrap();
                if size == 0 {
                    return body;
                }
            }
        }
        match self.header("content-length") {
            Some(length) => {
                body.resize(length.parse().unwrap(), 0);
                reader.read_exact(&mut body).unwrap();
            }
            None => {
                reader.read_to_end(&mut body).unwrap();
            }
        }
        body
    }

    /// The first header of this name, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Every header of this name, joined as HTTP joins them.
    pub(crate) fn all_of(&self, name: &str) -> String {
        let values = self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The problem type; everything else that a problem must have is checked.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(problem["title"].is_string(), "{self:?}");
        assert_eq!(problem["instance"].as_str(), self.header("x-request-id"), "{self:?}");
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        problem["type"].as_str().unwrap().strip_prefix("urn:unstale:").unwrap().to_owned()
    }

    /// The `Cache-Status`.
    pub(crate) fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_default()
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.cache_status().split(';').any(|part| part.trim() == "hit")
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.cache_status().split(';').any(|part| part.trim() == "stored")
    }

    pub(crate) fn etag(&self) -> &str {
        self.header("etag").unwrap_or_else(|| panic!("no ETag: {self:?}"))
    }

    /// The position in the Consistency-Token.
    pub(crate) fn token(&self) -> Lsn {
        let token = self.header("consistency-token").unwrap_or_else(|| panic!("no token: {self:?}"));
        token.parse().unwrap()
    }
}

/// A line without its end; None at the end of the stream.
fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    match reader.read_until(b'\n', &mut bytes) {
        Ok(0) => None,
        Ok(_) => Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) if is_end(&error) => None,
        Err(error) => panic!("no answer came: {error}"),
    }
}
