#!/usr/bin/env python3
"""The starter adapter, from recordings to `pretrained/starter`.

Brings the corpora together (Whisper writes the transcripts that are missing),
speaks sentences and lists of words for what they lack, plays the recordings
faster and slower, and runs both stages: CTC, first into the LLM's embeddings,
then by the tokens' letters too, and the LLM's behaviours.

To run this recipe:
> python recipes/starter/starter.py --data_folder /data/speech

Without a data folder it trains on the starter corpus. A second run goes on
where the first was stopped.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import os

from tqdm import tqdm

from blsp_plugin import starter
from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.keys import clip_key
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.speech_folder import NEEDED, find_tables, write_table
from blsp_plugin.data.speeds import play_at_speeds
from blsp_plugin.data.tsv import read_tsv
from blsp_plugin.errors import BadInput, one_line_errors
from blsp_plugin.evaluation.systems import Clip
from blsp_plugin.evaluation.whisper_asr import WhisperASR
from blsp_plugin.stages import run_recipe

RECORDED = "results/starter/recorded"  # people, for both stages
SPEECH = "results/starter/speech"  # and a machine's sentences, for CTC
WORDS = "results/starter/words"  # and its lists of words
PLAYED = "results/starter/played"  # people at all speeds, and the sentences
SPOKEN = "synthetic"  # corpus of those sentences
AT_ONCE = 8  # clips that Whisper transcribes
STAGES = {
    "speak": "recipes/synthesis/speak.py",
    "transcripts": "recipes/continuation/generate.py",
    "warm": "recipes/blsp/train.py",
    "words": "recipes/synthesis/speak.py",
    "word_transcripts": "recipes/continuation/generate.py",
    "spelled": "recipes/blsp/train.py",
    "speed_transcripts": "recipes/continuation/generate.py",
    "speeds": "recipes/blsp/train.py",
    "generate": "recipes/continuation/generate.py",
    "train": "recipes/blsp/train.py",
}


def bring_together(data_folder):
    """List the English clips of a speech folder, or of the starter corpus."""
    corpus = starter_corpus()
    # The demo tests on these; other folders may have them to train on.
    held = {row["id"] for row in corpus if row["split"] != "train"}
    found = {"starter": corpus}
    if data_folder is not None:
        found = {
            name: [
                {**row, "wav": os.path.abspath(table.parent / row["wav"])}
                for _, row, reason in read_tsv(table, NEEDED)
                if not reason and row["lang"] == "en"
            ]
            for name, table in find_tables(data_folder).items()
        }
    if not any(found.values()):
        raise BadInput(
            f"{data_folder}: no manifest.tsv in it or in a folder of it has "
            "English clips; see docs/data.md"
        )
    for name, rows in found.items():
        rows = [r for r in rows if r["split"] != "train" or r["id"] not in held]
        if rows and not any(row["text"] for row in rows):
            rows = transcribe(rows, f"results/starter/transcribed/{name}")
        for folder in (RECORDED, SPEECH, WORDS, PLAYED) if rows else ():
            write_table(rows, os.path.join(folder, name))


def transcribe(rows, folder):
    """Write down what Whisper hears in clips; those to test stay out."""
    os.makedirs(folder, exist_ok=True)
    whisper = WhisperASR(starter.whisper_base(), language="en")
    whisper.open(folder)
    rows = [row for row in rows if row["split"] != "test"]
    heard = []
    for start in tqdm(range(0, len(rows), AT_ONCE), folder):
        some = rows[start : start + AT_ONCE]
        clips = [
            Clip(
                row["id"],
                clip_key(row["wav"]).hex(),
                "",
                read_speech(row["wav"]),
            )
            for row in some
        ]
        for row, answer in zip(some, whisper.hear(clips), strict=True):
            heard.append({**row, "text": answer.text})
    return heard


def starter_corpus():
    """The starter corpus' clips as rows of a speech folder's table."""
    files = prepare_corpus()
    rows = []
    for split in ("train", "valid", "test"):
        manifest = getattr(files, f"{split}_csv")
        for row in read_manifest(manifest, data_root=files.data_root).rows:
            fields = {"speaker": "", "lang": "en", "split": split}
            duration = f"{row['duration']:.3f}"
            wav = os.path.abspath(row["wav"])
            rows.append({**row, **fields, "wav": wav, "duration_s": duration})
    return rows


def add_sentences():
    """List the spoken sentences where the lists and the speeds are, too."""
    table = os.path.join(SPEECH, SPOKEN, "manifest.tsv")
    rows = [row for _, row, _ in read_tsv(table, NEEDED)]
    for row in rows:
        row["wav"] = os.path.abspath(os.path.join(SPEECH, SPOKEN, row["wav"]))
    for folder in (WORDS, PLAYED):
        write_table(rows, os.path.join(folder, SPOKEN))


def add_speeds():
    """Play what there is of people to train on faster and slower."""
    for corpus, table in find_tables(RECORDED).items():
        rows = [row for _, row, _ in read_tsv(table, NEEDED)]
        rows = [row for row in rows if row["split"] == "train"]
        if rows:
            play_at_speeds(rows, os.path.join(PLAYED, f"{corpus}_played"))


@one_line_errors
def main(arguments=None):
    """Run the stages."""
    parser = argparse.ArgumentParser(
        description="Train the starter adapter.",
        epilog="Other options are given to recipes/blsp/train.py.",
    )
    parser.add_argument(
        "--data_folder", help="speech folder with corpora (docs/data.md)"
    )
    parser.add_argument(
        "--sentences", help="spoken by a machine; else as the presets say"
    )
    parser.add_argument("--lists", help="of words that it speaks; else all")
    parser.add_argument("--device", default="cpu", help="such as cuda:0")
    args, training = parser.parse_known_args(arguments)
    bring_together(args.data_folder)
    device = ["--device", args.device]
    number = [] if args.sentences is None else ["--number", args.sentences]
    lists = [] if args.lists is None else ["--most_lists", args.lists]
    for name, script in STAGES.items():
        options = {
            "speak": number,
            "warm": [*device, *training],
            "words": [*number, *lists],
            "spelled": [*device, *training],
            "speeds": [*device, *training],
            "train": [*device, *training],
        }.get(name, device)
        if name == "speed_transcripts":
            add_speeds()
        run_recipe(script, f"hparams/starter/{name}.yaml", options)
        if name == "speak":
            add_sentences()


if __name__ == "__main__":
    main()
