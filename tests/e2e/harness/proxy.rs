//! A network between an agent and its daemon that a test can cut, slow down and heal.
//!
//! It behaves as a network does under TCP: what cannot get through is held and not lost, also the news
//! that one side has hung up, and a connection can still be begun, because nobody is told that it
//! leads nowhere.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// One way through a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From the agent to the daemon.
    Up,
    /// From the daemon to the agent.
    Down,
}

/// Both of them.
pub(crate) const BOTH: [Way; 2] = [Way::Up, Way::Down];

#[derive(Default)]
struct State {
    held: [bool; 2],
    /// What each piece takes to get through.
    delay: Duration,
    connections: Vec<TcpStream>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Dropping it ends every connection.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Forwards to `server`, an address as the daemon announces it.
    pub(crate) fn to(server: &str) -> Self {
        let server: SocketAddr = server.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let state = shared.clone();
        thread::spawn(move || {
            for agent in listener.incoming() {
                if state.state.lock().unwrap().closed {
                    return;
                }
                if let (Ok(agent), Ok(daemon)) = (agent, TcpStream::connect(server)) {
                    state.join(agent, daemon);
                }
            }
        });
        Self { address, shared }
    }

    /// Where the agent finds it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Nothing gets through any more.
    pub(crate) fn hold(&self, ways: &[Way]) {
        self.change(|state| ways.iter().for_each(|&way| state.held[way as usize] = true));
    }

    /// Everything gets through, what was held first.
    pub(crate) fn heal(&self) {
        self.change(|state| state.held = [false; 2]);
    }

    /// Each piece takes so long from now on, either way.
    pub(crate) fn delay(&self, by: Duration) {
        self.change(|state| state.delay = by);
    }

    /// Connections are reset, as by a router that starts anew. New ones are let through.
    pub(crate) fn reset(&self) {
        self.change(State::reset);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock().unwrap());
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|state| {
            state.closed = true;
            state.reset();
        });
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn reset(&mut self) {
        for connection in self.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    /// Carries a connection, each way with a thread that takes in and one that gives out.
    fn join(self: &Arc<Self>, agent: TcpStream, daemon: TcpStream) {
        let _ = (agent.set_nodelay(true), daemon.set_nodelay(true));
        let copy = |stream: &TcpStream| stream.try_clone().unwrap();
        self.state.lock().unwrap().connections.extend([copy(&agent), copy(&daemon)]);
        for (way, mut from, to) in
            [(Way::Up, copy(&agent), copy(&daemon)), (Way::Down, daemon, agent)]
        {
            // So much is on its way at most; a sender that has more waits, as it does on a network.
            let (sender, pieces) = sync_channel(256);
            let (taking, giving) = (self.clone(), self.clone());
            thread::spawn(move || taking.take_in(&mut from, &sender));
            thread::spawn(move || giving.give_out(way, to, &pieces));
        }
    }

    fn take_in(&self, from: &mut TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>) {
        let mut buffer = vec![0; 1 << 14];
        loop {
            // None: the sender has hung up.
            let count = from.read(&mut buffer).unwrap_or(0);
            let due = Instant::now() + self.state.lock().unwrap().delay;
            if pieces.send((due, buffer[..count].to_vec())).is_err() || count == 0 {
                return;
            }
        }
    }

    fn give_out(&self, way: Way, mut to: TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>) {
        while let Ok((due, piece)) = pieces.recv() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let stops = |state: &mut State| state.held[way as usize] && !state.closed;
            let state = self.changed.wait_while(self.state.lock().unwrap(), stops).unwrap();
            drop(state);
            if piece.is_empty() || to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}
