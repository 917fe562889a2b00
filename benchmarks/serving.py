#!/usr/bin/env python3
"""Many callers at once: our front before a stock vLLM, and one by one here.

A vLLM server (CPU) and ``blsp serve`` are started; all
callers send a clip of their own at the same time, through OpenAI's client. The
same clips are answered one at a time by `SpeechLLM.answer`, one half before
and one half after, on the same cores. One JSON line:

* ``callers``, ``answered``: that asked, and that got a text;
* ``equal_texts``: share of the texts that are those of `SpeechLLM.answer`,
  letter by letter (in float32 near ties differ; in bfloat16 more);
  ``equal_streams``: likewise of streamed answers;
* ``served_per_second``, ``alone_per_second``: answers, clips encoded anew;
* ``ratio``: the former over the latter;
* ``first_piece``, ``stream_seconds``: median seconds to a stream's first
  piece, and to the end of all, with as many callers;
* ``encoder_calls``: micro-batches in which the clips were encoded;
* ``front_mb``: memory of the front, which has no LLM.

> python benchmarks/serving.py --adapter results/demo/blsp/adapter

Authors
 * The blsp_plugin team 2026
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import openai

from blsp_plugin import starter
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.package import read_facts

INSTRUCTION = (
    "Continue the following text in a coherent and engaging style with less "
    "than 40 words."
)


def load(args):
    """Paths of as many clips as there are callers."""
    corpus = prepare_corpus(args.data_folder, args.save_folder)
    rows = []
    for path in (corpus.test_csv, corpus.train_csv):
        manifest = read_manifest(path, data_root=corpus.data_root)
        rows += [row for row in manifest.rows if row["duration"] >= 1.0]
    step = max(1, len(rows) // args.callers)
    return [row["wav"] for row in rows[::step]][: args.callers]


def free_port():
    """A port that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command, url, log, seconds=600, **environment):
    """A server that answers at an address; its process."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    try:
        limit = time.time() + seconds
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url).read()
                break
            if process.poll() is not None or time.time() > limit:
                with open(log, encoding="utf-8", errors="replace") as stream:
                    sys.exit(f"{command[:3]}:\n{stream.read()[-3000:]}")
            time.sleep(0.2)
        yield process
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


@contextlib.contextmanager
def servers(args, llm, folder):
    """vLLM and the front; address and process of the front."""
    port, front = free_port(), free_port()
    vllm = [args.vllm_python, "-m", "vllm.entrypoints.openai.api_server"]
    vllm += ["--model", llm, "--served-model-name", "llm"]
    vllm += ["--host", "127.0.0.1", "--port", str(port)]
    vllm += ["--dtype", args.dtype, "--max-model-len", "512"]
    vllm += ["--block-size", "32", "--enforce-eager", "--enable-prompt-embeds"]
    ours = [sys.executable, "-m", "blsp_plugin", "serve", args.adapter]
    ours += ["--vllm", f"http://127.0.0.1:{port}", "--port", str(front)]
    ours += ["--device", "cpu", "--cache-mb", "0"]  # all is encoded anew
    ours += ["--encoder-dtype", args.dtype]
    if args.llm:
        ours += ["--llm", args.llm]
    url = f"http://127.0.0.1:{front}"
    with running(
        vllm,
        f"http://127.0.0.1:{port}/health",
        os.path.join(folder, "vllm.txt"),
        VLLM_CPU_KVCACHE_SPACE="1",
    ):
        log = os.path.join(folder, "front.txt")
        with running(ours, f"{url}/health", log) as process:
            yield url, process


async def ask(url, files, limit, stream):
    """All callers at once: texts, and seconds to the first of each."""

    async def call(client, data):
        clip = {"data": data, "format": "wav"}
        content = [
            {"type": "input_audio", "input_audio": clip},
            {"type": "text", "text": INSTRUCTION},
        ]
        answer = await client.chat.completions.create(
            model="blsp",
            messages=[{"role": "user", "content": content}],
            max_tokens=limit,
            stream=stream,
        )
        if not stream:
            first = time.perf_counter() - begin
            return answer.choices[0].message.content, first
        text, first = "", None
        async for chunk in answer:
            piece = chunk.choices[0].delta.content
            if piece and first is None:
                first = time.perf_counter() - begin
            text += piece or ""
        return text, first or time.perf_counter() - begin

    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900
    ) as client:
        begin = time.perf_counter()
        calls = [call(client, data) for data in files]
        found = await asyncio.gather(*calls, return_exceptions=True)
        seconds = time.perf_counter() - begin
    errors = [pair for pair in found if isinstance(pair, Exception)]
    if errors:
        sys.stderr.write(f"{len(errors)} errors, the first: {errors[0]}\n")
    found = [(None, 0) if isinstance(p, Exception) else p for p in found]
    texts, firsts = zip(*found, strict=True)
    return list(texts), statistics.median(firsts), seconds


def resident(process):
    """Memory of a process, MB."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as stream:
        return int(re.search(r"VmRSS:\s+(\d+)", stream.read())[1]) / 1024


def main(argv):
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--adapter", default="results/demo/blsp/adapter")
    add("--llm", help="where it is not that of the folder")
    add("--vllm-python", default=".venv-vllm/bin/python")
    add("--data_folder", help="a corpus; the starter's if not given")
    add("--save_folder", default="results/benchmark", help="for its CSV files")
    add("--callers", type=int, default=64)
    add("--dtype", default="float32", help="of LLM and encoder, on both sides")
    add("--max_new_tokens", type=int, default=48)
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    llm = args.llm or starter.resolve(read_facts(args.adapter)["llm"])
    paths, limit = load(args), args.max_new_tokens
    files = []
    for path in paths:
        with open(path, "rb") as stream:
            files.append(base64.b64encode(stream.read()).decode())
    here = SpeechLLM.from_hparams(
        args.adapter, llm=args.llm, dtype=args.dtype, encoder_dtype=args.dtype
    )
    here.answer(paths[0], INSTRUCTION, max_new_tokens=limit)

    def alone(some):
        begin = time.perf_counter()
        texts = [
            here.answer(path, INSTRUCTION, max_new_tokens=limit)
            for path in some
        ]
        return texts, time.perf_counter() - begin

    half = len(paths) // 2
    with (
        tempfile.TemporaryDirectory() as folder,
        servers(args, llm, folder) as (url, process),
    ):
        asyncio.run(ask(url, files[:2], limit, False))
        expected, before = alone(paths[:half])
        texts, _, seconds = asyncio.run(ask(url, files, limit, False))
        with urllib.request.urlopen(f"{url}/metrics") as response:
            encoder = json.load(response)["encoder"]
        more, after = alone(paths[half:])
        streamed, first, took = asyncio.run(ask(url, files, limit, True))
        memory = resident(process)
    expected += more
    answered = [text for text in texts if text is not None]
    same = [a == b for a, b in zip(texts, expected, strict=True)]
    result = {
        "callers": len(paths),
        "answered": len(answered),
        "equal_texts": sum(same) / len(same),
        "equal_streams": sum(
            a == b for a, b in zip(streamed, expected, strict=True)
        )
        / len(same),
        "served_per_second": len(answered) / seconds,
        "alone_per_second": len(paths) / (before + after),
        "ratio": (before + after) / seconds,
        "first_piece": first,
        "stream_seconds": took,
        "encoder_calls": encoder["calls"],
        "front_mb": memory,
        "dtype": args.dtype,
        "max_new_tokens": limit,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
