"""From stage 1's tables to what a training reads.

Authors
 * The blsp_plugin team 2026
"""

import copy
import os
from functools import partial

import torch
from speechbrain.utils.logger import get_logger

from blsp_plugin import adapters
from blsp_plugin.caching import EncoderStates, TeacherTargets
from blsp_plugin.data.dataset import (
    Collate,
    MelFeatures,
    continuation_dataset,
    open_continuations,
    row_frames,
    row_lengths,
)
from blsp_plugin.data.sampler import TokenBudgetSampler
from blsp_plugin.data.workers import worker_options
from blsp_plugin.distributed import ranks
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import clip_tokens
from blsp_plugin.pretrained import has_lora

__all__ = ["training_data", "weightless"]

logger = get_logger(__name__)


def training_data(hparams, brain):
    """Open the continuations, fill the caches, and plan the batches.

    Arguments
    ---------
    hparams : dict
        ``train_data``, ``valid_data``, the batches' limits, the caches'
        folders; see ``hparams/train.yaml``.
    brain : AlignmentBrain
        Gets the rows to probe.

    Returns
    -------
    dict of (DynamicItemDataset, dict)
        Dataset and loader options of "train" and "valid".

    Raises
    ------
    BadInput
        If a table cannot be read, or a cache would hold what changes.
    """
    rank, world_size = ranks()
    model, prompt = brain.model, hparams["prompt"]
    encoder, llm = model.encoder, model.llm
    features, encoded = MelFeatures(encoder.mel), False
    if hparams["encoder_cache"]:
        if has_lora(encoder):
            raise BadInput(
                "encoder_cache: the encoder learns (LoRA), so its states "
                "cannot be kept; leave encoder_cache or lora out"
            )
        features = EncoderStates(hparams["encoder_cache"], encoder)
        encoded = True
    limits = {
        "max_rows": hparams["max_batch_rows"],
        "max_frames": None if encoded else hparams["max_batch_frames"],
    }
    speech_tokens = partial(clip_tokens, adapter=weightless(model.adapter))
    data = {}
    for split, path, budget in (
        ("train", hparams["train_data"], hparams["max_batch_tokens"]),
        ("valid", hparams["valid_data"], hparams["valid_batch_tokens"]),
    ):
        training = split == "train"
        table = open_continuations(
            path,
            os.path.join(hparams["output_folder"], "arrow"),
            brain.noprogressbar,
            hparams["behaviours"],
        )
        lengths = row_lengths(table, prompt, speech_tokens)
        join = training and hparams["join_rows"]
        share = not join and llm.can_share_prefix(int(lengths.max()))
        filling = {
            "workers": hparams["num_workers"],
            "quiet": brain.noprogressbar,
        }
        if encoded:
            features.fill(table, encoder, hparams["fill_frames"], **filling)
        teacher = None
        if training and brain.needs_teacher and hparams["teacher_cache"]:
            teacher = _teacher(hparams, brain)
            teacher.fill(table, prompt, model, lengths, budget, **filling)
        if share:
            lengths = row_lengths(table, prompt, speech_tokens, True)
        window = brain.grad_accumulation_factor if training else 1
        sampler = TokenBudgetSampler(
            lengths,
            budget,
            shuffle=training,
            seed=hparams["seed"],
            rank=rank,
            world_size=world_size,
            batches_per_step=world_size * window,
            frames=None if encoded else row_frames(table),
            **limits,
        )
        logger.info("%s: %s", split, sampler.summary())
        dataset = continuation_dataset(
            table,
            prompt,
            features,
            speech_tokens,
            twins=not training or (brain.needs_twins and teacher is None),
            counts_transcript=model.adapter.counts_transcript,
            teacher=teacher,
        )
        collate = Collate(
            llm.tokenizer.pad_token_id,
            llm.eos_id,
            share_prefix=share,
            join=join,
            encoded=encoded,
        )
        options = {
            "batch_sampler": sampler,
            "collate_fn": collate,
            **worker_options(hparams["num_workers"]),
            # Else a loader that is begun again draws from what masks draw
            # from, and a run that goes on would not be the unbroken one.
            "generator": torch.Generator(),
        }
        data[split] = dataset, options
    brain.probed = set(table[: hparams["probe_rows"]]["ID"])
    return data


def weightless(adapter):
    """An adapter that tells lengths alone, for loader workers to carry.

    Arguments
    ---------
    adapter : torch.nn.Module
        See `blsp_plugin.adapters`.

    Returns
    -------
    torch.nn.Module
        On the device "meta": no memory, nothing to compute with.
    """
    kind = type(adapter)
    if getattr(adapters, kind.__name__, None) is not kind:  # a user's own
        return copy.deepcopy(adapter).to("meta")
    with torch.device("meta"):  # not bound to the LLM's table either
        return kind(**adapter.sizes())


def _teacher(hparams, brain):
    """The cache of what the LLM makes of the transcripts."""
    top_k, temperatures = hparams["teacher_top_k"], set()
    for loss in brain.response_losses:
        if top_k and loss.teacher and not loss.takes_top_k:
            raise BadInput(
                f"teacher_top_k: the loss {loss.name!r} needs the teacher's "
                "hidden states; set teacher_top_k to 0"
            )
        if loss.teacher:
            temperatures.add(getattr(loss, "temperature", 1.0))
    if top_k and len(temperatures) > 1:
        raise BadInput(
            f"teacher_top_k: losses of the temperatures {sorted(temperatures)} "
            "need a teacher each; give them one, or set teacher_top_k to 0"
        )
    return TeacherTargets(
        hparams["teacher_cache"], brain.model.llm, top_k, max(temperatures)
    )
