#!/usr/bin/env python3
"""Stage 3: how well does the model repeat what was said?

Runs every system of the YAML on the same clips and writes the table of their
word error rates, example clips, all predictions and ``metrics.json``.

To run this recipe (after recipes/blsp/train.py):
> python recipes/asr/evaluate.py hparams/asr.yaml
> torchrun --standalone --nproc_per_node=2 recipes/asr/evaluate.py \
      hparams/asr.yaml --device cpu --distributed_backend gloo
Run it again to continue where it was stopped.

Authors
 * The blsp_plugin team 2026
"""

import sys

from blsp_plugin.evaluation.recipe import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
