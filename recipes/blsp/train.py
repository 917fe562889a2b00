#!/usr/bin/env python3
"""Stage 2: train an adapter so that a frozen LLM hears (BLSP, 2309.00916).

Reads the continuations of stage 1 and trains the adapter between the frozen
Whisper encoder and the frozen LLM to give them for the clips.

To run this recipe (after recipes/continuation/generate.py):
> python recipes/blsp/train.py hparams/train.yaml
> torchrun --nproc_per_node=2 recipes/blsp/train.py hparams/train.yaml \
      --device cpu --distributed_backend gloo

Run it again to continue where it was stopped. Not supported: training the
encoder or the LLM, several clips in one prompt.

Authors
 * The blsp_plugin team 2026
"""

import json
import os
import sys
from functools import partial

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from blsp_plugin.allocator import keep_freed_memory
from blsp_plugin.brain import AlignmentBrain
from blsp_plugin.checkpoints import check_best_by, check_provenance
from blsp_plugin.dataio import training_data
from blsp_plugin.errors import one_line_errors
from blsp_plugin.files import atomic_write, write_json
from blsp_plugin.hparams import excerpt_hparams, load_hparams
from blsp_plugin.package import load_layers, load_mean, save_adapter

logger = get_logger(__name__)


@one_line_errors
def main(argv):
    """Train, and write the adapter and metrics.json."""
    keep_freed_memory()  # before there is much of it
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams, hparams_file, overrides = load_hparams(hparams_file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    check_best_by(hparams["best_by"])
    brain = AlignmentBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    check_provenance(hparams["train_data"], brain.base)
    # What they give is replaced by a checkpoint where there is one.
    if hparams["first_layers"] is not None:
        new = load_layers(brain.model.adapter, hparams["first_layers"])
        logger.info("begins anew: %s", ", ".join(new))
    first = hparams["first_adapter"]
    if first:
        folders = first if isinstance(first, list) else [first]
        load_mean(brain.model, hparams["prompt"], folders)
    data = training_data(hparams, brain)

    start_file = os.path.join(hparams["output_folder"], "start.json")
    train_set, train_options = data["train"]
    valid_set, valid_options = data["valid"]
    # `evaluate` writes into the options it is given.
    validate = partial(brain.evaluate, valid_set)
    if not os.path.exists(start_file):
        validate(test_loader_kwargs={**valid_options})
        if if_main_process() and not brain.debug:
            write_json(brain.valid_stats, start_file)
    if hparams["number_of_epochs"] == 0:  # it was only to be measured
        return
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs=train_options,
        valid_loader_kwargs=valid_options,
    )
    # The best checkpoint becomes the adapter; its stats are the result.
    validate(
        min_key=brain.hparams.best_by, test_loader_kwargs={**valid_options}
    )
    if brain.debug:
        return
    if if_main_process():
        save_adapter(brain.model, hparams["prompt"], hparams["adapter_folder"])
        path = os.path.join(hparams["adapter_folder"], "hyperparams.yaml")
        with atomic_write(path) as stream:
            stream.write(excerpt_hparams(hparams_file, overrides))
        with open(start_file, encoding="utf-8") as stream:
            metrics = brain.metrics(json.load(stream))
        path = os.path.join(hparams["output_folder"], "metrics.json")
        write_json(metrics, path)


if __name__ == "__main__":
    main(sys.argv[1:])
