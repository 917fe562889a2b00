#!/usr/bin/env python3
"""A training step, taken apart: where the time goes, and beside the authors'.

Trains on real batches of stage 1's responses (a sampler's own batches), and
with ``--upstream`` the same batches in the same process, taking turns, the way
the authors' released code does: 30 s of encoder for every clip, speech padded
to the batch's longest in the middle of the rows, no prefix reuse, logits of
every position. One JSON line; times are medians over the batches' sums of
``--repeats`` runs:

* ``audio_seconds_per_second`` and ``llm_tokens_per_second`` (positions that
  the LLM computes, padding not counted), live and with ``cached_`` before the
  name: with the encoder's states at hand;
* ``seconds``: by part (data: reading and mel of the clips, in one process;
  encoder; adapter; llm_forward; llm_backward; head; optimizer), all batches;
* ``gflop``: counted from shapes, by part; the frozen LLM has no weight
  gradients, so its backward pass is one product a matrix, as the forward;
* ``peak_gflops``: matrix products at the shapes of the LLM's own layers, in
  its dtype; ``fraction_of_peak``: of the LLM's forward and backward passes;
* ``padding_ratio``: padded positions over all that the LLM computes;
* ``ratio_live``, ``ratio_cached``: upstream's time over ours, without and
  with cached encoder states; ``peak_memory_ratio``: what a step on the
  largest batch adds to the models' memory, ours over upstream's.

> python benchmarks/train_step.py --upstream
> python benchmarks/train_step.py --upstream --device cuda \
    --llm-config llama2-7b --whisper-config small

With configurations the weights are random and the lengths those of short
utterances (log-normal, 5 s on average); nothing is read from the disk.

Authors
 * The blsp_plugin team 2026
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict

import torch
from tokenizers import Tokenizer, models
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import (
    WhisperEncoder as Layers,
)

from blsp_plugin import starter
from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.dataset import open_continuations
from blsp_plugin.data.sampler import TokenBudgetSampler
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.lengths import (
    SAMPLE_RATE,
    encoder_frames,
    mel_frames,
    similar_lengths,
)
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.losses import ResponseCrossEntropy, response_loss
from blsp_plugin.model import BLSP
from blsp_plugin.packing import Row, pack
from blsp_plugin.prompts import Prompt
from blsp_plugin.speech import by_length

LLMS = {
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
WHISPERS = {
    "base": {
        "d_model": 512,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
    },
    "small": {
        "d_model": 768,
        "encoder_layers": 12,
        "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
    },
}


class RandomLLM(FrozenLLM):
    """Random weights of a configuration, made where they will be used."""

    def open_models(self, source, **options):
        """A tokenizer that knows the end of a text, and the model."""
        words = Tokenizer(models.WordLevel({"</s>": 2}, unk_token="</s>"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="</s>", pad_token="</s>"
        )
        config = LlamaConfig(**LLMS[source], max_position_embeddings=2048)
        return tokenizer, AutoModelForCausalLM.from_config(config, **options)


class RandomWhisper(WhisperEncoder):
    """Random weights of a configuration."""

    def open_models(self, source, dtype):
        """The usual features, and the encoder."""
        config = WhisperConfig(**WHISPERS[source])
        return WhisperFeatureExtractor(), Layers(config).to(dtype)


class Clock:
    """Adds up what parts take."""

    def __init__(self, device):
        self.device = device
        self.seconds = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name):
        """Time a part."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] += time.perf_counter() - start

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Bench:
    """Models, optimizer and batches, and both ways of a step."""

    def __init__(self, args):
        self.args = args
        self.device = torch.device(args.device)
        on_cpu = self.device.type == "cpu"
        attention = args.attention or ("eager" if on_cpu else "sdpa")
        options = {
            "dtype": args.dtype,
            "attn_implementation": attention,
            "gradient_checkpointing": args.gradient_checkpointing,
            "compile_layers": args.compile,
        }
        with torch.device(self.device):
            if args.llm_config:
                llm = RandomLLM(args.llm_config, **options)
            else:
                llm = FrozenLLM(args.llm or starter.smollm2(), **options)
            if args.whisper_config:
                name = args.whisper_config
                encoder = RandomWhisper(name, dtype=args.dtype)
            else:
                whisper = args.whisper or starter.whisper_base()
                encoder = WhisperEncoder(whisper, dtype=args.dtype)
        torch.manual_seed(0)
        adapter = ConvAdapter(
            encoder.output_size, llm.hidden_size, gain=llm.embedding_rms
        )
        self.model = BLSP(encoder, adapter, llm).to(self.device)
        self.optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
        self.losses = [ResponseCrossEntropy()]
        self.batches = self.load()

    # Batches

    def load(self):
        """Lists of (wav or samples, row), as a sampler deals them."""
        rows = self.random_rows() if self.args.llm_config else self.real_rows()
        # The instruction is not computed: its states are reused.
        lengths = [row.length - len(row.prefix) for _, row in rows]
        sampler = TokenBudgetSampler(lengths, self.args.max_batch_tokens)
        batches = [[rows[i] for i in batch] for batch in sampler]
        return batches[: self.args.batches]

    def real_rows(self):
        """Rows of stage 1's table."""
        path = self.args.continuations
        cache = tempfile.mkdtemp()
        table = open_continuations(path, cache_dir=cache)
        prompt = Prompt(self.model.llm.tokenizer)
        rows = []
        for entry in table:
            samples = round(entry["duration"] * SAMPLE_RATE)
            ids = tuple(entry["response_ids"])
            prefix, suffix = prompt.ids(entry["instruction"])
            slot = self.model.speech_tokens(samples)
            row = Row(prefix, slot, suffix, ids, entry["ended"])
            rows.append(((entry["wav"], samples), row))
        return rows

    def random_rows(self):
        """Noise of the lengths of short utterances, and responses to it."""
        generator = torch.Generator().manual_seed(0)
        spread = torch.randn(4000, generator=generator)
        seconds = (1.45 + 0.6 * spread).exp().clamp(0.5, 30).tolist()
        rows = []
        for number, length in enumerate(seconds):
            samples = int(length * SAMPLE_RATE)
            size = 20 + number % 45
            ids = torch.randint(100, 20000, (size,), generator=generator)
            slot = self.model.speech_tokens(samples)
            row = Row((7,) * 35, slot, (9,) * 8, tuple(ids.tolist()), True)
            rows.append(((None, samples), row))
        return rows

    def read(self, batch, frames=None):
        """Mel features; of 30 s each if so many frames are asked for."""
        mels, lengths = [], []
        encoder = self.model.encoder
        encoder.mel.pad_to_30s = frames is not None
        for (wav, samples), _ in batch:
            if wav is None:
                speech = torch.randn(samples) * 0.1
            else:
                speech = read_speech(wav)
            lengths.append(mel_frames(speech.shape[0]))
            mels.append(encoder.mel(speech))
        encoder.mel.pad_to_30s = False
        return pad_sequence(mels, batch_first=True), torch.tensor(lengths)

    def packed(self, batch, **options):
        """The rows as tensors."""
        llm = self.model.llm
        rows = [row for _, row in batch]
        return pack(rows, llm.tokenizer.pad_token_id, llm.eos_id, **options).to(
            self.device
        )

    # Ours

    def ours(self, batch, clock, encoded=None):
        """A step of this project; returns the loss per token."""
        model, device = self.model, self.device
        if encoded is None:
            with clock.part("data"):
                mel, lengths = self.read(batch)
            with clock.part("encoder"):
                # As `embed_speech` does, which cannot be timed in parts.
                states, lengths, _ = by_length(
                    lambda mel, lengths, _: (
                        *model.encoder(mel, lengths),
                        None,
                    ),
                    mel.to(device),
                    lengths.to(device),
                    None,
                )
        else:
            states, lengths = (x.to(device) for x in encoded)
        with clock.part("data"):
            packed = self.packed(batch, share_prefix=True)
        with clock.part("adapter"), self.autocast():
            speech = model.adapt(states, lengths)
        leaf = speech.embeds.detach().requires_grad_()
        with clock.part("llm_forward"):
            out = model(packed, speech._replace(embeds=leaf))
        with clock.part("head"):
            hidden = out.hidden.detach().requires_grad_()
            loss = response_loss(
                self.losses, out._replace(hidden=hidden), None, model.llm
            )
            loss.backward()
        with clock.part("llm_backward"):
            out.hidden.backward(hidden.grad)
        with clock.part("adapter"):
            speech.embeds.backward(leaf.grad)
        with clock.part("optimizer"):
            self.step(len(out.targets))
        return loss.item() / len(out.targets)

    def step(self, tokens):
        """Normalise, clip, step."""
        params = list(self.model.adapter.parameters())
        for param in params:
            param.grad /= tokens
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def autocast(self):
        """The adapter's arithmetic, in both ways of a step."""
        return torch.autocast(
            self.device.type, torch.bfloat16, self.args.dtype == "bfloat16"
        )

    # The authors' way

    def upstream(self, batch, clock, encoded=None):
        """A step as the authors' released code makes it."""
        model, device = self.model, self.device
        llm = model.llm
        with clock.part("data"):
            mel, lengths = self.read(batch, frames=3000)
        with clock.part("all"):
            encoder = model.encoder
            encoder.pad_to_30s = True
            states, lengths = encoder(mel.to(device), lengths.to(device))
            encoder.pad_to_30s = False
            with self.autocast():
                speech = model.adapt(states, lengths)
            rows = [row for _, row in batch]
            pad_id = llm.tokenizer.pad_token_id

            def block(parts, side=0):
                tensors = [torch.tensor(part) for part in parts]
                ids = pad_sequence(
                    tensors, batch_first=True, padding_value=pad_id
                )
                mask = pad_sequence(
                    [torch.ones_like(part) for part in tensors],
                    batch_first=True,
                )
                return ids.to(device), mask.to(device)

            prefix, prefix_mask = block([row.prefix for row in rows])
            ends = [
                (*row.suffix, *row.response, *[llm.eos_id] * row.ended)
                for row in rows
            ]
            suffix, suffix_mask = block(ends)
            steps = torch.arange(speech.embeds.shape[1], device=device)
            speech_mask = steps < speech.lengths[:, None]
            embeds = torch.cat(
                [
                    llm.embed(prefix),
                    speech.embeds.to(llm.dtype),
                    llm.embed(suffix),
                ],
                dim=1,
            )
            mask = torch.cat([prefix_mask, speech_mask, suffix_mask], dim=1)
            labels = torch.full(mask.shape, -100, device=device)
            before = mask.shape[1] - suffix.shape[1]
            for number, row in enumerate(rows):
                start = len(row.suffix)
                labels[number, before + start : before + len(ends[number])] = (
                    suffix[number, start : len(ends[number])]
                )
            logits = llm.model(
                inputs_embeds=embeds, attention_mask=mask.long()
            ).logits
            loss = functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1),
                labels[:, 1:].flatten(),
                ignore_index=-100,
            )
            loss.backward()
            self.step(1)
        return loss.item()

    # Counting

    def count(self, batch, encoded):
        """FLOPs of our step, by part, and positions: (used, padding)."""
        model = self.model
        rows = [row for _, row in batch]
        sizes = [row.length - len(row.prefix) for row in rows]
        positions = len(rows) * max(sizes)
        llm = model.llm.model.config.get_text_config()
        whisper = model.encoder.encoder.config
        frames = [encoder_frames(mel_frames(clip[1])) for clip, _ in batch]
        # (clips, longest) of each group that is computed at once.
        groups = [
            (len(group), max(frames[clip] for clip in group))
            for group in similar_lengths(torch.tensor(frames))
        ]
        counted = defaultdict(float)
        if not encoded:
            width = whisper.d_model
            layer = 4 * width**2 + 2 * width * whisper.encoder_ffn_dim
            convs = 2 * whisper.num_mel_bins * 3 * width + 3 * width**2
            layers = whisper.encoder_layers
            for clips, longest in groups:
                each = 2 * (layers * layer + convs)
                each += 4 * longest * width * layers
                counted["encoder"] += clips * longest * each
        matrices = (
            sum(a * b for a, b in layer_shapes(model.llm))
            * llm.num_hidden_layers
        )
        heads = llm.num_attention_heads * (
            getattr(llm, "head_dim", None)
            or llm.hidden_size // llm.num_attention_heads
        )
        # Eager attention computes all of (query, key), masked or not.
        keys = max(len(row.prefix) for row in rows) + max(sizes)
        attention = 2 * 2 * positions * keys * heads * llm.num_hidden_layers
        forward = 2 * positions * matrices + attention
        counted["llm_forward"] = forward
        counted["llm_backward"] = forward + attention
        targets = sum(len(row.response) + row.ended for row in rows)
        counted["head"] = 4 * targets * llm.hidden_size * llm.vocab_size
        for clips, length in groups:
            for conv in model.adapter.convs:
                length = (length - 1) // 2 + 1
                counted["adapter"] += 6 * clips * length * conv.weight.numel()
        return counted, sum(sizes), positions


def layer_shapes(llm):
    """(in, out) of the matrices of the LLM's first layer."""
    layer = llm.model.base_model.layers[0]
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    return [(m.in_features, m.out_features) for m in linear]


def matmul_peak(llm, positions, device, repeats=30):
    """FLOP/s of the products of a layer, forward and backward."""
    clock, flops = Clock(device), 0
    for size_in, size_out in layer_shapes(llm):
        one = torch.randn(positions, size_in, dtype=llm.dtype, device=device)
        two = torch.randn(positions, size_out, dtype=llm.dtype, device=device)
        weight = torch.randn(size_out, size_in, dtype=llm.dtype, device=device)
        for left, right in ((one, weight.T), (two, weight)):
            for _ in range(10):
                left @ right
            with clock.part("all"):
                for _ in range(repeats):
                    left @ right
            flops += repeats * 2 * positions * size_in * size_out
    return flops / clock.seconds["all"]


def memory_of(step, device):
    """Bytes that a step adds, at its peak."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError):  # give freed memory back first
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
        stream.write("5")  # start a new peak
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name):
    with open("/proc/self/status", encoding="ascii") as stream:
        for line in stream:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def measure(bench, args):
    """The JSON line."""
    batches, device = bench.batches, bench.device
    ways = {"live": lambda b, n, c: bench.ours(b, c)}
    encoded = []
    with torch.no_grad():
        for batch in batches:
            mel, lengths = bench.read(batch)
            states = bench.model.encoder(mel.to(device), lengths.to(device))
            encoded.append(
                (states[0].to(torch.bfloat16).cpu(), states[1].cpu())
            )
    ways["cached"] = lambda b, n, c: bench.ours(b, c, encoded[n])
    if args.upstream:
        ways["upstream"] = lambda b, n, c: bench.upstream(b, c)
    for number in (0, len(batches) - 1):  # compilation, kernels, allocator
        for way in ways.values():
            way(batches[number], number, Clock(device))
    runs = {name: [] for name in ways}
    for _ in range(args.repeats):
        clocks = {name: Clock(device) for name in ways}
        for number, batch in enumerate(batches):
            for name, way in ways.items():
                way(batch, number, clocks[name])
        for name, clock in clocks.items():
            runs[name].append(clock.seconds)

    def seconds(name, part=None):
        """Reading clips is the work of other processes: left out."""
        return statistics.median(
            run[part]
            if part
            else sum(value for key, value in run.items() if key != "data")
            for run in runs[name]
        )

    gflop, used, positions = defaultdict(float), 0, 0
    for batch in batches:
        counted, tokens, padded = bench.count(batch, encoded=False)
        used, positions = used + tokens, positions + padded
        for name, flops in counted.items():
            gflop[name] += flops / 1e9
    audio = sum(clip[1] for b in batches for clip, _ in b) / SAMPLE_RATE
    peak = matmul_peak(bench.model.llm, positions // len(batches), device)
    passes = ("llm_forward", "llm_backward")
    work = sum(gflop[name] for name in passes) * 1e9
    taken = sum(seconds("cached", name) for name in passes)
    parts = [*runs["live"][0]]
    result = {
        "audio_seconds_per_second": audio / seconds("live"),
        "cached_audio_seconds_per_second": audio / seconds("cached"),
        "llm_tokens_per_second": used / seconds("live"),
        "cached_llm_tokens_per_second": used / seconds("cached"),
        "seconds": {p: round(seconds("live", p), 3) for p in parts},
        "gflop": {name: round(value, 1) for name, value in gflop.items()},
        "peak_gflops": peak / 1e9,
        "fraction_of_peak": work / taken / peak,
        "padding_ratio": 1 - used / positions,
        "clips": sum(map(len, batches)),
        "mean_seconds": audio / sum(map(len, batches)),
        "batches": len(batches),
        "repeats": args.repeats,
        "dtype": args.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if args.upstream:
        result["upstream_audio_seconds_per_second"] = audio / seconds(
            "upstream"
        )
        for name in ("live", "cached"):
            result[f"ratio_{name}"] = seconds("upstream") / seconds(name)
        largest = max(
            range(len(batches)),
            key=lambda n: sum(row.length for _, row in batches[n]),
        )
        batch = batches[largest]
        memory = {
            name: memory_of(
                lambda way=way: way(batch, largest, Clock(device)), device
            )
            for name, way in ways.items()
        }
        result["peak_memory_mb"] = {k: v / 1e6 for k, v in memory.items()}
        result["peak_memory_ratio"] = memory["live"] / memory["upstream"]
    return result


def main(argv):
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--upstream", action="store_true", help="the authors' way beside it")
    add(
        "--continuations",
        default="results/demo/continuation/train.parquet",
        help="table of stage 1",
    )
    add("--llm", help="folder or hub id; the starter's if not given")
    add("--whisper", help="folder or hub id; the starter's if not given")
    add("--llm-config", choices=LLMS, help="random weights of this size")
    add("--whisper-config", choices=WHISPERS, help="random weights")
    add("--dtype", default="bfloat16", help="of the frozen parts")
    add("--attention", help="of the LLM: eager, sdpa, flash_attention_2")
    add("--compile", action="store_true", help="compile the LLM's layers")
    add("--gradient-checkpointing", action="store_true")
    add("--max-batch-tokens", type=int, default=1000)
    add("--batches", type=int, default=10)
    add("--repeats", type=int, default=3)
    add("--device", default="cpu")
    args = parser.parse_args(argv)
    if bool(args.llm_config) != bool(args.whisper_config):
        parser.error("give both --llm-config and --whisper-config, or none")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    result = measure(Bench(args), args)
    print(
        json.dumps(
            {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in result.items()
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
