//! A network in memory: hosts that listen, connections whose bytes take time, and the weather between them.
//!
//! Everything runs on the runtime's paused clock, and every draw is a function of the seed and of what is drawn for (connection,
//! direction, chunk), never of the order in which tasks happen to run: one seed, one history. Loss is what TCP makes of
//! it, a chunk that arrives a retransmission later. What happens is written into a [`Trace`], whose hash tells histories apart.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use mesh_tower::{
    config::EndpointAddress,
    connect::{Connecting, Connector, Listener, Stream, Target},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use crate::{
    trace::Trace,
    wire::{End, Wire},
};

/// What lies between the callers of a host and the host, both ways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// One way.
    pub(crate) latency: Duration,
    /// At most this much more, drawn for each chunk.
    pub(crate) jitter: Duration,
    /// How many of 1,000 chunks are lost and sent again.
    pub(crate) loss: u32,
    /// Nothing arrives, nobody is told.
    pub(crate) blackhole: bool,
    /// The kernel accepts connections, the process reads and writes nothing.
    pub(crate) frozen: bool,
    /// New connections end early.
    pub(crate) cut: Option<Cut>,
}

/// How a connection ends before its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// After fewer bytes, from the server or else the caller, than this; how many is drawn for each connection.
    pub(crate) within: u64,
    /// By a reset; else as if the side that is cut had finished.
    pub(crate) reset: bool,
    /// It is the caller's bytes that end, not the server's.
    pub(crate) upload: bool,
}

impl Default for Weather {
    fn default() -> Self {
        let (latency, jitter) = (Duration::from_millis(1), Duration::ZERO);
        Self { latency, jitter, loss: 0, blackhole: false, frozen: false, cut: None }
    }
}

/// The network; clones share it.
#[derive(Clone)]
pub(crate) struct Net {
    seed: u64,
    trace: Trace,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<SocketAddr, Host>,
    connections: u64,
}

struct Host {
    weather: watch::Sender<Weather>,
    backlog: Option<mpsc::UnboundedSender<(End, SocketAddr)>>,
    wires: Vec<Weak<Wire>>,
    /// Connections asked for, refused ones too.
    asked: u64,
}

impl Default for Host {
    fn default() -> Self {
        Self { weather: watch::Sender::new(Weather::default()), backlog: None, wires: Vec::new(), asked: 0 }
    }
}

impl Net {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        Self { seed, trace, state: Arc::default() }
    }

    /// Listens at an address, in place of whoever did.
    pub(crate) fn listen(&self, address: SocketAddr) -> SimListener {
        let (backlog, incoming) = mpsc::unbounded_channel();
        self.lock().hosts.entry(address).or_default().backlog = Some(backlog);
        SimListener { address, incoming }
    }

    /// Changes the weather of a host.
    pub(crate) fn weather(&self, address: SocketAddr, change: impl FnOnce(&mut Weather)) {
        let mut state = self.lock();
        let host = state.hosts.entry(address).or_default();
        host.weather.send_modify(change);
        let wires: Vec<_> = host.wires.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        wires.iter().for_each(|wire| wire.wake());
    }

    /// Nobody listens there any more; connections stay.
    pub(crate) fn close(&self, address: SocketAddr) {
        self.trace.note("close", address.port(), 0);
        self.lock().hosts.entry(address).or_default().backlog = None;
    }

    /// The host dies: nobody listens, every connection is reset.
    pub(crate) fn kill(&self, address: SocketAddr) {
        self.close(address);
        for wire in self.wires(address) {
            wire.reset();
        }
    }

    /// Connections to the host that either side still holds.
    pub(crate) fn open_connections(&self, address: SocketAddr) -> usize {
        self.wires(address).iter().filter(|wire| wire.is_open()).count()
    }

    /// How many connections to the host were asked for since the beginning.
    pub(crate) fn asked(&self, address: SocketAddr) -> u64 {
        self.lock().hosts.get(&address).map_or(0, |host| host.asked)
    }

    fn wires(&self, address: SocketAddr) -> Vec<Arc<Wire>> {
        let mut state = self.lock();
        let host = state.hosts.entry(address).or_default();
        host.wires.retain(|wire| wire.strong_count() > 0);
        host.wires.iter().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<End> {
        let (number, mut weather) = {
            let mut state = self.lock();
            state.connections += 1;
            let number = state.connections;
            let host = state.hosts.entry(address).or_default();
            host.asked += 1;
            (number, host.weather.subscribe())
        };
        self.trace.note("connect", address.port(), number);
        // A caller of a black hole sends its SYN until somebody answers.
        weather.wait_for(|weather| !weather.blackhole).await.map_err(|_| io::ErrorKind::NotConnected)?;
        let current = *weather.borrow();
        sleep(2 * current.latency).await;
        let wire = Arc::new(Wire::new(self.seed ^ number, weather, self.trace.clone(), address.port()));
        let mut state = self.lock();
        let host = state.hosts.entry(address).or_default();
        let (near, far) = wire.ends();
        let caller = SocketAddr::from(([10, 255, 0, 1], 1024 + (number % 60_000) as u16));
        let accepted = host.backlog.as_ref().is_some_and(|backlog| backlog.send((far, caller)).is_ok());
        if !accepted {
            self.trace.note("refused", address.port(), number);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if host.wires.len() % 64 == 63 {
            host.wires.retain(|wire| wire.strong_count() > 0);
        }
        host.wires.push(Arc::downgrade(&wire));
        Ok(near)
    }
}

impl Connector for Net {
    fn connect<'a>(&'a self, target: Target<'a>) -> Connecting<'a> {
        Box::pin(async move {
            let address = match target.address {
                EndpointAddress::Socket(address) => *address,
                EndpointAddress::Host(..) | EndpointAddress::Unix(_) => return Err(io::ErrorKind::Unsupported.into()),
            };
            self.dial(address).await.map(Stream::new)
        })
    }
}

/// Takes the connections of one address.
pub(crate) struct SimListener {
    address: SocketAddr,
    incoming: mpsc::UnboundedReceiver<(End, SocketAddr)>,
}

impl Listener for SimListener {
    type Io = End;

    async fn accept(&mut self) -> io::Result<(End, SocketAddr)> {
        match self.incoming.recv().await {
            Some(accepted) => Ok(accepted),
            // Somebody else listens here now, or nobody: what is left of this server only waits for its end.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// When a chunk sent now is there, by the weather alone.
pub(crate) fn travel(weather: &Weather, draw: impl Fn(u64) -> u64) -> Instant {
    let jitter = weather.jitter.as_micros() as u64;
    let mut time = weather.latency + Duration::from_micros(if jitter == 0 { 0 } else { draw(0) % jitter });
    let mut wait = Duration::from_millis(200);
    for again in 1..8 {
        if draw(again) % 1_000 >= u64::from(weather.loss) {
            break;
        }
        time += wait;
        wait *= 2;
    }
    Instant::now() + time
}
