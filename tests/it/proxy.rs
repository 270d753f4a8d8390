//! A TCP proxy that tests put in front of PostgreSQL or Redis to break the connection to it.
//!
//! Owns both sockets of each connection and the faults on them. It must not know either protocol:
//! it moves chunks, each the result of one read. Invariant: what happens to a byte is decided and
//! done under one lock, so once `set` or `cut` has returned, nothing goes through under the
//! previous rule.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, Scope};
use std::time::{Duration, Instant};

use crate::support::EVENT_MAX;

const CHUNK_BYTES_MAX: usize = 16 * 1024;

/// How long the server may take to accept. Without a limit, a full backlog would block `drop` for
/// minutes.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How long a write to a peer that does not read may hold the lock, and how long the lock is then
/// left to others.
const STALL: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Existing connections are cut and new ones closed at once, without a connection to the
    /// server.
    Refuse,
    /// Both ends see an open but silent peer: no byte and no end of stream goes through until the
    /// fault changes.
    HalfOpen,
    /// Each chunk goes through at least this long after it arrived. At most one waits; the next
    /// stay in the socket.
    Delay(Duration),
    /// Each byte is written by itself. How many a peer reads at once depends on its timing.
    OneByte,
    /// This number of chunks goes through, counted over both directions and all connections; then
    /// as `HalfOpen`.
    HoldAfter(usize),
    /// Requests go through. The first byte that the server answers is dropped and cuts the
    /// connection.
    CutAfterRequest,
}

pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, and forwards to the target port there, even if nothing
    /// listens on it yet.
    pub(crate) fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        shared.target.store(target_port, Ordering::Relaxed);
        let serving = Arc::clone(&shared);
        let accepting = Some(thread::spawn(move || serving.serve(&listener)));
        Self { port, shared, accepting }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes the fault of existing and future connections, from this moment on.
    pub(crate) fn set(&self, fault: Fault) {
        self.shared.change(|state| {
            if state.fault != fault {
                // Only what is sent while `CutAfterRequest` is in force counts as its request.
                state.connections.values_mut().for_each(|connection| connection.requested = false);
            }
            state.fault = fault;
            (state.passed, state.holds) = (0, false);
            if fault == Fault::Refuse {
                state.cut_all();
            }
        });
    }

    /// Connects later clients to another server on 127.0.0.1.
    pub(crate) fn retarget(&self, port: u16) {
        self.shared.target.store(port, Ordering::Relaxed);
    }

    /// Cuts every connection there is; later ones are served.
    pub(crate) fn cut(&self) {
        self.shared.change(State::cut_all);
    }

    /// How many connections were accepted and are not yet closed by both ends.
    pub(crate) fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// Whether `HoldAfter` is holding something back.
    pub(crate) fn holds(&self) -> bool {
        self.shared.lock().holds
    }

    /// How many replies `CutAfterRequest` has swallowed so far.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.lock().cuts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.closing = true;
            state.cut_all();
        });
        // The accept thread checks `closing` after each accept, so it gets one more connection.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// What to do with the rest of a chunk.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Look again when something changes, at the latest after this time.
    Hold(Duration),
    /// Write at most this many bytes.
    Pass(usize),
    Cut,
}

impl Fault {
    /// `waited` is the time since the chunk arrived; `requested`, whether the client sent anything
    /// under this fault.
    fn step(self, direction: Direction, requested: bool, waited: Duration) -> Step {
        match self {
            Self::HalfOpen => Step::Hold(Duration::MAX),
            Self::Delay(delay) if waited < delay => Step::Hold(delay - waited),
            Self::OneByte => Step::Pass(1),
            Self::CutAfterRequest if direction == Direction::ToClient && requested => Step::Cut,
            Self::None | Self::Refuse | Self::Delay(_) | Self::HoldAfter(_) | Self::CutAfterRequest => {
                Step::Pass(CHUNK_BYTES_MAX)
            }
        }
    }
}

#[derive(Default)]
struct State {
    fault: Fault,
    closing: bool,
    cuts: usize,
    /// Chunks that went through since the fault was set.
    passed: usize,
    holds: bool,
    opened: u64,
    /// By number. A pump whose connection is not in here is done.
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    client: Arc<TcpStream>,
    server: Arc<TcpStream>,
    requested: bool,
    /// One direction has ended; the end of the other one ends the connection.
    half_closed: bool,
}

impl State {
    fn admits(&self) -> bool {
        !self.closing && self.fault != Fault::Refuse
    }

    /// The fault as it applies to a chunk; `HoldAfter` is noted when its count is full.
    fn in_force(&mut self, has_bytes: bool) -> Fault {
        match self.fault {
            Fault::HoldAfter(chunks) if self.passed >= chunks => {
                self.holds |= has_bytes;
                Fault::HalfOpen
            }
            fault => fault,
        }
    }

    fn insert(&mut self, client: Arc<TcpStream>, server: Arc<TcpStream>) -> Option<u64> {
        if !self.admits() {
            return None;
        }
        self.opened += 1;
        self.connections.insert(self.opened, Connection { client, server, requested: false, half_closed: false });
        Some(self.opened)
    }

    /// A pump that waits in a read is woken by a shutdown, not by a close.
    fn cut(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            for socket in [connection.client, connection.server] {
                // The peer may have reset it already, which is just as good.
                socket.shutdown(Shutdown::Both).ok();
            }
        }
    }

    fn cut_all(&mut self) {
        while let Some((&id, _)) = self.connections.first_key_value() {
            self.cut(id);
        }
    }

    fn end(&mut self, id: u64) {
        match self.connections.get_mut(&id) {
            Some(connection) if !connection.half_closed => connection.half_closed = true,
            _ => self.cut(id),
        }
    }
}

#[derive(Default)]
struct Shared {
    target: AtomicU16,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics under this lock")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time_max: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time_max).expect("no thread panics under this lock").0
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Accepts until the proxy is dropped; the scope then waits for the pumps.
    fn serve(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            loop {
                let accepted = listener.accept();
                if self.lock().closing {
                    return;
                }
                if accepted.and_then(|(client, _)| self.open(scope, client)).is_err() {
                    // The server is unavailable, or this process is out of descriptors: do not loop
                    // busily.
                    thread::sleep(STALL);
                }
            }
        });
    }

    fn open<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, client: TcpStream) -> io::Result<()> {
        if !self.lock().admits() {
            return Ok(());
        }
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, self.target.load(Ordering::Relaxed)));
        let server = TcpStream::connect_timeout(&target, CONNECT_MAX)?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
            socket.set_write_timeout(Some(STALL))?;
        }
        let (client, server) = (Arc::new(client), Arc::new(server));
        let (from, to) = (Arc::clone(&client), Arc::clone(&server));
        // The fault may have changed during the connect.
        let Some(id) = self.lock().insert(Arc::clone(&client), Arc::clone(&server)) else { return Ok(()) };
        scope.spawn(move || self.pump(id, Direction::ToServer, &from, &to));
        scope.spawn(move || self.pump(id, Direction::ToClient, &server, &client));
        Ok(())
    }

    fn pump(&self, id: u64, direction: Direction, mut from: &TcpStream, to: &TcpStream) {
        let mut buffer = [0; CHUNK_BYTES_MAX];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A reset is forwarded as an end of stream, and held back like one while the fault
                // holds bytes.
                Err(_) => 0,
            };
            if !self.deliver(id, direction, to, &buffer[..length]) {
                return;
            }
        }
    }

    /// Writes a chunk as the fault permits; an empty one is the end of the stream. Returns whether
    /// more may follow.
    fn deliver(&self, id: u64, direction: Direction, mut to: &TcpStream, mut chunk: &[u8]) -> bool {
        let arrived = Instant::now();
        let ends = chunk.is_empty();
        let mut state = self.lock();
        loop {
            let fault = state.in_force(!ends);
            let Some(connection) = state.connections.get_mut(&id) else { return false };
            match fault.step(direction, connection.requested && !ends, arrived.elapsed()) {
                Step::Hold(time_max) => state = self.wait(state, time_max),
                Step::Cut => {
                    state.cuts += 1;
                    break;
                }
                Step::Pass(_) if ends => {
                    to.shutdown(Shutdown::Write).ok();
                    state.end(id);
                    return false;
                }
                Step::Pass(bytes_max) => match to.write(&chunk[..chunk.len().min(bytes_max)]) {
                    Ok(written) => {
                        connection.requested |= fault == Fault::CutAfterRequest && direction == Direction::ToServer;
                        chunk = &chunk[written..];
                        if chunk.is_empty() {
                            state.passed += 1;
                            return true;
                        }
                        // The lock is not fair: between two bytes, others that wait for it get a
                        // chance.
                        drop(state);
                        thread::yield_now();
                        state = self.lock();
                    }
                    Err(error) if stalled(&error) => state = self.wait(state, STALL),
                    Err(_) => break,
                },
            }
        }
        state.cut(id);
        self.changed.notify_all();
        false
    }
}

fn stalled(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// A server that echoes what it reads and reports each read to the test; an empty read is the end
/// of a connection.
fn echo() -> (u16, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, reads) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut buffer = [0; CHUNK_BYTES_MAX];
                loop {
                    let length = stream.read(&mut buffer).unwrap_or(0);
                    // A test that does not count reads has dropped the receiver.
                    sender.send(buffer[..length].to_vec()).ok();
                    if length == 0 {
                        return;
                    }
                    stream.write_all(&buffer[..length]).ok();
                }
            });
        }
    });
    (port, reads)
}

fn client(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
    client.set_read_timeout(Some(EVENT_MAX)).unwrap();
    client
}

fn assert_echo(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    assert_reads(client, bytes);
}

fn assert_reads(client: &mut TcpStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    client.read_exact(&mut read).unwrap();
    assert!(read == expected);
}

/// Neither a byte nor the end of the stream arrives; an echo would take a small part of this time.
fn assert_silent(client: &mut TcpStream) {
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = client.read(&mut [0]).expect_err("something went through");
    assert!(stalled(&error), "{error}");
    client.set_read_timeout(Some(EVENT_MAX)).unwrap();
}

/// The connection has ended, by an end of stream or a reset, and no byte came before.
fn assert_cut(client: &mut TcpStream) {
    match client.read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert!(!stalled(&error), "{error}"),
    }
}

#[test]
fn each_fault_does_what_it_says_to_a_chunk() {
    use Direction::{ToClient, ToServer};
    const SECOND: Duration = Duration::from_secs(1);
    const WHOLE: Step = Step::Pass(CHUNK_BYTES_MAX);
    let check = |fault: Fault, direction: Direction, requested: bool, expected: Step| {
        assert_eq!(fault.step(direction, requested, SECOND), expected, "{fault:?} {direction:?} {requested}");
    };
    check(Fault::None, ToClient, true, WHOLE);
    check(Fault::HalfOpen, ToServer, false, Step::Hold(Duration::MAX));
    check(Fault::Delay(3 * SECOND), ToServer, false, Step::Hold(2 * SECOND));
    check(Fault::Delay(SECOND), ToServer, false, WHOLE);
    check(Fault::OneByte, ToClient, false, Step::Pass(1));
    check(Fault::CutAfterRequest, ToServer, true, WHOLE);
    check(Fault::CutAfterRequest, ToClient, false, WHOLE);
    check(Fault::CutAfterRequest, ToClient, true, Step::Cut);
}

#[test]
fn without_a_fault_all_bytes_and_both_ends_of_stream_are_forwarded() {
    let proxy = Proxy::start(echo().0);
    let mut client = client(&proxy);
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(4 * CHUNK_BYTES_MAX + 1).collect();
    assert_echo(&mut client, &sent);
    assert_eq!((proxy.connections(), proxy.cuts()), (1, 0));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_resets_ends_only_its_own_connection() {
    let (port, reads) = echo();
    let proxy = Proxy::start(port);
    let (mut resetting, mut other) = (client(&proxy), client(&proxy));
    assert_echo(&mut other, b"before");
    resetting.write_all(b"never read").unwrap();
    resetting.peek(&mut [0]).unwrap();
    // Closing with unread bytes is a reset.
    drop(resetting);
    while !reads.recv_timeout(EVENT_MAX).unwrap().is_empty() {}
    assert_echo(&mut other, b"after");
}

#[test]
fn refused_connections_do_not_reach_the_server() {
    let (port, reads) = echo();
    let proxy = Proxy::start(port);
    let mut existing = client(&proxy);
    assert_echo(&mut existing, b"x");
    proxy.set(Fault::Refuse);
    assert_eq!(proxy.connections(), 0);
    assert_cut(&mut existing);
    assert_cut(&mut client(&proxy));
    proxy.set(Fault::None);
    assert_echo(&mut client(&proxy), b"y");
    let seen: Vec<u8> = reads.try_iter().flatten().collect();
    assert_eq!(seen, b"xy");
}

#[test]
fn held_bytes_arrive_when_the_fault_ends() {
    let proxy = Proxy::start(echo().0);
    for fault in [Fault::HalfOpen, Fault::Delay(Duration::from_secs(3600))] {
        let mut existing = client(&proxy);
        assert_echo(&mut existing, b"before");
        proxy.set(fault);
        let mut new = client(&proxy);
        for client in [&mut existing, &mut new] {
            client.write_all(b"held").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_silent(client);
        }
        proxy.set(Fault::Delay(Duration::from_millis(1)));
        for client in [&mut existing, &mut new] {
            assert_reads(client, b"held");
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        proxy.set(Fault::None);
    }
}

#[test]
fn chunks_after_the_limit_are_held_and_dropped_with_their_connection() {
    let (port, reads) = echo();
    let proxy = Proxy::start(port);
    let mut client = client(&proxy);
    assert_echo(&mut client, b"before");
    proxy.set(Fault::HoldAfter(3));
    assert_echo(&mut client, b"two");
    assert!(!proxy.holds());
    client.write_all(b"three").unwrap();
    crate::support::wait_until(EVENT_MAX, "the reply is held", || proxy.holds());
    assert_silent(&mut client);
    proxy.cut();
    proxy.set(Fault::None);
    assert!(!proxy.holds());
    assert_cut(&mut client);
    let mut read = Vec::new();
    while !read.ends_with(b"three") {
        read.extend(reads.recv_timeout(EVENT_MAX).unwrap());
    }
    assert_eq!(read, b"beforetwothree", "the request went through, and its reply did not");
}

#[test]
fn byte_by_byte_writes_cause_several_reads() {
    let (port, reads) = echo();
    let proxy = Proxy::start(port);
    proxy.set(Fault::OneByte);
    let sent = [7; 4096];
    assert_echo(&mut client(&proxy), &sent);
    assert!(reads.try_iter().next().unwrap().len() < sent.len());
}

#[test]
fn a_request_arrives_and_its_reply_is_dropped() {
    let (port, reads) = echo();
    let proxy = Proxy::start(port);
    let mut existing = client(&proxy);
    assert_echo(&mut existing, b"x");
    proxy.set(Fault::CutAfterRequest);
    for cuts in 1..3 {
        existing.write_all(b"request").unwrap();
        assert_cut(&mut existing);
        assert_eq!((proxy.connections(), proxy.cuts()), (0, cuts));
        existing = client(&proxy);
    }
    proxy.set(Fault::None);
    assert_echo(&mut client(&proxy), b"y");
    let seen: Vec<u8> = reads.try_iter().flatten().collect();
    assert_eq!(seen, b"xrequestrequesty");
    assert_eq!(proxy.cuts(), 2);
}

#[test]
fn data_without_a_request_is_not_a_reply() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port());
    proxy.set(Fault::CutAfterRequest);
    let mut client = client(&proxy);
    client.write_all(b"request").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    assert_reads(&mut server, b"request");
    proxy.set(Fault::None);
    proxy.set(Fault::CutAfterRequest);
    server.write_all(b"news").unwrap();
    assert_reads(&mut client, b"news");
    assert_eq!(proxy.cuts(), 0);
}

#[test]
fn cut_closes_existing_connections_and_serves_new_ones() {
    let (port, reads) = echo();
    let proxy = Proxy::start(port);
    let mut existing = client(&proxy);
    assert_echo(&mut existing, b"x");
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
    assert_cut(&mut existing);
    while !reads.recv_timeout(EVENT_MAX).unwrap().is_empty() {}
    assert_echo(&mut client(&proxy), b"y");
}

/// Its threads hold the state, so the state is dropped after they end. One pump waits in a read,
/// the other in a stalled write or a hold.
#[test]
fn drop_ends_every_thread() {
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for fault in [Fault::None, Fault::HalfOpen] {
        let proxy = Proxy::start(mute.local_addr().unwrap().port());
        let shared = Arc::downgrade(&proxy.shared);
        let mut flooding = client(&proxy);
        flooding.write_all(b"x").unwrap();
        let (mut server, _) = mute.accept().unwrap();
        assert_reads(&mut server, b"x");
        proxy.set(fault);
        flooding.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        while flooding.write(&[0; CHUNK_BYTES_MAX]).is_ok() {}
        drop(proxy);
        assert!(shared.upgrade().is_none(), "{fault:?}");
        assert_cut(&mut flooding);
    }
}
