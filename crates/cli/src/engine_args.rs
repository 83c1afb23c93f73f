//! The flags of simulated workers, for `dynamo worker` and `dynamo serve`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dynamo_mocker::{DisaggregationMode, MockerConfig};
use dynamo_runtime::{
    EndpointId,
    config::{Key, Layers},
};
use dynamo_worker::{WirePorts, WorkerConfig};

/// What is simulated: real scheduling, caching and KV events; time and tokens are computed.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Model and simulated engine")]
pub(crate) struct EngineArgs {
    /// Hugging Face model directory (tokenizer and configuration; no weights are read)
    #[arg(long, visible_alias = "model", value_name = "DIR")]
    pub(crate) model_path: Option<PathBuf>,
    /// Public name of the model [default: the directory's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Endpoint to serve, as in dyn://dynamo.backend.generate; prefill workers serve dyn://dynamo.prefill.generate
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) endpoint: Option<String>,
    /// Jinja template that goes before the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) custom_jinja_template: Option<PathBuf>,
    /// Context to offer instead of what the model's files say
    #[arg(long, visible_alias = "max-model-len", value_name = "TOKENS")]
    pub(crate) model_context_length: Option<u32>,
    /// Simulated workers in this process [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) num_workers: Option<u32>,
    /// KV blocks per worker and rank [default: 16384]
    #[arg(long, alias = "num-gpu-blocks", value_name = "N")]
    pub(crate) num_gpu_blocks_override: Option<u32>,
    /// Tokens per KV block [default: 64]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) block_size: Option<u32>,
    /// Requests computed at once, per rank [default: 256]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_seqs: Option<u32>,
    /// Tokens per step, per rank [default: 8192]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_num_batched_tokens: Option<u32>,
    /// Find prompts in the cache [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", overrides_with = "no_enable_prefix_caching")]
    pub(crate) enable_prefix_caching: Option<bool>,
    /// Do not find prompts in the cache
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
    /// Compute long prompts in pieces [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", overrides_with = "no_enable_chunked_prefill")]
    pub(crate) enable_chunked_prefill: Option<bool>,
    /// Do not compute long prompts in pieces
    #[arg(long)]
    pub(crate) no_enable_chunked_prefill: bool,
    /// Share of blocks that admission leaves free [default: 0.01]
    #[arg(long, value_name = "0..1")]
    pub(crate) watermark: Option<f64>,
    /// How much faster than the simulated accelerator; 0 is instant [default: 1]
    #[arg(long, value_name = "RATIO")]
    pub(crate) speedup_ratio: Option<f64>,
    /// Speed-up of decoding on top of that; a small number makes slow streams that begin at once [default: 1]
    #[arg(long, value_name = "RATIO")]
    pub(crate) decode_speedup_ratio: Option<f64>,
    /// Data-parallel ranks per worker [default: 1]
    #[arg(long, visible_alias = "dp-size", value_name = "N")]
    pub(crate) data_parallel_size: Option<u32>,
    /// Labels that requests may ask for in nvext.routing_constraints, separated by commas [env: DYN_WORKER_TAINTS]
    #[arg(long, value_name = "LABELS")]
    pub(crate) worker_taints: Option<String>,
    /// LoRA adapters to serve, each as a model of its own name: separated by commas, or given several times [env: DYN_WORKER_LORAS]
    #[arg(long, visible_alias = "lora", value_name = "NAMES")]
    pub(crate) worker_loras: Vec<String>,
    /// Seconds before a worker takes requests, as an engine that loads weights [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) startup_time: Option<f64>,
    /// Which running request gives way when blocks run out: lifo or fifo [default: lifo]
    #[arg(long, value_name = "MODE")]
    pub(crate) preemption_mode: Option<String>,
    /// Seed of the simulated tokens [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Have each engine publish KV events as vLLM does, from this port of its first rank on (0: any free one), and the
    /// worker listen there: a port for each worker, separated by commas
    #[arg(long, value_name = "PORTS")]
    pub(crate) zmq_kv_events_ports: Option<String>,
    /// Ports from which on the engines give KV events out again, as above [default: any free ones]
    #[arg(long, value_name = "PORTS")]
    pub(crate) zmq_replay_ports: Option<String>,
    /// What the workers are there for: agg (prompts and answers), prefill (prompts alone), decode (answers) [default: agg]
    #[arg(long, value_name = "MODE")]
    pub(crate) disaggregation_mode: Option<DisaggregationMode>,
    /// The same as --disaggregation-mode prefill
    #[arg(long)]
    pub(crate) is_prefill_worker: bool,
    /// The same as --disaggregation-mode decode
    #[arg(long)]
    pub(crate) is_decode_worker: bool,
    /// GB per second at which KV blocks come from prefill workers; 0 is instant [default: 64]
    #[arg(long, value_name = "GB/S")]
    pub(crate) kv_transfer_bandwidth: Option<f64>,
    /// Bytes of one token's KV in all layers [default: what the model's config.json says]
    #[arg(long, value_name = "BYTES")]
    pub(crate) kv_bytes_per_token: Option<u64>,
    /// JSON file of engine settings; they go before the flags
    #[arg(long, value_name = "FILE")]
    pub(crate) extra_engine_args: Option<PathBuf>,
}

const MODEL_PATH: Key =
    Key::new("model-path").env(&["DYN_MODEL_PATH"]).expects("a Hugging Face model directory");
const MODEL_NAME: Key = Key::new("model-name").env(&["DYN_MODEL_NAME"]);
const ENDPOINT: Key =
    Key::new("endpoint").env(&["DYN_ENDPOINT"]).expects("dyn://namespace.component.endpoint");
const TEMPLATE: Key = Key::new("custom-jinja-template").env(&["DYN_CUSTOM_JINJA_TEMPLATE"]).expects("a file");
const CONTEXT: Key = Key::new("model-context-length").expects("a number of tokens");
const NUM_WORKERS: Key = Key::new("num-workers").expects("a number from 1 to 1024");
const BLOCKS: Key = Key::new("num-gpu-blocks-override").expects("a number of blocks");
const BLOCK_SIZE: Key = Key::new("block-size").expects("a number of tokens, at least 1");
const MAX_SEQS: Key = Key::new("max-num-seqs").expects("a number of requests");
const MAX_TOKENS: Key = Key::new("max-num-batched-tokens").expects("a number of tokens");
const PREFIX_CACHING: Key = Key::new("enable-prefix-caching").expects("true or false");
const CHUNKED_PREFILL: Key = Key::new("enable-chunked-prefill").expects("true or false");
const WATERMARK: Key = Key::new("watermark").expects("a share from 0 to 1");
const SPEEDUP: Key = Key::new("speedup-ratio").expects("0 or more; 0 is instant");
const DECODE_SPEEDUP: Key = Key::new("decode-speedup-ratio").expects("more than 0");
const RANKS: Key = Key::new("data-parallel-size").expects("a number from 1 on");
const TAINTS: Key =
    Key::new("worker-taints").env(&["DYN_WORKER_TAINTS"]).expects("labels, separated by commas");
const LORAS: Key =
    Key::new("worker-loras").env(&["DYN_WORKER_LORAS"]).expects("names of adapters, separated by commas");
const STARTUP: Key = Key::new("startup-time").expects("seconds");
const PREEMPTION: Key = Key::new("preemption-mode").expects("lifo or fifo");
const SEED: Key = Key::new("seed").expects("a number");
const EVENT_PORTS: Key = Key::new("zmq-kv-events-ports").expects("ports, separated by commas");
const REPLAY_PORTS: Key = Key::new("zmq-replay-ports").expects("ports, separated by commas");
const MODE: Key = Key::new("disaggregation-mode").expects("agg, prefill or decode");
const IS_PREFILL: Key = Key::new("is-prefill-worker").expects("true or false");
const IS_DECODE: Key = Key::new("is-decode-worker").expects("true or false");
const BANDWIDTH: Key = Key::new("kv-transfer-bandwidth").expects("GB per second; 0 is instant");
const KV_BYTES: Key = Key::new("kv-bytes-per-token").expects("a number of bytes");
const EXTRA: Key = Key::new("extra-engine-args").expects("a JSON file");

/// Where workers of prompts alone are found.
pub(crate) const PREFILL_COMPONENT: &str = "prefill";

/// Simulated workers in one process: each has an identity and blocks of its own, some kilobytes and a task.
pub(crate) const MAX_WORKERS: u32 = 1024;

impl EngineArgs {
    /// Flags over environment over file over defaults; what `--extra-engine-args` names goes before all.
    pub(crate) fn resolve(
        &self,
        layers: &mut Layers<'_>,
        namespace: Option<&str>,
    ) -> anyhow::Result<WorkerConfig> {
        let defaults = MockerConfig::default();
        let model_path = layers.path(&MODEL_PATH, self.model_path.clone())?;
        let model_path =
            model_path.context("no model: give --model-path DIR, a Hugging Face model directory")?;
        anyhow::ensure!(
            model_path.is_dir(),
            "--model-path {}: there is no such directory; give a Hugging Face model directory (config.json, tokenizer.json)",
            model_path.display()
        );
        let num_workers = layers.value(&NUM_WORKERS, self.num_workers, 1)?;
        anyhow::ensure!(
            (1..=MAX_WORKERS).contains(&num_workers),
            "--num-workers {num_workers}: give a number from 1 to {MAX_WORKERS}"
        );
        let prefix_caching =
            if self.no_enable_prefix_caching { Some(false) } else { self.enable_prefix_caching };
        let chunked = if self.no_enable_chunked_prefill { Some(false) } else { self.enable_chunked_prefill };
        let preemption: String =
            layers.value(&PREEMPTION, self.preemption_mode.clone(), "lifo".to_owned())?;
        let startup: Option<f64> = layers.optional(&STARTUP, self.startup_time)?;
        let mut engine = MockerConfig {
            num_gpu_blocks: layers.value(&BLOCKS, self.num_gpu_blocks_override, defaults.num_gpu_blocks)?,
            block_size: layers.value(&BLOCK_SIZE, self.block_size, defaults.block_size)?,
            max_num_seqs: layers.value(&MAX_SEQS, self.max_num_seqs, defaults.max_num_seqs)?,
            max_num_batched_tokens: layers.value(
                &MAX_TOKENS,
                self.max_num_batched_tokens,
                defaults.max_num_batched_tokens,
            )?,
            enable_prefix_caching: layers.switch(&PREFIX_CACHING, prefix_caching, true)?,
            enable_chunked_prefill: layers.switch(&CHUNKED_PREFILL, chunked, true)?,
            watermark: layers.value(&WATERMARK, self.watermark, defaults.watermark)?,
            speedup_ratio: layers.value(&SPEEDUP, self.speedup_ratio, defaults.speedup_ratio)?,
            decode_speedup_ratio: layers.value(
                &DECODE_SPEEDUP,
                self.decode_speedup_ratio,
                defaults.decode_speedup_ratio,
            )?,
            data_parallel_size: layers.value(&RANKS, self.data_parallel_size, 1)?,
            startup_time: startup,
            preemption_mode: serde_json::from_value(preemption.as_str().into())
                .ok()
                .with_context(|| format!("--preemption-mode {preemption}: give lifo or fifo"))?,
            seed: layers.value(&SEED, self.seed, defaults.seed)?,
            disaggregation_mode: self.mode(layers)?,
            kv_transfer_bandwidth: layers.value(
                &BANDWIDTH,
                self.kv_transfer_bandwidth,
                defaults.kv_transfer_bandwidth,
            )?,
            kv_bytes_per_token: layers.optional(&KV_BYTES, self.kv_bytes_per_token)?,
            ..defaults
        };
        if let Some(path) = layers.path(&EXTRA, self.extra_engine_args.clone())? {
            engine = with_extra(engine, &path)?;
        }
        engine.validate().context("engine settings")?;
        let component = match engine.disaggregation_mode {
            DisaggregationMode::Prefill => PREFILL_COMPONENT,
            DisaggregationMode::Agg | DisaggregationMode::Decode => "backend",
        };
        let default_endpoint = format!("dyn://{}.{component}.generate", namespace.unwrap_or("dynamo"));
        let endpoint: String = layers.value(&ENDPOINT, self.endpoint.clone(), default_endpoint)?;
        let event_ports = ports(layers, &EVENT_PORTS, self.zmq_kv_events_ports.clone(), num_workers)?;
        let replay_ports = ports(layers, &REPLAY_PORTS, self.zmq_replay_ports.clone(), num_workers)?;
        anyhow::ensure!(
            event_ports.is_some() || replay_ports.is_none(),
            "--zmq-replay-ports: give --zmq-kv-events-ports too"
        );
        let replay_ports = replay_ports.unwrap_or_else(|| vec![0; num_workers as usize]);
        let wire_ports = event_ports.unwrap_or_default().into_iter().zip(replay_ports);
        let taints: Option<String> = layers.optional(&TAINTS, self.worker_taints.clone())?;
        let taints = taints.iter().flat_map(|text| text.split(',')).map(str::trim);
        let loras = (!self.worker_loras.is_empty()).then(|| self.worker_loras.join(","));
        let loras: Option<String> = layers.optional(&LORAS, loras)?;
        let loras = loras.iter().flat_map(|text| text.split(',')).map(str::trim);
        Ok(WorkerConfig {
            taints: taints.filter(|taint| !taint.is_empty()).map(str::to_owned).collect(),
            loras: loras.map(str::to_owned).collect(),
            model_path,
            model_name: layers.optional(&MODEL_NAME, self.model_name.clone())?,
            endpoint: EndpointId::parse(&endpoint),
            custom_template: layers.path(&TEMPLATE, self.custom_jinja_template.clone())?,
            context_length: layers.optional(&CONTEXT, self.model_context_length)?,
            num_workers,
            engine,
            wire_ports: wire_ports.map(|(events, replay)| WirePorts { events, replay }).collect(),
        })
    }

    /// The role, by its name or by the older spelling.
    fn mode(&self, layers: &mut Layers<'_>) -> anyhow::Result<DisaggregationMode> {
        let named: Option<DisaggregationMode> = layers.optional(&MODE, self.disaggregation_mode)?;
        let older = [
            (&IS_PREFILL, self.is_prefill_worker, DisaggregationMode::Prefill),
            (&IS_DECODE, self.is_decode_worker, DisaggregationMode::Decode),
        ];
        let mut said: Vec<(String, DisaggregationMode)> = Vec::new();
        said.extend(named.map(|mode| (format!("--{} {mode}", MODE.name()), mode)));
        for (key, flag, mode) in older {
            if layers.switch(key, flag.then_some(true), false)? {
                said.push((format!("--{}", key.name()), mode));
            }
        }
        let Some((first, mode)) = said.first() else { return Ok(DisaggregationMode::Agg) };
        if let Some((other, _)) = said.iter().find(|(_, other)| other != mode) {
            anyhow::bail!("{first} and {other}: a worker has one role; give --{} alone", MODE.name());
        }
        Ok(*mode)
    }
}

/// A port for each worker, if any are given.
fn ports(
    layers: &mut Layers<'_>,
    key: &Key,
    flag: Option<String>,
    workers: u32,
) -> anyhow::Result<Option<Vec<u16>>> {
    let text: Option<String> = layers.optional(key, flag)?;
    let Some(text) = text else { return Ok(None) };
    let ports: Vec<u16> = text
        .split(',')
        .map(|port| port.trim().parse())
        .collect::<Result<_, _>>()
        .with_context(|| format!("--{} {text}: give ports, separated by commas", key.name()))?;
    anyhow::ensure!(
        ports.len() == workers as usize,
        "--{} {text}: give one for each of the {workers} workers",
        key.name()
    );
    Ok(Some(ports))
}

/// The settings of a JSON file over those of the command line.
fn with_extra(engine: MockerConfig, path: &Path) -> anyhow::Result<MockerConfig> {
    let named = || format!("--extra-engine-args {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    let extra: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).with_context(named)?;
    let mut merged = serde_json::to_value(&engine).with_context(named)?;
    if let Some(merged) = merged.as_object_mut() {
        merged.extend(extra);
    }
    serde_json::from_value(merged).with_context(named)
}

#[cfg(test)]
mod tests;
