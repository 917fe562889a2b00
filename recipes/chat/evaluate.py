#!/usr/bin/env python3
"""Stage 3: does the model answer as the LLM answers to text?

Runs every system of the YAML on the same clips and writes the table of their
agreement, example clips, all predictions and ``metrics.json``.

To run this recipe (after recipes/blsp/train.py):
> python recipes/chat/evaluate.py hparams/chat.yaml

Run it again to continue where it was stopped.

Authors
 * The blsp_plugin team 2026
"""

import sys

from blsp_plugin.evaluation.recipe import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
