#!/usr/bin/env python3
"""Stage 1's bookkeeping at scale: planning, resume scan, tables; no LLM.

Synthetic transcripts and responses stand for ten million real ones: what is
measured is everything around generation. One JSON line, in seconds and GB:

* ``rows``: transcripts, one response each;
* ``plan_seconds``: reading and checking the manifest (Parquet), drawing
  behaviours, recasing by rule, writing the plan;
* ``reopen_seconds``: the same command again, with an unchanged manifest;
* ``scan_seconds``: finding out what the shards hold;
* ``finish_seconds``: a second scan, tables, rejected rows, sample sheet;
* ``total_seconds``: plan, scan and finish;
* ``peak_memory_gb``: resident set of the process that did all that;
* ``manifest_gb``, ``shards_gb``, ``table_gb``: sizes on the disk.

> python benchmarks/stage1_scale.py --rows 10000000 --folder /tmp/scale

Authors
 * The blsp_plugin team 2026
"""

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time

import numpy
import pyarrow
import pyarrow.parquet

from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.filters import EmptyPrompt
from blsp_plugin.continuation.folder import OutputFolder
from blsp_plugin.continuation.inputs import manifest_source
from blsp_plugin.continuation.pipeline import Continuation

WORDS = (
    "THE OLD MAN WALKED SLOWLY ALONG A QUIET RIVER BEFORE NOON AND FOUND "
    "SOME LETTERS NEAR HIS SISTERS HOUSE WHERE NOBODY EVER SANG"
).split()
N_SENTENCES = 5000


class NoLLM:
    """What the bookkeeping asks an engine and a prompt for."""

    window = 512

    def fingerprint(self):
        """A name."""
        return "0000000000000000 none"

    def describe(self):
        """Nothing."""
        return {"engine": "none"}


def sentences(seed=0):
    """Some upper-case sentences of 5 to 25 words."""
    rng = numpy.random.default_rng(seed)
    return [
        " ".join(rng.choice(WORDS, size=rng.integers(5, 26)))
        for _ in range(N_SENTENCES)
    ]


def write_manifest(path, rows):
    """The toolkit's columns as Parquet."""
    texts = pyarrow.array(sentences())
    with pyarrow.parquet.ParquetWriter(
        path,
        pyarrow.schema(
            [
                ("ID", pyarrow.string()),
                ("duration", pyarrow.float64()),
                ("wav", pyarrow.string()),
                ("spk_id", pyarrow.string()),
                ("wrd", pyarrow.string()),
            ]
        ),
    ) as writer:
        for start in range(0, rows, 100_000):
            numbers = range(start, min(start + 100_000, rows))
            chosen = numpy.array(numbers) * 7919 % N_SENTENCES
            writer.write_table(
                pyarrow.table(
                    {
                        "ID": [f"{n // 1000:05d}-{n:08d}" for n in numbers],
                        "duration": (chosen % 170 + 30) / 10,
                        "wav": [f"/clips/{n:08d}.flac" for n in numbers],
                        "spk_id": [f"{n // 1000:05d}" for n in numbers],
                        "wrd": texts.take(pyarrow.array(chosen)),
                    }
                )
            )


def write_shards(output):
    """What two processes would have written, in their order."""
    rng = numpy.random.default_rng(1)
    endings = []
    for text in sentences(2):
        ids = rng.integers(0, 49152, len(text) // 4).tolist()
        facts = {"response": text.lower(), "response_ids": ids, "ended": True}
        endings.append(json.dumps(facts)[1:-1])
    plan = output.plans["train"]
    with (
        open(output.shard("train", 0), "w", encoding="utf-8") as first,
        open(output.shard("train", 1), "w", encoding="utf-8") as second,
    ):
        files = itertools.cycle([first, second])
        for start in range(0, plan.n_rows, 32):
            stop = min(start + 32, plan.n_rows)
            ids = plan.rows(start, stop)["id"].to_pylist()
            stream = next(files)
            for n, row_id in enumerate(ids, start):
                reason = '"echo"' if n % 100 == 0 else "null"
                stream.write(
                    f'{{"n": {n}, "ID": "{row_id}-continue", '
                    f'{endings[n % N_SENTENCES]}, "reason": {reason}}}\n'
                )


def timed(call, *args):
    """The seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - start, result


def open_folder(folder):
    """The work, as the recipe sets it up."""
    work = Continuation(
        NoLLM(),
        NoLLM(),
        [Behaviour("continue", "Go on.", paraphrases=["Write what follows."])],
        [EmptyPrompt()],
    )
    return OutputFolder(os.path.join(folder, "out"), work, ["spk_id"])


def prepare(output, manifest):
    """Plan."""
    splits, source = manifest_source(
        {"train": manifest},
        keep=["spk_id"],
        check_audio=False,
        rule_language="en",
    )
    output.prepare(splits, source)
    return output.plans


def in_process(target, *args):
    """Run what isn't measured in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(
        target=target, args=args
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def write_shards_of(folder):
    """`write_shards`, given the folder's name."""
    write_shards(open_folder(folder))


def main(argv):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", default="results/stage1_scale")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    args = parser.parse_args(argv)
    shutil.rmtree(args.folder, ignore_errors=True)
    os.makedirs(args.folder)
    manifest = os.path.join(args.folder, "train.parquet")
    in_process(write_manifest, manifest, args.rows)
    plan, _ = timed(prepare, open_folder(args.folder), manifest)
    in_process(write_shards_of, args.folder)
    output = open_folder(args.folder)
    reopen, _ = timed(prepare, output, manifest)
    scan, index = timed(output.scan)
    assert index["train"].done.all()
    del index
    finish, metrics = timed(output.finish)
    assert metrics["rows"] == args.rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shards = sum(
        os.path.getsize(os.path.join(output.shards, name))
        for name in os.listdir(output.shards)
    )
    result = {
        "rows": args.rows,
        "plan_seconds": plan,
        "reopen_seconds": reopen,
        "scan_seconds": scan,
        "finish_seconds": finish,
        "total_seconds": plan + scan + finish,
        "peak_memory_gb": peak / 1e9,
        "manifest_gb": os.path.getsize(manifest) / 1e9,
        "shards_gb": shards / 1e9,
        "table_gb": os.path.getsize(output.path("train.parquet")) / 1e9,
    }
    if not args.keep:
        shutil.rmtree(args.folder)
    print(json.dumps({k: round(v, 3) for k, v in result.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
