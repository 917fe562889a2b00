#!/usr/bin/env python3
"""How well bare transcripts are recased, and what that does to continuations.

Real sentences with case and punctuation lose both, as LibriSpeech's have. Then
variants of each are compared: `given` (upper-case), `rule` (`recase`),
`rewritten` (an LLM's rewriting, projected), `likeliest` (`CasingEngine`) and
`true`.

> python benchmarks/recasing.py manifest.csv --llm /models/chat-llm

An LLM without a chat template takes a plain prompt with {speech} in it, from
a file (--template) that ends where the rewriting begins. One JSON line:

n, llm, instruction     what was measured
matched                 mean fraction of words that the rewriting kept
fallback                fraction of sentences left to the rule
each variant has
  seconds               a sentence, for the two that ask the LLM
  case                  fraction of words in the true case
  capitals              F1 of words with a capital in them
  names                 the same inside sentences, "I" left out
  marks                 F1 of . , ? ! after the right words
  inner_marks, comma    the same inside the text; of commas alone
  exact                 fraction of sentences that are the true ones
and, where the LLM has a chat template, what continues them:
  ce                    mean cross-entropy of a token (and of the end) of the
                        true text's continuation, nats
  agreement             fraction of these that are the most likely ones
  same                  fraction of continuations equal to the true text's
  shouted               fraction of continuations in capitals
  rejected, truncated   fractions, as stage 1 judges them
  tokens                mean length

Authors
 * The blsp_plugin team 2026
"""

import argparse
import csv
import json
import random
import time

import torch

from blsp_plugin.continuation import filters
from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.engines import CasingEngine, HFEngine, Request
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.recasing import INSTRUCTION, WORD, Recaser, project
from blsp_plugin.data.text import is_shouted, needs_recasing, recase
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.prompts import Prompt

CONTINUE = (
    "Continue the following text in a coherent and engaging style with less "
    "than 40 words."
)
FILTERS = [
    filters.EmptyResponse(),
    filters.Refusal(),
    filters.Repetition(repeats=4, min_tokens=12),
    filters.TooShort(min_tokens=4),
    filters.Echo(max_overlap=0.8),
]
MARKS = ".,?!"


def read_sentences(args):
    """The distinct sentences that are measured."""
    if args.tsv:
        with open(args.manifest, encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t", quoting=3)
            texts = [row[args.text_key] for row in rows]
    else:
        rows = read_manifest(args.manifest, args.text_key, need_audio=False)
        texts = [row["text"] for row in rows.rows]
    texts = sorted({text for text in texts if not needs_recasing(text)})
    texts = [text for text in texts if len(WORD.findall(text)) > 2]
    random.Random(args.seed).shuffle(texts)
    return texts[args.skip :][: args.n]


def strip(text):
    """A sentence as LibriSpeech writes it."""
    return " ".join(WORD.findall(text)).upper()


def f1(pairs):
    """Of (true, found) counts of several marks or words."""
    pairs = list(pairs)
    both = sum(min(pair) for pair in pairs)
    total = sum(map(sum, pairs))
    return round(2 * both / total, 4) if total else None


def quality(texts, truths):
    """Case and punctuation of texts with the right words."""
    case, capitals, names = [], [], []
    marks, inner, commas = [], [], []
    for text, true in zip(texts, truths, strict=True):
        gaps, true_gaps = WORD.split(text)[1:], WORD.split(true)[1:]
        start = True
        for i, (word, right) in enumerate(
            zip(WORD.findall(text), WORD.findall(true), strict=True)
        ):
            case.append(word == right)
            capitals.append((not right.islower(), not word.islower()))
            if not start and right.split("'")[0] != "I":
                names.append(capitals[-1])
            start = any(mark in true_gaps[i] for mark in ".?!")
            counts = [
                (true_gaps[i].count(mark), gaps[i].count(mark))
                for mark in MARKS
            ]
            marks += counts
            if i + 1 < len(gaps):
                inner += counts
                commas.append(counts[1])
    exact = sum(a == b for a, b in zip(texts, truths, strict=True))
    return {
        "case": round(sum(case) / len(case), 4),
        "capitals": f1(capitals),
        "names": f1(names),
        "marks": f1(marks),
        "inner_marks": f1(inner),
        "comma": f1(commas),
        "exact": round(exact / len(truths), 4),
    }


def requests(prompt, behaviour, texts):
    """What the engine is asked."""
    prefix, suffix = prompt.ids(behaviour.instruction)
    return [
        Request(
            str(i),
            behaviour,
            text,
            (*prefix, *prompt.slot_ids(behaviour.instruction, text), *suffix),
        )
        for i, text in enumerate(texts)
    ]


def ask(engine, asked):
    """The engine's answers, in the order of the requests."""
    answers = {}
    for group in engine.generate(engine.plan(asked)):
        answers.update({request.key: answer for request, answer in group})
    return [answers[request.key] for request in asked]


@torch.no_grad()
def score(llm, asked, targets):
    """Cross-entropy and agreement of responses, a token, under prompts."""
    total, agree, n = 0.0, 0, 0
    for request, target in zip(asked, targets, strict=True):
        ids = list(target.ids) + [llm.eos_id] * target.ended
        row = torch.tensor([[*request.prompt_ids, *ids]], device=llm.device)
        mask = torch.ones_like(row)
        places = torch.arange(row.shape[1], device=llm.device).unsqueeze(0)
        hidden = llm.hidden(llm.embed(row), mask, places)
        logits = llm.project(hidden[0, -len(ids) - 1 : -1])
        right = row[0, -len(ids) :]
        loss = torch.nn.functional.cross_entropy(logits, right, reduction="sum")
        total += loss.item()
        agree += (logits.argmax(-1) == right).sum().item()
        n += len(ids)
    return {"ce": round(total / n, 4), "agreement": round(agree / n, 4)}


def continuations(llm, prompt, variants, batch_size):
    """What follows each variant, compared with what follows the true text."""
    engine = HFEngine(llm, batch_size=batch_size)
    behaviour = Behaviour("continue", CONTINUE, max_new_tokens=64)
    asked = {
        name: requests(prompt, behaviour, texts)
        for name, texts in variants.items()
    }
    written = {name: ask(engine, rows) for name, rows in asked.items()}
    results = {}
    for name, answers in written.items():
        n = len(answers)
        reasons = [
            filters.first_reason(FILTERS, request, answer)
            for request, answer in zip(asked[name], answers, strict=True)
        ]
        same = [
            answer.ids == true.ids
            for answer, true in zip(answers, written["true"], strict=True)
        ]
        results[name] = {
            **score(llm, asked[name], written["true"]),
            "same": sum(same) / n,
            "shouted": sum(is_shouted(answer.text) for answer in answers) / n,
            "rejected": sum(reason is not None for reason in reasons) / n,
            "truncated": sum(not answer.ended for answer in answers) / n,
            "tokens": sum(len(answer.ids) for answer in answers) / n,
        }
    return results


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", help="CSV with cased, punctuated text")
    parser.add_argument("--text_key", default="wrd", help="its text column")
    parser.add_argument(
        "--tsv", action="store_true", help="tab-separated, without quoting"
    )
    parser.add_argument("--llm", required=True, help="folder or hub id")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--template", help="file with a plain prompt")
    parser.add_argument("--min_matched", type=float, default=0.7)
    parser.add_argument(
        "--lower", action="store_true", help="what the LLM is given"
    )
    parser.add_argument("--language", default="en")
    parser.add_argument("--n", type=int, default=180, help="sentences")
    parser.add_argument("--skip", type=int, default=0, help="left out before")
    parser.add_argument("--seed", type=int, default=1, help="of their order")
    parser.add_argument("--batch_size", type=int, default=16)
    return parser.parse_args()


def main():
    """Measure, and print one JSON line."""
    args = parse_arguments()
    truths = read_sentences(args)
    bare = [strip(text) for text in truths]
    llm = FrozenLLM(args.llm, dtype=args.dtype)
    template = None
    if args.template:
        with open(args.template, encoding="utf-8") as stream:
            template = stream.read().rstrip("\n")
    prompt = Prompt(llm.tokenizer, template=template)
    recaser = Recaser(
        args.instruction,
        min_matched=args.min_matched,
        form="lower" if args.lower else "rule",
        language=args.language,
    )

    # 1. The LLM rewrites every sentence.
    given = [recaser.given(text) for text in bare]
    longest = max(len(llm.tokenizer(text)["input_ids"]) for text in given)
    behaviour = Behaviour(
        "recase",
        args.instruction,
        max_new_tokens=recaser.max_new_tokens(longest),
        stop="\n" if template else None,
    )
    asked = requests(prompt, behaviour, given)
    start = time.time()
    rewritten = ask(HFEngine(llm, batch_size=args.batch_size), asked)
    seconds = {"rewritten": (time.time() - start) / len(truths)}

    # 2. It chooses between forms of each word instead.
    start = time.time()
    asked = requests(prompt, behaviour, bare)
    likeliest = ask(CasingEngine(llm, batch_size=args.batch_size), asked)
    seconds["likeliest"] = (time.time() - start) / len(truths)

    # 3. What both are worth.
    pairs = list(zip(bare, [answer.text for answer in rewritten], strict=True))
    matched = [project(*pair, args.language).matched for pair in pairs]
    variants = {
        "true": truths,
        "rule": [recase(text, args.language) for text in bare],
        "given": bare,
        "rewritten": [recaser.apply(*pair) for pair in pairs],
        "likeliest": [answer.text for answer in likeliest],
    }
    results = {name: quality(texts, truths) for name, texts in variants.items()}
    for name, value in seconds.items():
        results[name]["seconds"] = value
    if template is None:
        found = continuations(llm, prompt, variants, args.batch_size)
        for name, measures in found.items():
            results[name].update(measures)
    n = len(truths)
    line = {
        "n": n,
        "llm": llm.source,
        "instruction": args.template or args.instruction,
        "matched": sum(matched) / n,
        "fallback": sum(m < args.min_matched for m in matched) / n,
        **results,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
