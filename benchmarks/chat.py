#!/usr/bin/env python3
"""A conversation whose turns are kept, beside reading all of it anew.

Five turns, each a question about a clip of the test set. The kept chat encodes
the new clip and reads what is new; the other encodes all clips and reads the
whole conversation, as a stateless server does. Turn about in one process, some
conversations with other clips. One JSON line:

* ``first_token``: seconds to the first token of the fifth turn, median, of the
  ``kept`` chat and ``anew``; ``ratio``: the median of kept over anew;
* ``turns``: the same ratio of each turn;
* ``equal_texts``: share of the replies that are the same (1 in float32);
* ``tokens_per_second`` of a reply with weights of each dtype, one caller.

> python benchmarks/chat.py --adapter results/demo/blsp/adapter

Authors
 * The blsp_plugin team 2026
"""

import argparse
import json
import os
import statistics
import sys
import time

from blsp_plugin.conversation import Speech
from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.inference import SpeechLLM

QUESTIONS = [
    "Please repeat the following words.",
    "What is the following text about?",
    "Continue the following text.",
    "Please repeat the following words.",
    "Is this a question or a statement?",
]


def anew(speech_llm, chat, wavs, text, wav, limit):
    """The same turn of a chat that knows its texts and clips, and no states."""
    fresh = speech_llm.chat()
    clips = iter(speech_llm.hear(wavs)) if wavs else iter(())
    fresh._messages = [
        (role, content)
        if role != "user"
        else (
            role,
            [
                Speech(next(clips)) if isinstance(p, Speech) else p
                for p in content
            ],
        )
        for role, content in chat._messages
    ]
    reply = fresh.send(text, wav, limit)
    return reply, fresh.figures


def main(argv):
    """Print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--adapter", default="results/demo/blsp/adapter")
    add("--data_folder", help="a corpus; the starter's if not given")
    add("--save_folder", default="results/benchmark", help="for its CSV files")
    add("--conversations", type=int, default=5)
    add("--max_new_tokens", type=int, default=40)
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    corpus = prepare_corpus(args.data_folder, args.save_folder)
    manifest = read_manifest(corpus.train_csv, data_root=corpus.data_root)
    rows = [row for row in manifest.rows if 3 <= row["duration"] <= 12]
    wavs = [read_speech(row["wav"]) for row in rows]
    limit, turns = args.max_new_tokens, len(QUESTIONS)
    speech_llm = SpeechLLM.from_hparams(
        args.adapter, dtype="float32", encoder_dtype="float32"
    )
    times, equal = {"kept": [], "anew": []}, []
    for number in range(args.conversations + 1):  # the first warms up
        chat, spoken = speech_llm.chat(), []
        kept_times, anew_times = [], []
        for turn, text in enumerate(QUESTIONS):
            wav = wavs[(number * turns + turn) % len(wavs)]
            again, figures = anew(speech_llm, chat, spoken, text, wav, limit)
            # What a stateless server encodes again is counted too.
            anew_times.append(
                figures.first_token + encoding(speech_llm, spoken)
            )
            reply = chat.send(text, wav, limit)
            kept_times.append(chat.figures.first_token)
            spoken.append(wav)
            equal.append(reply == again)
        if number:
            times["kept"].append(kept_times)
            times["anew"].append(anew_times)
    ratios = [
        [kept / new for kept, new in zip(*pair, strict=True)]
        for pair in zip(times["kept"], times["anew"], strict=True)
    ]
    by_turn = [
        round(statistics.median(r), 3) for r in zip(*ratios, strict=True)
    ]
    line = {
        "conversations": args.conversations,
        "first_token": {
            name: round(statistics.median(t[-1] for t in some), 4)
            for name, some in times.items()
        },
        "ratio": by_turn[-1],
        "turns": by_turn,
        "equal_texts": sum(equal) / len(equal),
        "tokens_per_second": {
            dtype: speed(args.adapter, dtype, wavs[:4])
            for dtype in ("float32", "bfloat16", "int8")
        },
    }
    json.dump(line, sys.stdout)
    sys.stdout.write("\n")


def encoding(speech_llm, wavs):
    """Seconds to encode clips."""
    if not wavs:
        return 0.0
    began = time.perf_counter()
    speech_llm.hear(wavs)
    return time.perf_counter() - began


def speed(adapter, dtype, wavs):
    """Tokens a second while a reply is written, median."""
    speech_llm = SpeechLLM.from_hparams(adapter, dtype=dtype)
    rates = []
    for wav in [wavs[0], *wavs]:
        chat = speech_llm.chat()
        chat.send(QUESTIONS[2], wav, 60)
        figures = chat.figures
        if figures.reply_tokens > 8:
            seconds = figures.seconds - figures.first_token
            rates.append((figures.reply_tokens - 1) / seconds)
    return round(statistics.median(rates[1:] or rates), 1) if rates else None


if __name__ == "__main__":
    main(sys.argv[1:])
