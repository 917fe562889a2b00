#!/usr/bin/env python3
"""What the starter adapter can do on speech that it has never heard.

Runs the evaluations on the test splits of a speech folder, each in a folder of
its own under results/starter/measured, and prints their tables.

To run this recipe (after recipes/starter/starter.py):
> python recipes/starter/measure.py --data_folder /data/speech

A second run goes on where the first was stopped.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import os

from blsp_plugin.data.speech_folder import NEEDED, find_tables
from blsp_plugin.data.tsv import read_tsv
from blsp_plugin.errors import BadInput, one_line_errors
from blsp_plugin.stages import run_recipe

FOLDER = "results/starter/measured"
LABELS = {"fsdd": "digits", "barista": "slots"}  # sets without sentences


def find_corpora(data_folder):
    """Names of the corpora with something English to test on."""
    found = []
    for corpus, table in find_tables(data_folder).items():
        rows = [row for _, row, reason in read_tsv(table, NEEDED) if not reason]
        if any(r["lang"] == "en" and r["split"] == "test" for r in rows):
            found.append(corpus)
    if not found:
        raise BadInput(
            f"{data_folder}: no manifest.tsv in it has English clips in the "
            "split test; see docs/data.md"
        )
    return found


def measure(script, name, preset, data_folder, corpora, options):
    """Run one evaluation; gives its folder."""
    folder = os.path.join(FOLDER, name)
    place = ["--data_folder", data_folder, "--output_folder", folder]
    listed = f"{{language: en, corpora: [{', '.join(corpora)}]}}"
    run_recipe(
        f"recipes/{script}/evaluate.py",
        f"hparams/starter/{preset}.yaml",
        [*place, "--corpus_options", listed, *options],
    )
    return folder


@one_line_errors
def main(arguments=None):
    """Run the evaluations, and print what they found."""
    parser = argparse.ArgumentParser(
        description="Measure the starter adapter on test splits.",
        epilog="Other options are given to all evaluations.",
    )
    parser.add_argument("--data_folder", required=True, help="speech folder")
    args, options = parser.parse_known_args(arguments)
    data = os.path.abspath(args.data_folder)
    corpora = find_corpora(data)
    spoken = [name for name in corpora if name not in LABELS]
    folders = []
    for name in spoken:
        folders.append(
            measure("asr", f"asr_{name}", "asr", data, [name], options)
        )
    if spoken:
        folders.append(measure("chat", "chat", "chat", data, spoken, options))
    for name, task in LABELS.items():
        if name in corpora:
            folders.append(measure("slu", task, task, data, [name], options))
    for folder in folders:
        with open(os.path.join(folder, "table.md"), encoding="utf-8") as table:
            print(f"\n# {os.path.basename(folder)}\n\n{table.read()}")


if __name__ == "__main__":
    main()
