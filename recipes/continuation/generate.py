#!/usr/bin/env python3
"""Recipe for stage 1 of BLSP: an LLM writes what follows each transcript.

Text goes in and text comes out: no audio is read. On the starter kit, on your
own LLM and corpus, on several processes:

> python recipes/continuation/generate.py hparams/generate.yaml
> python recipes/continuation/generate.py hparams/generate.yaml \
    --llm /models/chat-llm --data_folder /data/LibriSpeech --device cuda:0
> torchrun --nproc_per_node=2 recipes/continuation/generate.py \
    hparams/generate.yaml --distributed_backend gloo

Stopped in any way, it continues when the same command is run again; finished,
it returns at once. `--debug` takes a few rows and writes to a folder `debug`.

Authors
 * The blsp_plugin team 2026
"""

import logging
import os
import sys
import time

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from blsp_plugin.continuation.folder import OutputFolder
from blsp_plugin.continuation.writer import Shard, shard_path
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.text import recase
from blsp_plugin.distributed import ranks, sum_over_ranks
from blsp_plugin.errors import one_line_errors
from blsp_plugin.hparams import load_hparams

logger = get_logger(__name__)
logging.raiseExceptions = False  # a full disk is reported once, at the end
DEBUG_ROWS = 8


def read_splits(hparams, debug):
    """Read the transcripts to be continued: {split: rows}, and bad rows."""
    names = ("data_folder", "save_folder", "train_splits", "valid_splits")
    names += ("corpus_options", "speechbrain_recipes")
    corpus = {"test_splits": [], **{name: hparams[name] for name in names}}
    if if_main_process():
        prepare_corpus(**corpus, skip_prep=hparams["skip_prep"])
    ddp_barrier()
    files = prepare_corpus(**corpus, skip_prep=True)
    splits, rejected = {}, []
    for split in ("train", "valid"):
        manifest = read_manifest(
            getattr(files, f"{split}_csv"),
            text_key=hparams["text_key"],
            data_root=files.data_root,
            keep=hparams["keep_columns"],
        )
        splits[split] = manifest.rows[: DEBUG_ROWS if debug else None]
        rejected += [bad._asdict() for bad in manifest.rejected]
        for row in splits[split]:
            row["transcript"] = row["text"]
            if hparams["recase"]:
                row["text"] = recase(row["text"], hparams["language"])
    return splits, rejected


def generate(continuation, output, done, run_opts):
    """Write what is missing; return rows and tokens of all processes."""
    rank, world = ranks()
    counts = torch.zeros(2, dtype=torch.int64, device=run_opts["device"])
    start = time.time()
    for split, rows in output.splits.items():
        bar = tqdm(
            desc=split,
            total=sum(1 for _ in continuation.items(rows)),
            initial=len(done[split]),
            unit="row",
            disable=rank > 0 or run_opts.get("noprogressbar"),
        )
        with bar, Shard(shard_path(output.shards, split, rank)) as shard:
            for records in continuation.write(
                rows, shard, done[split], rank, world
            ):
                tokens = sum(len(record["response_ids"]) for record in records)
                counts += torch.tensor([len(records), tokens]).to(counts)
                # The other processes have done about as much.
                bar.update(min(len(records) * world, bar.total - bar.n))
                speed = counts[1].item() * world / (time.time() - start)
                bar.set_postfix_str(f"{speed:.0f} tokens/s")
    return sum_over_ranks(counts).tolist()


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

    # 1. The transcripts, and whether the folder is theirs.
    splits, rejected = read_splits(hparams, debug)
    continuation = hparams["continuation"]
    output = OutputFolder(folder, continuation, splits, hparams["keep_columns"])
    output.check()
    if output.is_finished():
        logger.info("%s: everything is written already", folder)
        return
    if if_main_process():
        output.begin(rejected, hparams["max_rejected"])
    ddp_barrier()

    # 2. The responses.
    hparams["llm_model"].to(run_opts["device"])
    done = output.scan()
    ddp_barrier()  # nobody writes before everybody has looked
    start = time.time()
    n_rows, n_tokens = generate(continuation, output, done, run_opts)
    seconds = time.time() - start

    # 3. The tables.
    if if_main_process():
        metrics = output.finish(
            rejected,
            resumed=sum(map(len, done.values())),
            seconds=seconds,
            rows_per_second=n_rows / seconds,
            tokens_per_second=n_tokens / seconds,
        )
        for name, value in metrics.items():
            logger.info("%s: %.4g", name, value)
    ddp_barrier()


if __name__ == "__main__":
    main(sys.argv[1:])
