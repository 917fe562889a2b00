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
import json
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


def run(script, preset, name, *options):
    """Run one recipe; gives its folder."""
    folder = os.path.join(FOLDER, name)
    place = ["--output_folder", folder]
    run_recipe(script, f"hparams/starter/{preset}.yaml", [*place, *options])
    return folder


def evaluate(task, preset, name, data_folder, corpora, options):
    """One evaluation's table."""
    listed = f"{{language: en, corpora: [{', '.join(corpora)}]}}"
    data = ["--data_folder", data_folder, "--corpus_options", listed]
    script = f"recipes/{task}/evaluate.py"
    folder = run(script, preset, name, *data, *options)
    with open(os.path.join(folder, "table.md"), encoding="utf-8") as table:
        return f"\n# {name}\n\n{table.read()}"


def agreement(name, data_folder, adapter):
    """How the adapter, and one at random, read the text LLM's continuations."""
    listed = f"{{language: en, corpora: [{name}]"
    listed += ", train_splits: [valid], valid_splits: [test]}"
    data = ["--data_folder", data_folder, "--corpus_options", listed]
    script = "recipes/continuation/generate.py"
    unseen = run(script, "unseen", f"unseen_{name}", *data)
    lines = [f"\n# agreement_{name}\n"]
    for who, folder in (("starter", adapter), ("untrained", "null")):
        options = ["--continuations", unseen, "--first_adapter", folder]
        script = "recipes/blsp/train.py"
        where = run(script, "agreement", f"agreement_{name}_{who}", *options)
        probes = os.path.join(where, "probes.jsonl")
        with open(probes, encoding="utf-8") as stream:
            for seen in map(json.loads, stream):
                asked = f"{who}, {seen['behaviour']}"
                agreed = f"agreement {seen['agreement']:.3f}"
                lines.append(f"{asked}: {agreed}, kl {seen['kl']:.3f}")
    return "\n".join(lines)


@one_line_errors
def main(arguments=None):
    """Run the evaluations, and print what they found."""
    parser = argparse.ArgumentParser(
        description="Measure the starter adapter on test splits.",
        epilog="Other options are given to all evaluations.",
    )
    parser.add_argument("--data_folder", required=True, help="speech folder")
    parser.add_argument("--adapter_folder", default="pretrained/starter")
    args, options = parser.parse_known_args(arguments)
    data = os.path.abspath(args.data_folder)
    corpora = find_corpora(data)
    spoken = [name for name in corpora if name not in LABELS]
    options += ["--adapter_folder", args.adapter_folder]
    tables = []
    for name in spoken:
        asr = ("asr", "asr", f"asr_{name}", data, [name], options)
        tables.append(evaluate(*asr))
        tables.append(agreement(name, data, args.adapter_folder))
    if spoken:
        chat = ("chat", "chat", "chat", data, spoken, options)
        tables.append(evaluate(*chat))
    for name, task in LABELS.items():
        if name in corpora:
            slu = ("slu", task, task, data, [name], options)
            tables.append(evaluate(*slu))
    print("\n".join(tables))


if __name__ == "__main__":
    main()
