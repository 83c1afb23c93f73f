//! Two connections, the bytes between them, and what their users see.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dynamo_wire::{
    CancelKind, CancelReason, Config, Connection, ConnectionError, Events, Failure, FailureCode,
    ITEM_OVERHEAD, Item, ItemQueue, Message, Request, Role, StreamId,
};

/// Limits so small that short tests meet them.
pub(crate) fn small_config() -> Config {
    Config {
        max_message: 300_000,
        stream_credit: 32 * 1024,
        connection_credit: 64 * 1024,
        max_streams: 64,
        reassembly_budget: 400_000,
        send_buffer: 4_000_000,
        stall_limit: Duration::from_secs(3600),
        ..Config::standard()
    }
}

/// What the user of one end sees of one stream.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) request: Option<Request>,
    pub(crate) accepted: bool,
    pub(crate) inbox: ItemQueue,
    pub(crate) taken: Vec<Vec<u8>>,
    pub(crate) ended: bool,
    pub(crate) failure: Option<Failure>,
    pub(crate) cancelled: Option<(CancelKind, CancelReason)>,
}

#[derive(Default)]
pub(crate) struct User {
    pub(crate) seen: BTreeMap<u32, Seen>,
    pub(crate) refuse: Option<FailureCode>,
    pub(crate) gone: Vec<(Option<String>, bool)>,
    /// Every event, as text.
    pub(crate) log: Vec<String>,
}

impl User {
    pub(crate) fn stream(&mut self, id: StreamId) -> &mut Seen {
        self.seen.entry(id.get()).or_default()
    }
}

impl Events<()> for User {
    fn request(&mut self, id: StreamId, request: Request, more: bool) -> Result<(), Failure> {
        self.log.push(format!("{} request {} {} {more}", id.get(), request.id, request.payload.len()));
        if let Some(code) = self.refuse {
            return Err(Failure::new(code, "refused"));
        }
        self.stream(id).request = Some(request);
        Ok(())
    }

    fn accepted(&mut self, _: &mut (), id: StreamId) {
        self.log.push(format!("{} accepted", id.get()));
        self.stream(id).accepted = true;
    }

    fn item(&mut self, _: &mut (), id: StreamId, item: &[u8]) {
        self.log.push(format!("{} item {item:?}", id.get()));
        self.stream(id).inbox.push(item);
    }

    fn message(&mut self, _: &mut (), id: StreamId, message: Message) {
        self.log.push(format!("{} message {}", id.get(), message.bytes.len()));
        self.stream(id).inbox.push_message(message);
    }

    fn ended(&mut self, _: &mut (), id: StreamId) {
        self.log.push(format!("{} ended", id.get()));
        self.stream(id).ended = true;
    }

    fn failed(&mut self, _: &mut (), id: StreamId, failure: Failure) {
        self.log.push(format!("{} failed {failure:?}", id.get()));
        self.stream(id).failure = Some(failure);
    }

    fn cancelled(&mut self, _: &mut (), id: StreamId, kind: CancelKind, reason: CancelReason) {
        self.log.push(format!("{} cancelled {kind:?} {reason:?}", id.get()));
        self.stream(id).cancelled = Some((kind, reason));
    }

    fn go_away(&mut self, path: Option<&str>, back: bool) {
        self.gone.push((path.map(str::to_owned), back));
    }
}

pub(crate) struct End {
    pub(crate) connection: Connection<()>,
    pub(crate) user: User,
    /// Output on its way to the other end.
    pub(crate) wire: Vec<u8>,
}

impl End {
    fn new(role: Role, config: Config, now: Instant) -> Self {
        Self { connection: Connection::new(role, config, now), user: User::default(), wire: Vec::new() }
    }

    fn take_output(&mut self, now: Instant) {
        let mut out = Vec::new();
        self.connection.take_output(now, &mut out);
        self.wire.extend_from_slice(&out);
    }

    /// The reader of a stream takes its next item.
    pub(crate) fn take(&mut self, id: StreamId) -> bool {
        let seen = self.user.stream(id);
        let item = match seen.inbox.front() {
            None => return false,
            Some(Item::Small(item)) => item.to_vec(),
            Some(Item::Message(message)) => message.bytes.to_vec(),
        };
        match seen.inbox.pop() {
            Some(message) => self.connection.take_message(id, &message),
            None => {
                let cost = item.len() + ITEM_OVERHEAD;
                self.connection.consumed(id, cost as u32);
                self.connection.consumed_connection(cost as u64);
            }
        }
        self.user.stream(id).taken.push(item);
        true
    }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) ends: [End; 2],
}

impl World {
    pub(crate) fn new(configs: [Config; 2]) -> Self {
        let now = Instant::now();
        let [dialer, acceptor] = configs;
        Self { now, ends: [End::new(Role::Dialer, dialer, now), End::new(Role::Acceptor, acceptor, now)] }
    }

    pub(crate) fn connected(config: &Config) -> Self {
        let mut world = Self::new([config.clone(), config.clone()]);
        world.settle();
        world
    }

    /// Moves up to `most` bytes from one end to the other, in chunks.
    pub(crate) fn transfer(
        &mut self,
        from: usize,
        most: usize,
        chunk: usize,
    ) -> Result<usize, ConnectionError> {
        let [first, second] = &mut self.ends;
        let (from, to) = if from == 0 { (first, second) } else { (second, first) };
        if from.wire.is_empty() {
            from.take_output(self.now);
        }
        let count = from.wire.len().min(most);
        for bytes in from.wire[..count].chunks(chunk.max(1)) {
            to.connection.handle_input(self.now, bytes, &mut to.user)?;
        }
        from.wire.drain(..count);
        Ok(count)
    }

    /// Moves all bytes there are, both ways, until there are none.
    pub(crate) fn settle(&mut self) {
        while self.transfer(0, usize::MAX, usize::MAX).unwrap()
            + self.transfer(1, usize::MAX, usize::MAX).unwrap()
            > 0
        {}
    }

    /// Like settling, with all readers reading.
    pub(crate) fn drain(&mut self) {
        loop {
            self.settle();
            let mut took = false;
            for end in &mut self.ends {
                let ids: Vec<StreamId> = end.user.seen.keys().map(|&id| id_of(id)).collect();
                for id in ids {
                    while end.take(id) {
                        took = true;
                    }
                }
            }
            let idle = self.ends.iter().all(|end| end.wire.is_empty() && !end.connection.has_output());
            if !took && idle {
                return;
            }
        }
    }

    pub(crate) fn tick(&mut self, by: Duration) -> Result<(), ConnectionError> {
        self.now += by;
        for end in &mut self.ends {
            end.connection.handle_timeout(self.now, &mut end.user)?;
        }
        Ok(())
    }

    pub(crate) fn open(&mut self, from: usize, payload: &[u8]) -> StreamId {
        self.ends[from].connection.open(self.now, request(payload), false, ()).unwrap()
    }
}

thread_local! {
    static IDS: std::cell::RefCell<Vec<StreamId>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Stream ids can't be made up outside of the crate: a connection that opens streams lends them.
pub(crate) fn id_of(number: u32) -> StreamId {
    IDS.with_borrow_mut(|ids| {
        if ids.is_empty() {
            for role in [Role::Dialer, Role::Acceptor] {
                let config = Config { max_streams: u32::MAX, ..small_config() };
                let other = if role == Role::Dialer { Role::Acceptor } else { Role::Dialer };
                let (mut one, mut two) = (
                    Connection::new(role, config.clone(), Instant::now()),
                    Connection::<()>::new(other, config, Instant::now()),
                );
                let mut out = Vec::new();
                two.take_output(Instant::now(), &mut out);
                one.handle_input(Instant::now(), &out, &mut User::default()).unwrap();
                for _ in 0..2000 {
                    ids.push(one.open(Instant::now(), request(b""), false, ()).unwrap());
                }
            }
        }
        *ids.iter().find(|id| id.get() == number).unwrap()
    })
}

pub(crate) fn request(payload: &[u8]) -> Request {
    Request {
        id: "request-1".into(),
        path: "ns/comp/ep".into(),
        time_left: None,
        metadata: vec![("traceparent".into(), "00-0-0-01".into())],
        payload: payload.to_vec().into(),
    }
}
