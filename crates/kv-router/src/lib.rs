//! KV-cache-aware routing: who holds how much of a prompt, who is how busy, and who should serve it.
//!
//! A [`KvIndex`] is fed with the workers' events and answers which rank of which worker holds how many leading blocks
//! of a prompt; a [`LaneIndex`] is the same for many threads, over an index of any [`IndexerKind`]. Of engines without
//! events, and ahead of events, [`SentPrompts`] remember what was sent to them. A [`KvScheduler`] counts what runs
//! where, and chooses. An [`EventOrder`] per rank finds out whether events were lost, and how to get them back from the
//! [`LocalIndexer`] beside the engine.
//!
//! Nothing here does I/O, and all but the lanes of a [`LaneIndex`] neither spawns, sleeps nor asks for the time: events
//! and instants go in, decisions come out. A [`LaneIndex`] owns threads, which apply events while others ask, and
//! times how long events wait. Who shares a [`KvIndex`] between threads puts it under a lock for many readers, and a
//! [`KvScheduler`] under a mutex; they share no state but slots, which carry a generation, so that an answer from
//! before a removal harms nobody.

mod active;
mod affinity;
mod approximate;
mod busy;
mod config;
mod disagg;
mod engine_events;
mod event_lists;
mod event_order;
mod event_pipeline;
mod index;
mod lanes;
mod local_indexer;
mod msgpack;
mod overrides;
mod queue;
mod rank_event;
mod rank_matches;
mod replica;
mod router_events;
mod scheduler;
mod select;
mod shared_cache;
mod slot;

pub use active::{
    ActiveSequences, NewRequest, ParsePrefillLoadModelError, PotentialLoads, PrefillLoadModel, ReservationId,
    SlotLoad, TooManyActive,
};
pub use affinity::{AffinityConfig, AffinityMode, MAX_SESSION_ID, SessionTable};
pub use approximate::{ApproximateConfig, ApproximateIndex, CachePolicy, CacheSource, SentPrompts};
pub use busy::{BusyThresholds, RankLimits};
pub use config::{ConfigError, KvRouterConfig, RouterOverrides};
pub use disagg::{ConditionalDisagg, DisaggPolicy, PrefillPlace};
pub use engine_events::{
    BatchArrival, BatchInfo, END_OF_REPLAY, EngineEvent, EngineEventDecoder, EngineSequence, FilterReason,
    IntakeCounters, ReplayCheck, ReplayFailure, WireEvent, WireForm, write_batch,
};
pub use event_order::{
    DropReason, EventOrder, MAX_HELD_EVENTS, Observed, Recovered, RecoveryPolicy, RecoveryRequest,
};
pub use event_pipeline::{EventPipeline, MAX_MESSAGE_BLOCKS, MAX_MESSAGE_EVENTS};
pub use index::{
    ApplyError, ConcurrentRadixTree, EventCounters, EventKind, EventStatus, FrequencyWindow, IndexCounts,
    IndexError, IndexParts, IndexerKind, KvIndex, LockedRadixTree, MAX_LANES, Match, MatchBuffer,
    PositionalIndexer, PrefixIndex, RadixTree, RunIndex, RunReader, SharedIndex, TierMatch, TieredIndex,
    TieredWriter, WorkerSlot, with_tiers,
};
pub use lanes::{
    DumpError, FlushError, LaneBroken, LaneConfig, LaneGauges, LaneIndex, LaneReport, RankDump,
    StartLanesError, TryApplyError,
};
pub use local_indexer::{KvQuery, KvQueryAnswer, LOCAL_EVENT_BUFFER, LocalIndexer};
pub use msgpack::WireError;
pub use queue::{
    ClassId, ClassQuery, ClassRule, ParseQueuePolicyError, PolicyClass, PolicyClasses, PolicyFileError,
    QueueConfig, QueueDepth, QueuePolicy, QueueRejected, RouterQueue, Ticket, UnknownClass, Waiting,
};
pub use rank_event::RankEvent;
pub use rank_matches::{IndexQuery, MAX_QUERY_BLOCKS, MalformedMatches, RankMatch, RankMatches};
pub use replica::{
    ACTIVE_SEQUENCES_TOPIC, ActiveSequenceChange, ActiveSequenceEvent, MAX_REPLICA_BATCH, PrefillLoadHint,
    REPLICA_BATCH_DELAY, ReplicaBookings, ReplicaOutbox, ReplicaOutcome,
};
pub use router_events::RouterEventDecoder;
pub use scheduler::{KvScheduler, PotentialLoad, Reservation, ScheduleError, ScheduleRequest, WorkerBooking};
pub use select::{
    Balance, Candidate, Overlap, SelectConfig, SelectError, SelectRequest, SelectScratch, Selection,
    WorkerProfile, select,
};
pub use shared_cache::{ParseSharedCacheTypeError, SharedCacheType};
pub use slot::{AddWorkerError, MAX_RANKS_PER_WORKER, Slot, WorkerId, WorkerRank};
