#!/usr/bin/env python3
"""The whole BLSP loop on the starter kit: what `make demo` runs.

Runs the three recipes as a user would, one after the other, each with its
preset under hparams/demo, then shows what came of it and writes all numbers to
results/demo/metrics.json. A second run reuses what is there and goes on where
the first was stopped.

To run this recipe:
> python recipes/demo/demo.py

Authors
 * The blsp_plugin team 2026
"""

import json
import os
import sys
import time

from blsp_plugin.stages import run_recipe

FOLDER = "results/demo"
STAGES = {
    "continuation": "recipes/continuation/generate.py",
    "blsp": "recipes/blsp/train.py",
    "asr": "recipes/asr/evaluate.py",
}
PRESETS = {"continuation": "generate", "blsp": "train", "asr": "asr"}
SUMMARY = """
Training the adapter ({seconds:.0f} s of audio a second, {steps:.0f} steps)
                                   before    after
  response cross-entropy          {before[loss]:7.3f}  {after[loss]:7.3f}  \
(the LLM on the text itself: {after[text_loss]:.3f})
  next-token agreement with text  {before[agreement]:7.3f}  \
{after[agreement]:7.3f}
"""


def main(options):
    """Run the stages and show the results; options go to every recipe."""
    started = time.monotonic()
    metrics = {}
    for name, script in STAGES.items():
        run_recipe(script, f"hparams/demo/{PRESETS[name]}.yaml", options)
        path = os.path.join(FOLDER, name, "metrics.json")
        with open(path, encoding="utf-8") as stream:
            numbers = json.load(stream)
        metrics.update({f"{name}.{key}": v for key, v in numbers.items()})
    metrics["wall_seconds"] = time.monotonic() - started
    with open(f"{FOLDER}/metrics.json", "w", encoding="utf-8") as stream:
        json.dump(metrics, stream, indent=2)
    show(metrics)


def show(metrics):
    """Print the training's summary and the evaluation's table."""

    def part(prefix):
        start = f"blsp.{prefix}."
        return {
            key[len(start) :]: value
            for key, value in metrics.items()
            if key.startswith(start)
        }

    print(
        SUMMARY.format(
            seconds=metrics["blsp.train.audio_seconds_per_second"],
            steps=metrics["blsp.steps"],
            before=part("start"),
            after=part("end"),
        )
    )
    with open(f"{FOLDER}/asr/table.md", encoding="utf-8") as stream:
        print(stream.read())
    print(f"All numbers: {FOLDER}/metrics.json")


if __name__ == "__main__":
    main(sys.argv[1:])
