"""Adapters: lengths, batch invariance, and that each of them learns."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.adapters import (
    CFormerAdapter,
    ConcatMLPAdapter,
    ConvAdapter,
    integrate_and_fire,
)
from blsp_plugin.lengths import encoder_frames, mel_frames
from blsp_plugin.losses import (
    CIFQuantity,
    ResponseCrossEntropy,
    response_loss,
)
from blsp_plugin.speech import SpeechEmbeddings
from tests.conftest import make_wavs
from tests.test_model import INSTRUCTION, SECONDS, TEXTS, batch, speech_rows

KINDS = {
    "conv-4": (ConvAdapter, {"bottleneck": 16, "layers": 2}),
    "conv-8": (ConvAdapter, {"bottleneck": 16, "layers": 3}),
    "conv-16": (ConvAdapter, {"bottleneck": 16, "layers": 4}),
    "mlp-4": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 4}),
    "mlp-8": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 8}),
    "mlp-16": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 16}),
    "cformer": (CFormerAdapter, {"layers": (1, 1), "heads": 4}),
}


def make(kind, width=32, **options):
    torch.manual_seed(0)
    adapter, settings = KINDS[kind]
    return adapter(32, width, **settings, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_clip_does_not_depend_on_its_batch(kind, training):
    adapter = make(kind, gain=0.3).train(training)
    lengths = [50, 9, 1, 33]
    clips = [torch.randn(length, 32) for length in lengths]
    tokens = torch.tensor([4, 2, 1, 6]) if adapter.counts_transcript else None
    alone = []
    for i, clip in enumerate(clips):
        own = None if tokens is None else tokens[i : i + 1]
        with torch.no_grad():
            alone.append(adapter(clip[None], torch.tensor([len(clip)]), own))
    states = pad_sequence(clips, batch_first=True)
    states = torch.nn.functional.pad(states, (0, 0, 0, 7), value=5.0)
    for i, length in enumerate(lengths):
        states[i, length:] = 1e3  # garbage
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        many = None if tokens is None else tokens[order]
        with torch.no_grad():
            speech, counts, fired = adapter(
                states[order], torch.tensor(lengths)[order], many
            )
        for place, i in enumerate(order):
            one, [count], alone_fired = alone[i]
            assert counts[place] == count == len(one[0])
            if tokens is None:
                assert count == adapter.output_lengths(lengths[i])
                assert fired is None
            else:
                assert count == tokens[i]
                assert abs(fired[place] - alone_fired[0]) < 1e-5
            assert (speech[place, :count] - one[0]).abs().max() < 1e-5
            assert not speech[place, count:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_adapter_trains(kind, model, prompt):
    """Cross-entropy through the frozen LLM falls; all weights learn."""
    model.adapter = adapter = make(kind, gain=model.llm.embedding_rms)
    wavs = make_wavs(SECONDS)
    rows = speech_rows(model, prompt, wavs)
    slots = [prompt.slot_ids(INSTRUCTION, text) for text in TEXTS]
    if adapter.counts_transcript:
        rows = [
            row._replace(slot=len(slot))
            for row, slot in zip(rows, slots, strict=True)
        ]
    mel, lengths, packed = batch(model, wavs, rows, share_prefix=True)
    tokens, counts = packed.slot_mask.sum(1), packed.response_tokens
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        speech = model.embed_speech(mel, lengths, tokens)
        states = model(packed, speech)
        loss = response_loss([ResponseCrossEntropy()], states, None, model.llm)
        values.append(loss.item() / len(states.targets))
        if adapter.counts_transcript:
            loss = loss + CIFQuantity()(speech, slots, counts, model.llm)
        optimizer.zero_grad()
        loss.backward()
        for name, param in adapter.named_parameters():
            assert param.grad is not None and param.grad.any(), name
        optimizer.step()
    assert values[-1] < 0.7 * values[0]
    with torch.autocast("cpu", torch.bfloat16):
        again = model.embed_speech(mel, lengths, tokens)
    assert torch.isfinite(again.embeds).all()
    assert model.answer(wavs, [INSTRUCTION] * 5, prompt, max_new_tokens=3)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_known_before_the_model_runs(kind):
    adapter = make(kind)
    for seconds in (0.1, 1.0, 4.2, 31.0):
        frames = encoder_frames(mel_frames(int(16000 * seconds)))
        count = adapter.output_lengths(frames)
        assert count == adapter.output_lengths(torch.tensor([frames])).item()
        if not adapter.counts_transcript:
            speech, lengths, _ = adapter(
                torch.randn(1, frames, 32), torch.tensor([frames])
            )
            assert lengths.tolist() == [count] == [speech.shape[1]]


def test_free_firing_does_not_depend_on_the_batch():
    """Nor do its numbers of tokens, with weights that differ by frame."""
    adapter = make("cformer").eval()
    torch.nn.init.normal_(adapter.weight.weight, std=0.5)
    lengths = torch.tensor([50, 9, 1, 33])
    states = torch.full((4, 57, 32), 1e3)
    for i, length in enumerate(lengths):
        states[i, :length] = torch.randn(length, 32)
    with torch.no_grad():
        speech, counts, fired = adapter(states, lengths)
        for i, length in enumerate(lengths):
            one, [count], [asked] = adapter(
                states[i : i + 1, :length], lengths[i : i + 1]
            )
            assert count == counts[i] == asked.round().clamp(min=1)
            assert abs(asked - fired[i]) < 1e-5
            assert (speech[i, :count] - one[0]).abs().max() < 1e-4


def test_cformer_evaluates_as_it_trains(monkeypatch):
    """Torch's fused layers of evaluation stay out, and are left on."""

    def fused(*arguments, **options):
        raise AssertionError("fused kernel")

    for name in (
        "_transformer_encoder_layer_fwd",
        "_native_multi_head_attention",
    ):
        monkeypatch.setattr(torch, name, fused)
    adapter = make("cformer")
    given = (
        torch.randn(2, 50, 32),
        torch.tensor([50, 9]),
        torch.tensor([5, 3]),
    )
    with torch.no_grad():
        trained, evaluated = adapter(*given), adapter.eval()(*given)
    assert torch.equal(trained[0], evaluated[0])
    assert torch.backends.mha.get_fastpath_enabled()


def naive_fire(states, weights):
    """Frame by frame, as the paper tells it."""
    tokens, room = [], 1.0
    total = torch.zeros(states.shape[1])
    for state, weight in zip(states, weights.tolist(), strict=True):
        while weight >= room - 1e-9:
            tokens.append(total + room * state)
            weight -= room
            room, total = 1.0, torch.zeros_like(total)
        total = total + weight * state
        room -= weight
    return torch.stack(tokens)


def test_integrate_and_fire_matches_naive():
    torch.manual_seed(0)
    for frames, tokens in ((20, 5), (3, 7), (1, 1), (40, 40)):
        states = torch.randn(frames, 6)
        weights = torch.rand(frames) + 0.01
        weights = weights * tokens / weights.sum()
        expected = naive_fire(states, weights.double())
        made = integrate_and_fire(states[None], weights[None], tokens)[0]
        assert len(expected) in (tokens, tokens - 1)  # rounding, at the end
        for one, two in zip(made, expected, strict=False):
            assert (one - two).abs().max() < 1e-4


def test_number_of_tokens_is_learnt():
    """Without a given number, a clip fires what its weights add up to."""
    adapter = make("cformer")
    states, lengths = torch.randn(2, 60, 32), torch.tensor([60, 30])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    transcripts = [[1] * 12, [1] * 3]
    for _ in range(60):
        speech = SpeechEmbeddings(*adapter(states, lengths))
        loss = CIFQuantity()(speech, transcripts, torch.tensor([1, 1]), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(speech.lengths - torch.tensor([12, 3])).max() <= 1
