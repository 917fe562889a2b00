#!/usr/bin/env python3
"""Recipe for stage 1 of BLSP: an LLM writes what follows each transcript.

Text goes in and text comes out: no audio is read. On the starter kit, on your
own LLM and corpus, on several processes:

> python recipes/continuation/generate.py hparams/generate.yaml
> python recipes/continuation/generate.py hparams/generate.yaml \
    --llm /models/chat-llm --data_folder /data/LibriSpeech --device cuda:0
> torchrun --nproc_per_node=2 recipes/continuation/generate.py \
    hparams/generate.yaml --distributed_backend gloo

As the jobs of a cluster, and what brings their parts together:

> python recipes/continuation/generate.py hparams/generate.yaml \
    --shard 0/2 --output_folder results/part0
> python recipes/continuation/generate.py hparams/generate.yaml \
    --merge_folders "[results/part0, results/part1]"

Stopped in any way, it continues when the same command is run again; finished,
it returns at once. `--debug` takes a few rows and writes to a folder `debug`.

Authors
 * The blsp_plugin team 2026
"""

import os
import sys

import speechbrain as sb
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from blsp_plugin.continuation.folder import OutputFolder
from blsp_plugin.continuation.inputs import manifest_source, recased_source
from blsp_plugin.continuation.run import write_responses
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.errors import one_line_errors
from blsp_plugin.hparams import load_hparams

logger = get_logger(__name__)
DEBUG_ROWS = 8


def find_transcripts(hparams, debug):
    """The transcripts to be continued, as `OutputFolder.prepare` takes them."""
    names = ("data_folder", "save_folder", "train_splits", "valid_splits")
    names += ("corpus_options", "speechbrain_recipes")
    corpus = {"test_splits": [], **{name: hparams[name] for name in names}}
    if if_main_process():
        prepare_corpus(**corpus, skip_prep=hparams["skip_prep"])
    ddp_barrier()
    files = prepare_corpus(**corpus, skip_prep=True)
    return manifest_source(
        {"train": files.train_csv, "valid": files.valid_csv},
        text_key=hparams["text_key"],
        data_root=files.data_root,
        keep=hparams["keep_columns"],
        check_audio=hparams["check_audio"],
        rule_language=hparams["language"] if hparams["recase"] else None,
        limit=DEBUG_ROWS if debug else None,
    )


def fill(output, splits, source, merge_folders, hparams, run_opts):
    """Write what a folder lacks, or bring it here from other folders."""
    if if_main_process():
        output.prepare(splits, source, hparams["max_rejected"])
    ddp_barrier()
    if merge_folders and not output.is_finished():
        if if_main_process():
            output.adopt(merge_folders)
        ddp_barrier()
    return write_responses(
        output, run_opts["device"], not run_opts.get("noprogressbar")
    )


@one_line_errors
def main(argv):
    """Run stage 1."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams, base, overrides = load_hparams(hparams_file, overrides)
    folder, debug = hparams["output_folder"], run_opts.get("debug", False)
    if debug:
        folder = os.path.join(folder, "debug")
    sb.create_experiment_directory(
        experiment_directory=folder,
        hyperparams_to_save=base,
        overrides=overrides,
    )
    options = {"keep": hparams["keep_columns"], "shard": hparams["shard"]}

    # 1. The transcripts; the LLM restores their case where a rule will not do.
    splits, source = find_transcripts(hparams, debug)
    merge = hparams["merge_folders"]
    if hparams["recasing"] is not None:
        recased = OutputFolder(
            os.path.join(folder, "recasing"), hparams["recasing"], **options
        )
        parts = [os.path.join(part, "recasing") for part in merge]
        fill(recased, splits, source, parts, hparams, run_opts)
        splits, source = recased_source(recased)

    # 2. The responses.
    output = OutputFolder(folder, hparams["continuation"], **options)
    written = fill(output, splits, source, merge, hparams, run_opts)
    if output.is_finished():
        logger.info("%s: everything is written already", folder)
        return
    if output.parts > 1:
        logger.info(
            "%s: part %s is written; when all parts are, run this command "
            "without --shard, and with --merge_folders if they are in folders "
            "of their own",
            folder,
            hparams["shard"],
        )
        return

    # 3. The tables.
    ddp_barrier()  # until everybody has written
    if if_main_process():
        for name, value in output.finish(**written.speeds).items():
            logger.info("%s: %.4g", name, value)
    ddp_barrier()


if __name__ == "__main__":
    main(sys.argv[1:])
