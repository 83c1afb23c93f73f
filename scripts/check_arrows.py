#!/usr/bin/env python3
"""Checks which way the arrows between crates point, and that pure crates stay pure.

Reads `cargo metadata`. A crate may depend only on crates of lower layers (or on the ones named for it), and a pure
crate has neither tokio nor another I/O crate among its ordinary dependencies.
"""
import json
import subprocess
import sys

# Lower layers first. A crate may use crates of any lower layer.
LAYERS = [
    {"tokens", "protocols", "wire"},
    {"engine-api", "text", "scheduler"},
    {"kv-router"},
    {"runtime"},
    {"llm", "mocker"},
    {"worker", "frontend", "trace"},
    {"router", "simulate"},
    {"cli", "tests"},
]
PURE = {"tokens", "protocols", "engine-api", "text", "kv-router", "scheduler", "wire"}
IMPURE = {"tokio", "tokio-util", "hyper", "hyper-util", "axum", "zmq", "socket2", "mio", "reqwest", "rustix", "notify"}
# What a pure crate may use of them: advice about its own memory is no I/O.
PURE_FEATURES = {"rustix": {"mm"}}
# Arrows that the layers alone would allow but that are wrong: runtime knows no LLM type.
FORBIDDEN = {
    "runtime": {"engine-api", "protocols", "text", "kv-router", "scheduler", "tokens"},
    "mocker": {"runtime", "protocols", "text", "kv-router"},
    "simulate": {"runtime", "llm", "worker", "frontend", "protocols", "text"},
    "trace": {"runtime", "kv-router", "engine-api"},
    "wire": {"tokens", "protocols"},
}


def main() -> int:
    metadata = json.loads(
        subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"])
    )
    layer = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    faults = []
    for package in metadata["packages"]:
        name = package["name"].removeprefix("dynamo-")
        if name not in layer:
            faults.append(f"{name}: not in a layer; add it to scripts/check_arrows.py and ARCHITECTURE.md")
            continue
        for dependency in package["dependencies"]:
            if dependency["kind"] == "dev":
                continue
            features = PURE_FEATURES.get(dependency["name"])
            pure_use = features is not None and features >= set(dependency["features"])
            if name in PURE and dependency["name"] in IMPURE and not pure_use:
                faults.append(f"{name}: a pure crate must not depend on {dependency['name']}")
            if not dependency["name"].startswith("dynamo-"):
                continue
            target = dependency["name"].removeprefix("dynamo-")
            if layer.get(target, -1) >= layer[name] or target in FORBIDDEN.get(name, ()):
                faults.append(f"{name} -> {target}: this arrow points the wrong way")
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"arrows: {len(metadata['packages'])} crates, all point the right way")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
