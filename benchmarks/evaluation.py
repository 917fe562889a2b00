#!/usr/bin/env python3
"""Evaluation beside the authors' loop: the same clips, model and instruction.

The authors answer clip by clip in float32: 30 s of encoder, the whole prompt
and transformers' ``generate`` for each. Here clips are batched, encoded at
their own length, and share what is constant in the prompt. Both take turns in
one process, a batch each. One JSON line:

* ``clips_per_second`` of `ours`, of the ``authors`` loop, and of the same loop
  with the encoder at the clips' own length (``loop``);
* ``ratio``: ours over the authors'; ``ratio_loop``: over the latter;
* ``equal_texts``: share of clips to which ours and ``loop``, which hear the
  same states, give the same answer, letter by letter;
* ``cascade_wer``, ``pipeline_wer``: of Whisper in the cascade, and of
  transformers' own recognition pipeline on the same clips.

> python benchmarks/evaluation.py --adapter results/demo/blsp/adapter

Authors
 * The blsp_plugin team 2026
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict

import torch
from transformers import pipeline

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.evaluation.metrics import ErrorRates
from blsp_plugin.evaluation.whisper_asr import WhisperASR
from blsp_plugin.inference import SpeechLLM

INSTRUCTION = "Please repeat the following words."


def load(args):
    """Clips and their transcripts: the test set, filled up with others."""
    corpus = prepare_corpus(args.data_folder, args.save_folder)
    rows = []
    for path in (corpus.test_csv, corpus.train_csv):
        manifest = read_manifest(path, data_root=corpus.data_root)
        rows += [row for row in manifest.rows if row["duration"] >= 1.0]
    rows = rows[: args.clips]
    wavs = [read_speech(row["wav"]) for row in rows]
    return wavs, [row["text"] for row in rows]


def ours(model, prompt, wavs, limit):
    """A batch at once."""
    answers = model.answer(
        wavs, [INSTRUCTION] * len(wavs), prompt, max_new_tokens=limit
    )
    return [answer.text for answer in answers]


@torch.no_grad()
def one_at_a_time(model, prompt, wavs, limit, pad_to_30s):
    """As the authors' scripts do."""
    llm, texts = model.llm, []
    encoder = model.encoder
    before = encoder.pad_to_30s, encoder.mel.pad_to_30s
    encoder.pad_to_30s = encoder.mel.pad_to_30s = pad_to_30s
    for wav in wavs:
        speech = model.embed_wavs([wav])
        prefix, suffix = prompt.ids(INSTRUCTION)
        embeds = torch.cat(
            [
                llm.embed(torch.tensor(prefix)),
                speech.embeds[0],
                llm.embed(torch.tensor(suffix)),
            ]
        )
        written = llm.model.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=llm.stop_ids,
            pad_token_id=llm.tokenizer.pad_token_id,
        )
        text = llm.tokenizer.decode(written[0], skip_special_tokens=True)
        texts.append(text.strip())
    encoder.pad_to_30s, encoder.mel.pad_to_30s = before
    return texts


def word_error_rate(said, wanted):
    """WER in percent."""
    metric = ErrorRates(resamples=0)
    metric.append([str(n) for n in range(len(said))], said, wanted)
    return metric.summarize("wer")


def recognise(whisper, wavs, wanted):
    """WER of the cascade's Whisper, and of transformers' pipeline."""
    asr = WhisperASR(whisper, language="en")
    said = []
    for start in range(0, len(wavs), 16):
        said += asr.transcribe(wavs[start : start + 16])
    # In its own dtype it might be half as exact as the cascade's.
    recogniser = pipeline(
        "automatic-speech-recognition", model=whisper, dtype=torch.float32
    )
    known = recogniser.model.generation_config
    spoken = {"language": "en"} if known.is_multilingual else {}
    heard = [
        recogniser(
            {"raw": wav.numpy(), "sampling_rate": 16000},
            generate_kwargs={"num_beams": 1, **spoken},
        )["text"]
        for wav in wavs
    ]
    return word_error_rate(said, wanted), word_error_rate(heard, wanted)


def main(argv):
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--adapter", default="results/demo/blsp/adapter")
    add("--data_folder", help="a corpus; the starter's if not given")
    add("--save_folder", default="results/benchmark", help="for its CSV files")
    add("--clips", type=int, default=100)
    add("--batch_size", type=int, default=25)
    add("--max_new_tokens", type=int, default=48)
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    speechllm = SpeechLLM.from_hparams(
        args.adapter, dtype="float32", encoder_dtype="float32"
    )
    model, prompt = speechllm.model, speechllm.prompt
    wavs, wanted = load(args)
    order = sorted(range(len(wavs)), key=lambda n: -len(wavs[n]))
    wavs, wanted = [wavs[n] for n in order], [wanted[n] for n in order]
    limit = args.max_new_tokens
    ways = {
        "ours": lambda some: ours(model, prompt, some, limit),
        "loop": lambda some: one_at_a_time(model, prompt, some, limit, False),
        "authors": lambda some: one_at_a_time(model, prompt, some, limit, True),
    }
    for way in ways.values():
        way(wavs[-2:])
    seconds, texts = defaultdict(float), defaultdict(list)
    for start in range(0, len(wavs), args.batch_size):
        for name, way in ways.items():
            begin = time.perf_counter()
            texts[name] += way(wavs[start : start + args.batch_size])
            seconds[name] += time.perf_counter() - begin
    same = [a == b for a, b in zip(texts["ours"], texts["loop"], strict=True)]
    cascade, reference = recognise(model.encoder.source, wavs, wanted)
    result = {
        "clips": len(wavs),
        "audio_seconds": sum(map(len, wavs)) / 16000,
        "clips_per_second": {k: len(wavs) / s for k, s in seconds.items()},
        "ratio": seconds["authors"] / seconds["ours"],
        "ratio_loop": seconds["loop"] / seconds["ours"],
        "equal_texts": sum(same) / len(same),
        "cascade_wer": cascade,
        "pipeline_wer": reference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
