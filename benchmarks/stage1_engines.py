#!/usr/bin/env python3
"""Response tokens per second of stage 1's engines, side by side in one run.

The authors' way (BLSP's released code: file order, batches of 8, padded to the
longest, transformers' ``generate``), the ``hf`` engine, and, if one listens, a
server through the ``server`` engine. They take turns on chunks of the same
transcripts, on the same cores, with the paper's instruction, greedily. One JSON
line:

* ``upstream``, ``hf``, ``server``: tokens per second, EOS counted;
* ``ratio_hf``: hf / upstream; ``ratio_server``: server / hf;
* ``same_hf``, ``same_server``: fraction of responses that are upstream's
  (in bfloat16 a batch's size already changes some);
* ``rows``, ``chunks``, ``dtype``, ``threads``.

> python benchmarks/stage1_engines.py
> python benchmarks/stage1_engines.py --server http://127.0.0.1:8000/v1

Authors
 * The blsp_plugin team 2026
"""

import argparse
import collections
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from blsp_plugin import starter
from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.engines import HFEngine, Request, ServerEngine
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.prompts import Prompt

CONTINUE = Behaviour(
    "continue",
    "Continue the following text in a coherent and engaging style with less "
    "than 40 words.",
    max_new_tokens=64,
)


def upstream(llm, model, requests, batch_size=8):
    """The authors' way: {number: ids}."""
    answers = {}
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        longest = max(len(request.prompt_ids) for request in batch)
        pad = llm.tokenizer.pad_token_id
        ids, mask = [], []
        for request in batch:
            gap = longest - len(request.prompt_ids)
            ids.append([pad] * gap + list(request.prompt_ids))
            mask.append([0] * gap + [1] * len(request.prompt_ids))
        with torch.no_grad():
            rows = model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=CONTINUE.max_new_tokens,
                do_sample=False,
                eos_token_id=llm.stop_ids,
                pad_token_id=pad,
            )
        for request, row in zip(batch, rows[:, longest:], strict=True):
            row = row.tolist()
            ends = [i for i, token in enumerate(row) if token in llm.stop_ids]
            answers[request.n] = row[: ends[0]] if ends else row
    return answers


def through(engine, requests):
    """An engine's answers: {number: ids}."""
    groups = engine.generate(engine.plan(requests))
    return {request.n: list(a.ids) for group in groups for request, a in group}


def main(argv):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", default=None, help="default: the starter LLM")
    parser.add_argument("--data_folder", default=None)
    parser.add_argument("--rows", type=int, default=436)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--server", default=None, help="an API's base URL")
    parser.add_argument("--model", default="llm", help="the server's name")
    args = parser.parse_args(argv)
    source = args.llm or starter.smollm2()
    llm = FrozenLLM(source, dtype=args.dtype)
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=llm.dtype)
    prompt = Prompt(llm.tokenizer)
    prefix, suffix = prompt.ids(CONTINUE.instruction)
    files = prepare_corpus(args.data_folder)
    rows = read_manifest(files.train_csv, data_root=files.data_root).rows
    requests = []
    for n, row in enumerate(rows[: args.rows]):
        slot = prompt.slot_ids(CONTINUE.instruction, row["text"])
        ids = (*prefix, *slot, *suffix)
        requests.append(
            Request(n, str(n), CONTINUE, CONTINUE.instruction, row["text"], ids)
        )
    ways = {
        "upstream": lambda some: upstream(llm, plain, some),
        "hf": lambda some: through(HFEngine(llm, args.batch_size), some),
    }
    if args.server:
        engine = ServerEngine(
            args.server,
            args.model,
            prompt,
            extra_body={"return_token_ids": True},
        )
        ways["server"] = lambda some: through(engine, some)
    for way in ways.values():
        way(requests[:4])  # nobody pays for the first call
    seconds, tokens = collections.Counter(), collections.Counter()
    answers = collections.defaultdict(dict)
    size = -(-len(requests) // args.chunks)
    for start in range(0, len(requests), size):
        chunk = requests[start : start + size]
        for name, way in ways.items():
            begin = time.perf_counter()
            found = way(chunk)
            seconds[name] += time.perf_counter() - begin
            answers[name].update(found)
            limit = CONTINUE.max_new_tokens
            tokens[name] += sum(
                len(ids) + (len(ids) < limit) for ids in found.values()
            )
    speed = {name: tokens[name] / seconds[name] for name in ways}
    result = {name: round(speed[name], 1) for name in ways}
    result["ratio_hf"] = round(speed["hf"] / speed["upstream"], 2)
    if args.server:
        result["ratio_server"] = round(speed["server"] / speed["hf"], 2)
    for name in list(ways)[1:]:
        same = [
            answers[name][n] == ids for n, ids in answers["upstream"].items()
        ]
        result[f"same_{name}"] = round(sum(same) / len(same), 3)
    result.update(
        rows=len(requests),
        chunks=args.chunks,
        dtype=args.dtype,
        threads=torch.get_num_threads(),
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
