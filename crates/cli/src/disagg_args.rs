//! Who computes prompts where there are prefill workers: flags and variables.

use dynamo_kv_router::{ConditionalDisagg, DisaggPolicy};
use dynamo_llm::{DisaggConfig, RouterConfig, RouterMode};
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
    pub(crate) fn resolve(
        &self,
        layers: &mut Layers<'_>,
        router: &RouterConfig,
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
            settings.validate(router.kv.queue.threshold)?;
            anyhow::ensure!(
                router.mode == RouterMode::Kv || settings.policy == DisaggPolicy::PrefillLoad,
                "--router-conditional-disagg: how much of a prompt is new is known with --router-mode kv alone; give it, or the policy prefill_load"
            );
        }
        Ok(DisaggConfig { enforce, conditional: is_conditional.then_some(settings) })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use dynamo_runtime::config::Env;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        disagg: DisaggArgs,
    }

    fn resolve(
        mode: RouterMode,
        args: &[&str],
        env: &[(&'static str, &str)],
    ) -> anyhow::Result<DisaggConfig> {
        let args = Command::try_parse_from(["test"].iter().chain(args))?;
        let env = Env::default().with(env.iter().copied());
        args.disagg.resolve(&mut Layers::new(&env, None), &RouterConfig::of(mode))
    }

    #[test]
    fn prefill_workers_are_always_used_and_never_needed_unless_told() {
        assert_eq!(resolve(RouterMode::Kv, &[], &[]).unwrap(), DisaggConfig::default());
        let enforced = resolve(RouterMode::Kv, &["--enforce-disagg"], &[]).unwrap();
        assert_eq!((enforced.enforce, enforced.conditional), (true, None));
        let env = [
            ("DYN_ROUTER_CONDITIONAL_DISAGG", "true"),
            ("DYN_ROUTER_CONDITIONAL_DISAGG_CONFIG", r#"{"eff_isl_threshold": 9}"#),
        ];
        let conditional = resolve(RouterMode::Kv, &[], &env).unwrap().conditional.unwrap();
        assert_eq!((conditional.policy, conditional.eff_isl_threshold), (DisaggPolicy::IslBounding, 9));
    }

    #[test]
    fn conditions_that_cannot_hold_are_refused_with_what_to_do() {
        let conditional = "--router-conditional-disagg";
        let settings = |json: &str| format!("{conditional}-config={json}");
        for (mode, args, words) in [
            (RouterMode::Kv, vec![settings("{}")], "give --router-conditional-disagg too"),
            (RouterMode::RoundRobin, vec![conditional.to_owned()], "--router-mode kv"),
            (RouterMode::Kv, vec![conditional.to_owned(), settings("{")], "give a JSON object"),
            (
                RouterMode::Kv,
                vec![conditional.to_owned(), settings(r#"{"policy": "prefill_load"}"#)],
                "needs prefill_busy_threshold",
            ),
        ] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let error = resolve(mode, &args, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let by_load = settings(r#"{"policy": "prefill_load", "prefill_busy_threshold": 2}"#);
        assert!(resolve(RouterMode::RoundRobin, &[conditional, &by_load], &[]).is_ok());
    }
}
