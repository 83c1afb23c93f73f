#!/usr/bin/env python3
"""The table of `routing_quality.sh`: reads `<stack>.<speed>.<router>.<round>.json`, prints medians and ratios."""
import json
import pathlib
import statistics
import sys


def measures(path: pathlib.Path) -> dict:
    report = json.loads(path.read_text())
    cores = {server["name"]: server["cpu_seconds"] for server in report["servers"]}
    return {
        "cached": report["cache"]["share"],
        "of the limit": report["cache"]["share_of_limit"] or 0.0,
        "p50": report["first_token"]["p50_ms"],
        "p99": report["first_token"]["p99_ms"],
        "most": report["workers"]["max_over_mean"],
        "least": report["workers"]["min_over_mean"],
        "core-s": sum(cores.values()),
        "served": report["requests"]["served_share"],
    }


def main() -> int:
    points: dict = {}
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
        stack, speed, router, _round = path.stem.split(".")
        points.setdefault((int(speed), stack, router), []).append(measures(path))
    medians = {
        key: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for key, rows in points.items()
    }
    print("| workers' speed | stack | router | cached share | of the limit | over the mean: most / least | first token p50 / p99 | core-s | served |")
    print("|---|---|---|---|---|---|---|---|---|")
    order = sorted(medians, key=lambda key: (-key[0], key[1], key[2]))
    for speed, stack, router in order:
        row = medians[speed, stack, router]
        print(
            f"| {speed}x | {stack} | {router} | {row['cached']:.4f} | {row['of the limit']:.3f} | {row['most']:.2f} / {row['least']:.2f} "
            f"| {row['p50']:.1f} / {row['p99']:.1f} ms | {row['core-s']:.1f} | {row['served']:.3f} |"
        )
    print("\nKV routing over round-robin on the same stack:\n")
    print("| workers' speed | stack | cached share (more is better) | p99 to first token (less is better) |")
    print("|---|---|---|---|")
    for speed, stack, router in order:
        if router != "kv" or (speed, stack, "round-robin") not in medians:
            continue
        kv, turns = medians[speed, stack, "kv"], medians[speed, stack, "round-robin"]
        print(f"| {speed}x | {stack} | {kv['cached'] / max(turns['cached'], 1e-9):.2f} | {kv['p99'] / turns['p99']:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
