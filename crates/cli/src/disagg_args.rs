//! Who computes prompts where there are prefill workers: flags and variables.

use dynamo_kv_router::ConditionalDisagg;
use dynamo_llm::DisaggConfig;
use dynamo_runtime::config::{Key, Layers};

const ENFORCE: Key = Key::new("enforce-disagg").env(&["DYN_ENFORCE_DISAGG"]).expects("true or false");
const CONDITIONAL: Key =
    Key::new("router-conditional-disagg").env(&["DYN_ROUTER_CONDITIONAL_DISAGG"]).expects("true or false");
const SETTINGS: Key = Key::new("router-conditional-disagg-config")
    .env(&["DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG"])
    .expects("a JSON object");

/// Flags of who computes prompts.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct DisaggArgs {
    /// Refuse requests whose prompt no prefill worker computes, instead of leaving it to the worker that answers
    /// [env: DYN_ENFORCE_DISAGG]
    #[arg(long)]
    enforce_disagg: bool,
    /// Where a model has prefill workers: leave them out where it is not worth the way, as the next flag says
    /// [env: DYN_ROUTER_CONDITIONAL_DISAGG]
    #[arg(long)]
    router_conditional_disagg: bool,
    /// JSON object. policy: isl_bounding (default), prompts with fewer new tokens than eff_isl_threshold (2048) and
    /// eff_isl_ratio_threshold (0.7 of all); prefill_load, while each prefill worker has more prompt tokens to compute than
    /// prefill_busy_threshold of its largest steps; isl_or_load, either. None stays while each worker that answers has more
    /// than decode_busy_threshold steps [env: DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG]
    #[arg(long, value_name = "JSON")]
    router_conditional_disagg_config: Option<String>,
}

impl DisaggArgs {
    /// `queue_threshold` is the queue's.
    pub(crate) fn resolve(
        &self,
        layers: &mut Layers<'_>,
        queue_threshold: Option<f64>,
    ) -> anyhow::Result<DisaggConfig> {
        let enforce = layers.switch(&ENFORCE, self.enforce_disagg.then_some(true), false)?;
        let is_conditional =
            layers.switch(&CONDITIONAL, self.router_conditional_disagg.then_some(true), false)?;
        let text: Option<String> =
            layers.optional(&SETTINGS, self.router_conditional_disagg_config.clone())?;
        let settings = text.as_deref().map_or(Ok(ConditionalDisagg::REFERENCE), serde_json::from_str);
        let settings = settings.map_err(|error| {
            anyhow::anyhow!(
                "--router-conditional-disagg-config: {error}; give a JSON object, as in {{\"policy\": \"isl_or_load\", \"prefill_busy_threshold\": 2}}"
            )
        })?;
        anyhow::ensure!(
            is_conditional || text.is_none(),
            "--router-conditional-disagg-config: give --router-conditional-disagg too"
        );
        if is_conditional {
            settings.validate(queue_threshold)?;
        }
        Ok(DisaggConfig { enforce, conditional: is_conditional.then_some(settings) })
    }
}
