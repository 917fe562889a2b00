#!/usr/bin/env python3
"""Stage 2's side of ten million continuations: opening, lengths, batches.

A synthetic Parquet of stage 1's columns; no audio and no models. One JSON
line, in seconds, milliseconds and MB:

* ``rows``, ``parquet_mb``, ``twin_mb``: what there is on the disk;
* ``first_open_seconds``: with the Arrow twin being made, on the disk;
* ``open_seconds``: the same in a new process, as all numbers below;
* ``lengths_seconds``: LLM tokens and mel frames of every row;
* ``plan_seconds``: the sampler's first epoch, with both budgets;
* ``batches``, ``padding``: of that epoch;
* ``main_rss_mb``, ``main_anon_mb``, ``main_peak_mb``: what all this added to
  the resident set, to its part that is no file, and to its peak;
* ``convert_rss_mb``, ``convert_anon_mb``, ``convert_peak_mb``: the same of
  the process that made the twin;
* ``fetch_ms``: 64 random rows, one by one as the toolkit's dataset does;
* ``worker_rss_mb``, ``worker_private_mb``: what a loader's worker added to
  its resident set in fetching 20 such batches, and what it shares with none.

> python benchmarks/manifest_scale.py --rows 10000000 --folder /tmp/manifest

Authors
 * The blsp_plugin team 2026
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import numpy
import pyarrow
import pyarrow.parquet
from speechbrain.dataio.dataloader import SaveableDataLoader

from blsp_plugin.continuation.table import COLUMNS
from blsp_plugin.data.dataset import (
    continuation_dataset,
    open_continuations,
    row_frames,
    row_lengths,
)
from blsp_plugin.data.sampler import TokenBudgetSampler
from blsp_plugin.lengths import (
    encoder_frames,
    mel_frames,
    stacked_conv_frames,
)

INSTRUCTIONS = [
    "Continue the following text in a coherent and engaging style with less "
    "than 40 words.",
    "Please repeat the following words.",
    "Say this again, word for word.",
]
WORDS = (
    "the old man walked slowly along a quiet river before noon and found "
    "some letters near his sisters house where nobody ever sang"
).split()
ROWS_AT_ONCE = 16384  # as stage 1 writes them
BATCHES, BATCH_ROWS = 20, 64


class NoPrompt:
    """A prompt of an LLM that has a token for every letter."""

    def ids(self, instruction):
        """Ids around the slot."""
        return list(range(len(instruction) // 4)), [0] * 5


def speech_tokens(samples):
    """Those of the paper's adapter."""
    return stacked_conv_frames(encoder_frames(mel_frames(samples)))


def write_parquet(path, rows):
    """A table as stage 1 writes it."""
    rng = numpy.random.default_rng(0)
    texts = pyarrow.array(
        [
            " ".join(rng.choice(WORDS, size=rng.integers(5, 26)))
            for _ in range(5000)
        ]
    )
    asks = pyarrow.array(INSTRUCTIONS)
    behaviours = pyarrow.array(["continue", "repeat", "repeat"])
    with pyarrow.parquet.ParquetWriter(path, COLUMNS) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, rows - start)
            numbers = range(start, start + n)
            text = texts.take(pyarrow.array(rng.integers(0, 5000, n)))
            response = texts.take(pyarrow.array(rng.integers(0, 5000, n)))
            ask = pyarrow.array(rng.integers(0, len(INSTRUCTIONS), n))
            sizes = numpy.clip(rng.gamma(3, 5, n), 2, 64).astype(int)
            ids = rng.integers(0, 49152, sizes.sum(), dtype=numpy.int32)
            offsets = numpy.concatenate([[0], numpy.cumsum(sizes)])
            clips = pyarrow.array([f"{i // 1000:05d}-{i:08d}" for i in numbers])
            columns = {
                "ID": [f"{i // 1000:05d}-{i:08d}-continue" for i in numbers],
                "clip_id": clips,
                "wav": [f"/data/clips/{i:08d}.flac" for i in numbers],
                "duration": numpy.clip(rng.gamma(4, 1.5, n), 0.5, 30),
                "start": pyarrow.nulls(n, pyarrow.int64()),
                "stop": pyarrow.nulls(n, pyarrow.int64()),
                "transcript": text,
                "text": text,
                "behaviour": behaviours.take(ask),
                "instruction": asks.take(ask),
                "response": response,
                "response_ids": pyarrow.ListArray.from_arrays(
                    pyarrow.array(offsets, pyarrow.int32()), ids
                ),
                "ended": rng.random(n) < 0.95,
            }
            writer.write_table(pyarrow.table(columns, schema=COLUMNS))


def memory(file="status"):
    """Fields of /proc/self/status (or of smaps_rollup), in MB."""
    with open(f"/proc/self/{file}", encoding="utf-8") as stream:
        lines = [line.split() for line in stream]
    return {
        fields[0].rstrip(":"): int(fields[1]) / 1024
        for fields in lines
        if fields[-1] == "kB"
    }


def added(before, prefix):
    """What was added since, as entries of the result."""
    after = memory()
    return {
        f"{prefix}_rss_mb": after["VmRSS"] - before["VmRSS"],
        f"{prefix}_anon_mb": after["RssAnon"] - before["RssAnon"],
        f"{prefix}_peak_mb": after["VmHWM"] - before["VmRSS"],
    }


def first_open(folder):
    """Make the twin."""
    before, start = memory(), time.perf_counter()
    open_continuations(os.path.join(folder, "train.parquet"), folder)
    seconds = time.perf_counter() - start
    return {"first_open_seconds": seconds, **added(before, "convert")}


class Memory:
    """Collates batches into what the worker has added to its memory."""

    def start(self, worker):
        """As the worker's first action."""
        self.before = memory()["VmRSS"]

    def __call__(self, items):
        """Tell (resident, private) in MB."""
        private = memory("smaps_rollup")["Private_Dirty"]
        return memory()["VmRSS"] - self.before, private


def use(folder):
    """What training does with it."""
    before, start = memory(), time.perf_counter()
    table = open_continuations(os.path.join(folder, "train.parquet"), folder)
    opened = time.perf_counter()
    lengths = row_lengths(table, NoPrompt(), speech_tokens)
    frames = row_frames(table)
    measured = time.perf_counter()
    sampler = TokenBudgetSampler(
        lengths, 2000, 64, frames=frames, max_frames=12000
    )
    result = {"rows": len(table), "batches": len(sampler)}
    planned = time.perf_counter()
    data = continuation_dataset(table, NoPrompt(), None, speech_tokens)
    data.set_output_keys(["ID", "wav", "text", "response_ids"])
    result.update(
        open_seconds=opened - start,
        lengths_seconds=measured - opened,
        plan_seconds=planned - measured,
        padding=sampler.padding_ratio,
        **added(before, "main"),
    )
    rng = numpy.random.default_rng(2)
    batches = rng.integers(0, len(table), (2 * BATCHES, BATCH_ROWS)).tolist()
    collate = Memory()
    loader = SaveableDataLoader(
        data,
        batch_sampler=batches[:BATCHES],
        num_workers=1,
        collate_fn=collate,
        worker_init_fn=collate.start,
    )
    rss, private = list(loader)[-1]
    result.update(worker_rss_mb=rss, worker_private_mb=private)
    start = time.perf_counter()
    for batch in batches[BATCHES:]:
        _ = [data[row] for row in batch]
    seconds = time.perf_counter() - start
    return {**result, "fetch_ms": 1000 * seconds / BATCHES}


def main(argv):
    """Measure, each part in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", default="results/manifest_scale")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    parser.add_argument("--part", choices=["write", "first_open", "use"])
    args = parser.parse_args(argv)
    parquet = os.path.join(args.folder, "train.parquet")
    if args.part == "write":
        write_parquet(parquet, args.rows)
    elif args.part:
        parts = {"first_open": first_open, "use": use}
        print(json.dumps(parts[args.part](args.folder)))
    if args.part:
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    os.makedirs(args.folder)
    result = {}
    for part in ("write", "first_open", "use"):
        command = [sys.executable, __file__, *argv, "--part", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        result.update(json.loads(done.stdout or "{}"))
    for name in os.listdir(args.folder):
        size = os.path.getsize(os.path.join(args.folder, name)) / 1e6
        if name.endswith(".parquet"):
            result["parquet_mb"] = size
        elif name.endswith(".arrow"):
            result["twin_mb"] = size
    if not args.keep:
        shutil.rmtree(args.folder)
    print(json.dumps({k: round(v, 3) for k, v in result.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
