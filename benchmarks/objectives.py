#!/usr/bin/env python3
"""Which loss teaches an adapter most at equal cost? Some seeds of each.

Runs stage 2 with cross-entropy, KL, both, and the distance of hidden states:
the same rows in the same batches from the same adapter, as many steps each,
encoder states and teacher targets from caches. The probes of the validation
set, which all runs share, are the measure. One JSON line a run, and one a loss
with means and standard deviations over the seeds; a run that is finished is
not run again. ``curves.svg`` in the folder shows the probes over the steps.

> python benchmarks/objectives.py --continuations results/demo/continuation

Options after ``--`` go to the recipe.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from matplotlib.figure import Figure

from blsp_plugin.pretrained import native_precision

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OBJECTIVES = {
    "ce": "train.yaml",
    "kl": "kl.yaml",
    "ce_kl": "ce_kl.yaml",
    "l2": "hidden_l2.yaml",
}
PROBES = ("ce", "kl", "accuracy", "agreement", "greedy_match")


def run(name, seed, args):
    """Train once; the probes at the end, and the seconds it took."""
    output = os.path.join(args.folder, f"{name}_{seed}")
    path = os.path.join(output, "metrics.json")
    if not os.path.exists(path):
        cache = os.path.join(args.folder, "cache")
        options = {
            "output_folder": output,
            "continuations": args.continuations,
            "seed": seed,
            "number_of_epochs": args.epochs,
            "max_batch_tokens": args.max_batch_tokens,
            "encoder_cache": cache,
            "teacher_cache": cache,
            "encoder_dtype": native_precision("bfloat16"),
            "precision": native_precision("bf16"),
        }
        command = [sys.executable, "recipes/blsp/train.py"]
        command += [f"hparams/{OBJECTIVES[name]}", "--noprogressbar"]
        command += [f"--{key}={value}" for key, value in options.items()]
        start = time.monotonic()
        subprocess.run([*command, *args.options], cwd=ROOT, check=True)
        with open(os.path.join(output, "seconds"), "w") as stream:
            stream.write(str(round(time.monotonic() - start)))
    with open(path, encoding="utf-8") as stream:
        metrics = json.load(stream)
    with open(os.path.join(output, "seconds"), encoding="utf-8") as stream:
        seconds = int(stream.read())
    result = {name: metrics[f"end.{name}"] for name in PROBES}
    return {**result, "steps": metrics["steps"], "seconds": seconds}


def main(argv):
    """Run all, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--continuations", default="results/demo/continuation")
    add("--folder", default="results/objectives")
    add("--objectives", nargs="*", default=list(OBJECTIVES))
    add("--seeds", type=int, nargs="*", default=[1, 2, 3])
    add("--epochs", type=int, default=2)
    add("--max-batch-tokens", type=int, default=500)
    add("options", nargs="*")
    args = parser.parse_args(argv)
    args.folder = os.path.abspath(args.folder)
    args.continuations = os.path.abspath(args.continuations)
    results = {}
    for seed in args.seeds:  # so that what is stopped is still balanced
        for name in args.objectives:
            results[name, seed] = run(name, seed, args)
            line = {"loss": name, "seed": seed, **results[name, seed]}
            print(json.dumps(line), flush=True)
    for name in args.objectives:
        line = {"loss": name, "seeds": len(args.seeds)}
        for probe in (*PROBES, "seconds"):
            values = [results[name, seed][probe] for seed in args.seeds]
            line[probe] = round(statistics.mean(values), 4)
            if len(values) > 1:
                line[f"{probe}_sd"] = round(statistics.stdev(values), 4)
        print(json.dumps(line))
    draw(args)


def draw(args):
    """The probes' means over the seeds, with the range, after each epoch."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots(1, len(PROBES))
    for name in args.objectives:
        runs = []
        for seed in args.seeds:
            path = os.path.join(args.folder, f"{name}_{seed}", "probes.jsonl")
            with open(path, encoding="utf-8") as stream:
                records = map(json.loads, stream)
                runs.append([r for r in records if r["behaviour"] == "all"])
        epochs = list(zip(*runs, strict=True))
        steps = [statistics.mean(r["step"] for r in epoch) for epoch in epochs]
        for axis, probe in zip(axes, PROBES, strict=True):
            values = [[r[probe] for r in epoch] for epoch in epochs]
            means = list(map(statistics.mean, values))
            axis.plot(steps, means, marker="o", label=name)
            axis.fill_between(
                steps, list(map(min, values)), list(map(max, values)), alpha=0.2
            )
            axis.set_title(probe)
            axis.set_xlabel("step")
    axes[0].legend()
    figure.savefig(os.path.join(args.folder, "curves.svg"))


if __name__ == "__main__":
    main(sys.argv[1:])
