"""Caches of frozen models: the same training with them and without."""

import json
import os
import pickle
from functools import partial

import pytest
import torch

from blsp_plugin.caching import EncoderStates, TeacherTargets
from blsp_plugin.data.dataset import (
    Collate,
    MelFeatures,
    continuation_dataset,
    open_continuations,
    row_lengths,
)
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import clip_tokens
from blsp_plugin.losses import HiddenL2, ResponseKL, response_loss
from tests.training import write_continuations


@pytest.fixture
def table(corpus, llm_folder, tmp_path):
    data = write_continuations(corpus, llm_folder, str(tmp_path / "data"))
    return open_continuations(f"{data}/train.parquet", str(tmp_path / "arrow"))


def batch_of(table, model, prompt, features, encoded=False, teacher=None):
    """The first rows, as a loader makes them."""
    tokens = partial(clip_tokens, adapter=model.adapter)
    dataset = continuation_dataset(
        table, prompt, features, tokens, True, teacher=teacher
    )
    dataset = pickle.loads(pickle.dumps(dataset))  # as a worker gets it
    llm = model.llm
    collate = Collate(
        llm.tokenizer.pad_token_id,
        llm.eos_id,
        share_prefix=True,
        encoded=encoded,
    )
    return collate([dataset[n] for n in range(6)])


def test_feature_cache_equals_live(table, model, prompt, tmp_path):
    """States, embeddings and gradients, within bfloat16."""
    states = EncoderStates(tmp_path / "cache", model.encoder)
    assert len(states.cache) == 0
    states.fill(table, model.encoder, budget=400, workers=1)
    assert len(states.cache) == len(table)
    live = batch_of(table, model, prompt, MelFeatures(model.encoder.mel))
    kept = batch_of(table, model, prompt, states, encoded=True)
    assert live.states is None and kept.mel is None
    assert live.ids == kept.ids and live.seconds == kept.seconds
    assert torch.equal(live.packed.input_ids, kept.packed.input_ids)
    hidden, lengths = model.encoder(live.mel, live.mel_lengths)
    assert torch.equal(lengths, kept.state_lengths)
    assert torch.equal(hidden.bfloat16(), kept.states)
    values, grads = [], []
    for batch in (live, kept):
        if batch is live:
            speech = model.embed_speech(batch.mel, batch.mel_lengths)
        else:
            speech = model.adapt(batch.states, batch.state_lengths)
        model.adapter.zero_grad()
        teacher = model.teach(batch.twin)
        losses = [ResponseKL()]
        out = model(batch.packed, speech)
        loss = response_loss(losses, out, teacher, model.llm)
        loss.backward()
        values.append(loss.item())
        grads.append([p.grad.clone() for p in model.adapter.parameters()])
    assert values[1] == pytest.approx(values[0], rel=2**-7)
    for one, two in zip(*grads, strict=True):
        assert (one - two).norm() < 2**-5 * one.norm()


@pytest.mark.parametrize("top_k", [0, 400])
def test_teacher_cache_equals_live(table, model, prompt, tmp_path, top_k):
    lengths = row_lengths(table, prompt, model.speech_tokens)
    cached = TeacherTargets(tmp_path / "cache", model.llm, top_k)
    cached.fill(table, prompt, model, lengths, budget=300, workers=1)
    assert len(cached.cache) == len(table)
    mel = MelFeatures(model.encoder.mel)
    live = batch_of(table, model, prompt, mel)
    kept = batch_of(table, model, prompt, mel, teacher=cached)
    speech = model.embed_speech(live.mel, live.mel_lengths)
    out = model(live.packed, speech)
    teacher = model.teach(live.twin)
    for loss in [ResponseKL(), *([] if top_k else [HiddenL2()])]:
        one = response_loss([loss], out, teacher, model.llm)
        two = response_loss([loss], out, kept.teacher, model.llm)
        assert two.item() == pytest.approx(one.item(), rel=2**-6)


def test_only_what_is_missing_is_computed(
    table, model, prompt, tmp_path, monkeypatch
):
    states = EncoderStates(tmp_path, model.encoder)
    states.fill(table.select(range(5)), model.encoder, budget=400)
    seen = []
    encode = model.encoder.forward

    def count(mel, lengths):
        seen.append(len(mel))
        return encode(mel, lengths)

    monkeypatch.setattr(model.encoder, "forward", count)
    again = EncoderStates(tmp_path, model.encoder)
    again.fill(table, model.encoder, budget=400)
    assert sum(seen) == len(table) - 5
    again.fill(table, model.encoder, budget=400)
    assert sum(seen) == len(table) - 5
    # The states of another encoder are others.
    model.encoder.pad_to_30s = True
    assert len(EncoderStates(tmp_path, model.encoder).cache) == 0
    model.encoder.pad_to_30s = False


def test_clip_that_cannot_be_read_is_rejected_in_training(
    table, model, prompt, tmp_path
):
    states = EncoderStates(tmp_path, model.encoder)
    wav = table[0]["wav"]
    os.rename(wav, wav + ".away")
    try:
        states.fill(table, model.encoder, budget=400)
        assert len(states.cache) == len(table) - 1
        batch = batch_of(table, model, prompt, states, encoded=True)
        assert [row for row, _ in batch.rejected] == [table[0]["ID"]]
    finally:
        os.rename(wav + ".away", wav)
    with pytest.raises(BadInput, match="run the same command again"):
        states(wav)


def test_configuration_can_be_read(model, tmp_path):
    states = EncoderStates(tmp_path, model.encoder)
    path = os.path.join(states.cache.folder, "configuration.json")
    with open(path, encoding="utf-8") as stream:
        assert json.load(stream) == {
            "kind": "states",
            "encoder": model.encoder.fingerprint(),
            "computed_in": "torch.float32",
        }
