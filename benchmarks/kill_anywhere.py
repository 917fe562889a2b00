#!/usr/bin/env python3
"""kill -9 stage 1 at random moments, again and again: is anything different?

Runs the recipe once undisturbed and once killed, restarting it each time, and
compares the tables and the rejected rows. Kills fall while rows are planned,
while responses are written, and while the tables are made. One JSON line:

* ``kills``, and ``resumed_from``: responses that were there at each kill;
* ``identical``: whether tables and rejected rows are the same;
* ``lost``, ``duplicates``: rows of the killed run;
* ``whole_seconds``, ``killed_seconds``: time of both runs.

> python benchmarks/kill_anywhere.py hparams/generate.yaml --rows 2000
> python benchmarks/kill_anywhere.py hparams/server_generate.yaml \
    --engine "{url: http://127.0.0.1:8000/v1, model: llm}"

Options after the first ones go to the recipe.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RECIPE = os.path.join(ROOT, "recipes", "continuation", "generate.py")
WHO = ("The old man", "A young girl", "My brother", "Nobody", "Mr. Smith")
WHAT = ("walked slowly", "found a letter", "was sleeping", "sang a song")
WHERE = ("in the garden", "by the sea", "before noon", "at the station")


def write_corpus(folder, rows):
    """train.csv and valid.csv, without audio."""
    os.makedirs(folder, exist_ok=True)
    for split, start, stop in (
        ("train", 0, rows - 8),
        ("valid", rows - 8, rows),
    ):
        path = os.path.join(folder, f"{split}.csv")
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
            for n in range(start, stop):
                text = f"{WHO[n % 5]} {WHAT[n // 5 % 4]} {WHERE[n // 20 % 4]}"
                text += f" with {n} others" if n % 3 else ""
                writer.writerow(
                    [f"c{n:05d}", 1.0, f"c{n}.wav", "s", text + "."]
                )


def run(options, log, stop_when=None, delay=0.0):
    """Run the recipe; kill it when asked to. Whether it came to its end."""
    command = [sys.executable, RECIPE, *options, "--noprogressbar"]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with open(log, "a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream
        )
        while process.poll() is None:
            if stop_when is not None and stop_when():
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                process.wait()
                return False
            time.sleep(0.002)
    if process.returncode not in (0, -signal.SIGKILL):
        with open(log, encoding="utf-8") as stream:
            raise SystemExit(f"{command} failed:\n{stream.read()[-3000:]}")
    return True


def written_lines(folder):
    """Whole lines in all shards."""
    shards = os.path.join(folder, "shards")
    total = 0
    if os.path.isdir(shards):
        for name in os.listdir(shards):
            with open(os.path.join(shards, name), "rb") as stream:
                total += stream.read().count(b"\n")
    return total


def outcome(folder):
    """What must be the same: tables and rejected rows."""
    tables = {
        split: pyarrow.parquet.read_table(f"{folder}/{split}.parquet")
        for split in ("train", "valid")
    }
    with open(f"{folder}/rejected.jsonl", encoding="utf-8") as stream:
        return tables, stream.read()


def moments(kills, total, rng):
    """When to kill: lines to wait for, and seconds after that."""
    # The first while it starts, two when all is written, the rest between.
    late = 2 if kills > 4 else 1
    between = sorted(rng.randrange(1, total) for _ in range(kills - 1 - late))
    for lines in [0, *between, *[total] * late]:
        yield lines, rng.uniform(0, 3.0 if lines == 0 else 0.05)


def compare(hparams, options, folder, rows, kills, seed=0):
    """Both runs; what the JSON line says."""
    corpus = os.path.join(folder, "corpus")
    write_corpus(corpus, rows)
    options = [
        hparams,
        f"--data_folder={corpus}",
        "--check_audio=False",
        *options,
    ]
    whole, killed = (os.path.join(folder, n) for n in ("whole", "killed"))
    start = time.monotonic()
    run([*options, f"--output_folder={whole}"], f"{folder}/whole.log")
    middle = time.monotonic()
    total = written_lines(whole)
    options.append(f"--output_folder={killed}")
    log, resumed = f"{folder}/killed.log", []
    for lines, delay in moments(kills, total, random.Random(seed)):

        def reached(lines=lines):
            return written_lines(killed) >= max(lines, 0)

        if run(options, log, reached, delay):
            break
        resumed.append(written_lines(killed))
    run(options, log)
    tables, rejected = outcome(whole)
    again, again_rejected = outcome(killed)
    ids = [i for table in again.values() for i in table["ID"].to_pylist()]
    expected = {i for table in tables.values() for i in table["ID"].to_pylist()}
    return {
        "rows": rows,
        "responses": total,
        "kills": len(resumed),
        "resumed_from": resumed,
        "identical": all(tables[s].equals(again[s]) for s in tables)
        and rejected == again_rejected,
        "lost": len(expected - set(ids)),
        "duplicates": len(ids) - len(set(ids)),
        "whole_seconds": round(middle - start, 1),
        "killed_seconds": round(time.monotonic() - middle, 1),
    }


def main(argv):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hparams")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="results/kill_anywhere")
    args, options = parser.parse_known_args(argv)
    shutil.rmtree(args.folder, ignore_errors=True)
    os.makedirs(args.folder)
    folder = os.path.abspath(args.folder)
    result = compare(
        args.hparams, options, folder, args.rows, args.kills, args.seed
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
