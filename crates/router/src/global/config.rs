//! The file with pools and grids. Keys are the ecosystem's; every fault names its key.

use serde_json::{Map, Value};

use super::grid::{Axis, Grid};

/// Pools at most; each has a client and series of its own.
const MAX_POOLS: u64 = 256;
/// Parts of one side at most.
const MAX_RESOLUTION: u64 = 1024;
/// Cells of a grid at most.
const MAX_CELLS: usize = 1 << 20;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobalConfigError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// A key that must be there.
    #[error("{key}: missing")]
    Missing {
        /// The key, with those it is in.
        key: String,
    },
    /// A value that cannot be.
    #[error("{key}: {reason}")]
    Value {
        /// The key, with those it is in.
        key: String,
        /// What it must be.
        reason: String,
    },
    /// A key that nobody reads.
    #[error("{key}: not known")]
    Unknown {
        /// The key, with those it is in.
        key: String,
    },
}

/// Pools of one kind and the grid over them.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolGrid {
    /// The namespace of each pool.
    pub namespaces: Vec<String>,
    /// Which pool for which values.
    pub grid: Grid,
}

/// How pools are divided.
#[derive(Clone, Debug, PartialEq)]
pub enum Pools {
    /// Pools that compute prompts, by length and time to first token, and pools that generate, by context length and time
    /// between tokens.
    Disaggregated {
        /// Sides: `isl`, `ttft`.
        prefill: PoolGrid,
        /// Sides: `context_length`, `itl`.
        decode: PoolGrid,
    },
    /// Pools that do both.
    Aggregated {
        /// Sides: `ttft`, `itl`, or `isl`, `ttft`, `itl`.
        pools: PoolGrid,
        /// Whether the first side is `isl`.
        by_length: bool,
    },
}

/// The file.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalConfig {
    /// The pools.
    pub pools: Pools,
}

/// An object under its key.
struct Section<'a> {
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl Section<'_> {
    fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    fn wrong(&self, key: &str, reason: impl Into<String>) -> GlobalConfigError {
        GlobalConfigError::Value { key: self.name(key), reason: reason.into() }
    }

    fn get(&self, key: &str) -> Result<&Value, GlobalConfigError> {
        self.map.get(key).ok_or_else(|| GlobalConfigError::Missing { key: self.name(key) })
    }

    fn count(&self, key: &str, most: u64) -> Result<usize, GlobalConfigError> {
        let count = self.get(key)?.as_u64().filter(|count| (1..=most).contains(count));
        let count =
            count.ok_or_else(|| self.wrong(key, format!("must be a whole number from 1 to {most}")))?;
        Ok(count as usize)
    }

    fn number(&self, key: &str) -> Result<f64, GlobalConfigError> {
        self.get(key)?.as_f64().ok_or_else(|| self.wrong(key, "must be a number"))
    }

    fn axis(&self, name: &str) -> Result<Axis, GlobalConfigError> {
        let (min, max) = (self.number(&format!("{name}_min"))?, self.number(&format!("{name}_max"))?);
        if min >= max {
            return Err(
                self.wrong(&format!("{name}_max"), format!("must be above {name}_min, which is {min}"))
            );
        }
        Ok(Axis { min, max, resolution: self.count(&format!("{name}_resolution"), MAX_RESOLUTION)? })
    }

    /// Only these are known, and whatever begins with `_`, which is for people.
    fn only(&self, known: &[String]) -> Result<(), GlobalConfigError> {
        match self.map.keys().find(|key| !key.starts_with('_') && !known.contains(key)) {
            Some(key) => Err(GlobalConfigError::Unknown { key: self.name(key) }),
            None => Ok(()),
        }
    }
}

impl GlobalConfig {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, GlobalConfigError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| GlobalConfigError::Json(error.to_string()))?;
        let Value::Object(map) = &value else {
            return Err(GlobalConfigError::Json("must be an object".to_owned()));
        };
        let file = Section { prefix: "", map };
        let known = |kinds: &[&str]| -> Vec<String> {
            let of = |kind: &&str| {
                [
                    format!("num_{kind}_pools"),
                    format!("{kind}_pool_dynamo_namespaces"),
                    format!("{kind}_pool_selection_strategy"),
                ]
            };
            kinds.iter().flat_map(of).collect()
        };
        let aggregated = map.contains_key("num_agg_pools") || map.contains_key("agg_pool_dynamo_namespaces");
        let pools = if aggregated {
            file.only(&known(&["agg"]))?;
            let key = "agg_pool_selection_strategy";
            let by_length = file.get(key)?.get("isl_resolution").is_some();
            let axes: &[&str] = if by_length { &["isl", "ttft", "itl"] } else { &["ttft", "itl"] };
            Pools::Aggregated { pools: pool_grid(&file, "agg", axes)?, by_length }
        } else {
            file.only(&known(&["prefill", "decode"]))?;
            Pools::Disaggregated {
                prefill: pool_grid(&file, "prefill", &["isl", "ttft"])?,
                decode: pool_grid(&file, "decode", &["context_length", "itl"])?,
            }
        };
        Ok(Self { pools })
    }
}

fn pool_grid(file: &Section<'_>, kind: &str, axes: &[&str]) -> Result<PoolGrid, GlobalConfigError> {
    let pools = file.count(&format!("num_{kind}_pools"), MAX_POOLS)?;
    let key = format!("{kind}_pool_dynamo_namespaces");
    let names = file.get(&key)?.as_array().ok_or_else(|| file.wrong(&key, "must be a list of namespaces"))?;
    let named = |name: &Value| name.as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    let namespaces: Option<Vec<String>> = names.iter().map(named).collect();
    let namespaces = namespaces.ok_or_else(|| file.wrong(&key, "must be a list of namespaces"))?;
    if namespaces.len() != pools {
        let reason = format!("has {} namespaces, and num_{kind}_pools is {pools}", namespaces.len());
        return Err(file.wrong(&key, reason));
    }
    let key = format!("{kind}_pool_selection_strategy");
    let map = file.get(&key)?.as_object().ok_or_else(|| file.wrong(&key, "must be an object"))?;
    let strategy = Section { prefix: &key, map };
    let mapping = format!("{kind}_pool_mapping");
    let parts = |axis: &&str| ["min", "max", "resolution"].map(|part| format!("{axis}_{part}"));
    let known: Vec<String> = axes.iter().flat_map(parts).chain([mapping.clone()]).collect();
    strategy.only(&known)?;
    let sides = axes.iter().map(|axis| strategy.axis(axis)).collect::<Result<Vec<Axis>, _>>()?;
    if sides.iter().map(|side| side.resolution).product::<usize>() > MAX_CELLS {
        return Err(strategy.wrong(&mapping, format!("has more than {MAX_CELLS} cells")));
    }
    let mut cells = Vec::new();
    flatten(&strategy, &mapping, strategy.get(&mapping)?, axes, &sides, pools, &mut cells)?;
    Ok(PoolGrid { namespaces, grid: Grid::new(sides, cells, pools) })
}

/// Reads nested lists, the outermost by the first side.
fn flatten(
    strategy: &Section<'_>,
    key: &str,
    value: &Value,
    names: &[&str],
    sides: &[Axis],
    pools: usize,
    cells: &mut Vec<usize>,
) -> Result<(), GlobalConfigError> {
    let Some((side, inner)) = sides.split_first() else {
        let pool = value.as_u64().filter(|&pool| pool < pools as u64);
        let reason = || format!("must be the number of a pool, 0 to {}", pools - 1);
        cells.push(pool.ok_or_else(|| strategy.wrong(key, reason()))? as usize);
        return Ok(());
    };
    let wrong = || {
        let reason =
            format!("must be a list of {} entries, one for each part of {}", side.resolution, names[0]);
        strategy.wrong(key, reason)
    };
    let list = value.as_array().filter(|list| list.len() == side.resolution).ok_or_else(wrong)?;
    for (place, value) in list.iter().enumerate() {
        flatten(strategy, &format!("{key}[{place}]"), value, &names[1..], inner, pools, cells)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disaggregated() -> Value {
        json!({
            "num_prefill_pools": 2, "num_decode_pools": 1,
            "prefill_pool_dynamo_namespaces": ["short", "long"],
            "decode_pool_dynamo_namespaces": ["decode"],
            "prefill_pool_selection_strategy": {
                "isl_min": 0, "isl_max": 4000, "isl_resolution": 2,
                "ttft_min": 10, "ttft_max": 3000, "ttft_resolution": 2,
                "prefill_pool_mapping": [[0, 1], [1, 1]],
            },
            "decode_pool_selection_strategy": {
                "context_length_min": 0, "context_length_max": 4000, "context_length_resolution": 1,
                "itl_min": 5, "itl_max": 500, "itl_resolution": 2,
                "decode_pool_mapping": [[0, 0]],
            },
            "_comment": "for people",
        })
    }

    #[test]
    fn both_kinds_of_files_read() {
        let config = GlobalConfig::parse(&disaggregated().to_string()).unwrap();
        let Pools::Disaggregated { prefill, decode } = config.pools else { panic!("aggregated") };
        assert_eq!(prefill.namespaces, ["short", "long"]);
        assert_eq!(prefill.grid.choose(&[100.0, 20.0]), [0, 1]);
        assert_eq!(prefill.grid.choose(&[100.0, 2000.0]), [1, 0]);
        assert_eq!(decode.grid.choose(&[1.0, 1.0]), [0]);
        let aggregated = json!({
            "num_agg_pools": 2, "agg_pool_dynamo_namespaces": ["a", "b"],
            "agg_pool_selection_strategy": {
                "isl_min": 0, "isl_max": 10, "isl_resolution": 2,
                "ttft_min": 0, "ttft_max": 10, "ttft_resolution": 1,
                "itl_min": 0, "itl_max": 10, "itl_resolution": 2,
                "agg_pool_mapping": [[[0, 0]], [[0, 1]]],
            },
        });
        let config = GlobalConfig::parse(&aggregated.to_string()).unwrap();
        let Pools::Aggregated { pools, by_length } = config.pools else { panic!("disaggregated") };
        assert!(by_length);
        assert_eq!(pools.grid.choose(&[9.0, 0.0, 9.0]), [1, 0]);
    }

    #[test]
    fn faults_name_their_key() {
        let with = |pointer: &str, value: Value| {
            let mut file = disaggregated();
            match file.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => {
                    let (outer, key) = pointer.rsplit_once('/').unwrap();
                    file.pointer_mut(outer).unwrap()[key] = value;
                }
            }
            GlobalConfig::parse(&file.to_string()).unwrap_err().to_string()
        };
        let strategy = "/prefill_pool_selection_strategy";
        let cases = [
            (
                "/num_prefill_pools".to_owned(),
                json!(0),
                "num_prefill_pools: must be a whole number from 1 to 256",
            ),
            (
                "/num_decode_pools".to_owned(),
                json!(2),
                "decode_pool_dynamo_namespaces: has 1 namespaces, and num_decode_pools is 2",
            ),
            (
                "/decode_pool_dynamo_namespaces".to_owned(),
                json!([1]),
                "decode_pool_dynamo_namespaces: must be a list of namespaces",
            ),
            ("/num_pools".to_owned(), json!(1), "num_pools: not known"),
            (
                format!("{strategy}/isl_max"),
                json!(0),
                "prefill_pool_selection_strategy.isl_max: must be above isl_min, which is 0",
            ),
            (
                format!("{strategy}/ttft_min"),
                json!("x"),
                "prefill_pool_selection_strategy.ttft_min: must be a number",
            ),
            (
                format!("{strategy}/prefill_pool_mapping/1"),
                json!([0]),
                "prefill_pool_selection_strategy.prefill_pool_mapping[1]: must be a list of 2 entries, one for each part of ttft",
            ),
            (
                format!("{strategy}/prefill_pool_mapping/0/1"),
                json!(2),
                "prefill_pool_selection_strategy.prefill_pool_mapping[0][1]: must be the number of a pool, 0 to 1",
            ),
            (format!("{strategy}/itl_min"), json!(2), "prefill_pool_selection_strategy.itl_min: not known"),
        ];
        for (pointer, value, message) in cases {
            assert_eq!(with(&pointer, value), message);
        }
        let mut file = disaggregated();
        file.as_object_mut().unwrap().remove("decode_pool_selection_strategy");
        let error = GlobalConfig::parse(&file.to_string()).unwrap_err();
        assert_eq!(error.to_string(), "decode_pool_selection_strategy: missing");
        assert!(GlobalConfig::parse("[").is_err());
    }
}
