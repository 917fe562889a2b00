#!/usr/bin/env python3
"""Stage 3: how well does the model understand commands?

Runs every system of the YAML on the same clips and writes the table of their
accuracies, example clips, all predictions and ``metrics.json``.

To run this recipe (after recipes/blsp/train.py):
> python recipes/slu/evaluate.py hparams/slu.yaml \
      --data_folder /data/fluent_speech_commands

Run it again to continue where it was stopped.

Authors
 * The blsp_plugin team 2026
"""

import sys

from blsp_plugin.evaluation.recipe import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
