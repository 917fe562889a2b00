"""The model: what must be exact, on tiny random models in float32."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import mel_frames, similar_lengths
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.losses import ResponseCrossEntropy, response_loss
from blsp_plugin.packing import Row, pack
from blsp_plugin.prompts import Prompt
from blsp_plugin.speech import SpeechEmbeddings
from tests.conftest import make_wavs

INSTRUCTION = "Please repeat the following words."
TEXTS = ["hello there", "it is", "the quick brown fox", "7", "no way out"]
SECONDS = [1.3, 0.4, 3.1, 0.2, 2.2]


def batch(model, wavs, rows, side="right", extra=0, **options):
    """Features and packed rows, as a loader would make them."""
    mel = pad_sequence([model.encoder.mel(w) for w in wavs], batch_first=True)
    mel = torch.nn.functional.pad(mel, (0, 0, 0, extra), value=-2.0)
    lengths = torch.tensor([mel_frames(len(w)) for w in wavs])
    llm = model.llm
    pad_id = llm.tokenizer.pad_token_id
    packed = pack(rows, pad_id, llm.eos_id, side, **options)
    return mel, lengths, packed


def speech_rows(model, prompt, wavs):
    """Rows with arbitrary responses, some cut."""
    prefix, suffix = prompt.ids(INSTRUCTION)
    tokenizer = prompt.tokenizer
    return [
        Row(
            prefix,
            model.speech_tokens(len(wav)),
            suffix,
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"]),
            i % 2 == 0,
        )
        for i, (wav, text) in enumerate(zip(wavs, TEXTS, strict=True))
    ]


@torch.no_grad()
def token_losses(model, wavs, rows, side="right", extra=0):
    """Cross-entropy of each response token and the speech embeddings."""
    mel, lengths, packed = batch(model, wavs, rows, side, extra)
    speech = model.embed_speech(mel, lengths)
    hidden, targets = model(packed, speech)
    losses = torch.nn.functional.cross_entropy(
        model.llm.project(hidden), targets, reduction="none"
    )
    counts = [len(row.response) + row.ended for row in rows]
    return losses.split(counts), speech


def test_batch_invariance(model, prompt):
    # The middle clip is 100 times louder than the others.
    wavs = make_wavs(SECONDS, loud=(2,))
    rows = speech_rows(model, prompt, wavs)
    alone = [
        token_losses(model, [w], [r]) for w, r in zip(wavs, rows, strict=True)
    ]
    texts = [
        model.answer([w], [INSTRUCTION], prompt, max_new_tokens=12)[0].ids
        for w in wavs
    ]
    assert len({tuple(ids) for ids in texts}) > 1  # it does depend on the clip
    orders = ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3])
    for side in ("right", "left"):
        for order in orders:
            losses, speech = token_losses(
                model,
                [wavs[i] for i in order],
                [rows[i] for i in order],
                side,
                extra=23,
            )
            for place, i in enumerate(order):
                ([loss], one) = alone[i]
                length = one.lengths[0]
                assert speech.lengths[place] == length
                there = speech.embeds[place, :length]
                assert (there - one.embeds[0]).abs().max() < 1e-4
                assert (losses[place] - loss).abs().max() < 1e-4
    for order in orders:
        answers = model.answer(
            [wavs[i] for i in order],
            [INSTRUCTION] * len(order),
            prompt,
            max_new_tokens=12,
        )
        assert [a.ids for a in answers] == [texts[i] for i in order]


@pytest.mark.parametrize("folder", ["llm_folder", "sentencepiece_folder"])
def test_text_in_slot_gives_zero_kl(model, folder, request):
    """Embeddings of the transcript in the slots: the text prompt's logits."""
    model.llm = FrozenLLM(request.getfixturevalue(folder))
    prompt = Prompt(model.llm.tokenizer)
    prefix, suffix = prompt.ids(INSTRUCTION)
    slots = [prompt.slot_ids(INSTRUCTION, text) for text in TEXTS]
    twins = [Row(prefix, s, suffix, (5, 6, 7), True) for s in slots]
    rows = [twin._replace(slot=len(twin.slot)) for twin in twins]
    embeds = [model.llm.embed(torch.tensor(slot)) for slot in slots]
    speech = SpeechEmbeddings(
        pad_sequence(embeds, batch_first=True),
        torch.tensor([len(slot) for slot in slots]),
    )
    llm = model.llm
    pad = llm.tokenizer.pad_token_id
    with torch.no_grad():
        one = model(pack(rows, pad, llm.eos_id), speech)
        two = model(pack(twins, pad, llm.eos_id))
    assert torch.equal(one.targets, two.targets)
    log_p, log_q = (
        llm.project(states.hidden).log_softmax(-1) for states in (two, one)
    )
    assert (log_p.exp() * (log_p - log_q)).sum(-1).abs().max() < 1e-6
    assert torch.equal(one.hidden, two.hidden)
    # The text branch is the LLM itself, unpadded, one row at a time.
    for row, text in zip(twins, TEXTS, strict=True):
        before, after = prompt.render(INSTRUCTION)
        whole = llm.tokenizer(before + text + after, add_special_tokens=False)[
            "input_ids"
        ]
        assert [*row.prefix, *row.slot, *row.suffix] == whole
    twins = [row._replace(response=(), ended=False) for row in twins]
    rows = [row._replace(response=(), ended=False) for row in rows]
    assert model.generate(rows, speech) == model.generate(twins)


def test_project_is_the_models_own_head(model, prompt):
    ids = torch.tensor([prompt.ids(INSTRUCTION).prefix])
    mask, positions = torch.ones_like(ids), torch.arange(ids.shape[1])[None]
    llm = model.llm
    with torch.no_grad():
        hidden = llm.hidden(llm.embed(ids), mask, positions)
        expected = llm.model(input_ids=ids).logits
    assert (llm.project(hidden) - expected).abs().max() < 1e-5


def test_only_adapter_trains(model, prompt):
    model.train()
    assert not model.llm.training and not model.encoder.training
    assert model.adapter.training
    frozen = {
        name: p.clone()
        for name, p in model.named_parameters()
        if not name.startswith("adapter.")
    }
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert learning and all(n.startswith("adapter.") for n in learning)
    wavs = make_wavs(SECONDS)
    mel, lengths, packed = batch(model, wavs, speech_rows(model, prompt, wavs))
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=0.1
    )
    states = model(packed, model.embed_speech(mel, lengths))
    response_loss([ResponseCrossEntropy()], states, None, model.llm).backward()
    optimizer.step()
    for name, param in model.named_parameters():
        if name in frozen:
            assert param.grad is None
            assert torch.equal(param, frozen[name])
        else:
            assert param.grad is not None and param.grad.abs().sum() > 0


@pytest.mark.parametrize("folder", ["llm_folder", "sentencepiece_folder"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefix_reuse_is_exact(
    model, folder, gradient_checkpointing, attention, request
):
    """Losses, gradients and greedy text, one or several instructions."""
    source = request.getfixturevalue(folder)
    model.llm = FrozenLLM(source, attn_implementation=attention)
    whole = model.llm
    sharing = FrozenLLM(
        source,
        attn_implementation=attention,
        gradient_checkpointing=gradient_checkpointing,
    )
    assert sharing.can_share_prefix(300)
    assert not FrozenLLM(source, prefix_reuse=False).can_share_prefix(300)
    prompt = Prompt(whole.tokenizer)
    wavs = make_wavs(SECONDS)
    rows = speech_rows(model, prompt, wavs)
    other = prompt.ids("Go on.").prefix
    for mixed in (
        rows,
        [r._replace(prefix=other) if i % 2 else r for i, r in enumerate(rows)],
        # Nothing stands before the speech of one, and of all.
        [rows[0]._replace(prefix=()), *rows[1:]],
        [row._replace(prefix=()) for row in rows],
    ):
        made = {}
        for llm in (whole, sharing):
            model.llm = llm
            model.adapter.zero_grad()
            mel, lengths, packed = batch(
                model, wavs, mixed, share_prefix=llm is sharing
            )
            if llm is sharing:
                time = max(row.length - len(row.prefix) for row in mixed)
                assert packed.input_ids.shape[1] == time
            states = model(packed, model.embed_speech(mel, lengths))
            loss = response_loss([ResponseCrossEntropy()], states, None, llm)
            loss.backward()
            grads = [p.grad.clone() for p in model.adapter.parameters()]
            made[llm] = (states.hidden, states.targets, *grads)
        for one, two in zip(made[whole], made[sharing], strict=True):
            assert (one - two).abs().max() < 1e-5 * one.abs().max().clamp(1)
        asked = [row._replace(response=(), ended=False) for row in mixed]
        with torch.no_grad():
            speech = model.embed_speech(mel, lengths)
        texts = model.generate(asked, speech, max_new_tokens=9)
        model.llm = FrozenLLM(source, prefix_reuse=False)
        assert texts == model.generate(asked, speech, max_new_tokens=9)


def test_windows_count_the_padding_of_prefixes(model, prompt, monkeypatch):
    """Long prefix with short rest, and the other way round, in one batch."""
    config = model.llm.model.config
    monkeypatch.setattr(config, "sliding_window", 60, raising=False)
    rows = [Row((7,) * 36, (8,) * 4, ()), Row((7,) * 2, (8,) * 37, ())]
    calls = []
    monkeypatch.setattr(
        model.llm, "can_share_prefix", lambda longest: calls.append(longest)
    )
    model.generate(rows, max_new_tokens=12)
    assert calls == [36 + 37 + 12]


def test_decoding_is_in_the_dtype_of_the_weights(model, prompt):
    """Whatever autocast says: the same tokens, the same prefix states."""
    prefix, suffix = prompt.ids(INSTRUCTION)
    rows = [Row(prefix, (20 + i, 30, 40 + i), suffix) for i in range(6)]
    expected = model.generate(rows, max_new_tokens=9)
    model.llm.prefixes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate(rows, max_new_tokens=9) == expected
    assert model.generate(rows, max_new_tokens=9) == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_joined_rows_equal_padded_rows(model, prompt, llm_folder, attention):
    """One sequence of all rows: none sees another."""
    model.llm = FrozenLLM(llm_folder, attn_implementation=attention)
    wavs = make_wavs(SECONDS)
    rows = speech_rows(model, prompt, wavs)
    made = []
    for join in (False, True):
        mel, lengths, packed = batch(model, wavs, rows, join=join)
        assert packed.response_tokens.tolist() == [
            len(row.response) + row.ended for row in rows
        ]
        assert packed.speech_tokens.tolist() == [row.slot for row in rows]
        model.adapter.zero_grad()
        states = model(packed, model.embed_speech(mel, lengths))
        losses = [ResponseCrossEntropy()]
        response_loss(losses, states, None, model.llm).backward()
        grads = [p.grad.clone() for p in model.adapter.parameters()]
        made.append((states.hidden, states.targets, *grads))
    assert packed.input_ids.shape == (1, sum(row.length for row in rows))
    for one, two in zip(*made, strict=True):
        assert (one - two).abs().max() < 1e-5 * one.abs().max().clamp(1)


def test_generation_tells_ended_from_cut(model, prompt):
    wavs = make_wavs([0.5] * 8)
    answers = model.answer(
        wavs,
        [f"{INSTRUCTION} {i}" for i in range(8)],
        prompt,
        max_new_tokens=24,
    )
    for answer in answers:
        assert len(answer.ids) < 24 if answer.ended else len(answer.ids) == 24
        assert not set(answer.ids) & set(model.llm.stop_ids)


def test_a_response_is_as_long_as_its_slot_allows(model, prompt, llm_folder):
    """Cut there, each row by itself, whoever decodes."""
    prefix, suffix = prompt.ids(INSTRUCTION)
    rows = [Row(prefix, (20,) * n, suffix) for n in (1, 3, 5, 30)]
    free = model.generate(rows, max_new_tokens=12)
    assert max(len(answer.ids) for answer in free) == 12
    allowed = [1, 4, 7, 12]
    for sharing in (True, False):
        model.llm = FrozenLLM(llm_folder, prefix_reuse=sharing)
        some = model.generate(rows, max_new_tokens=12, max_decode_ratio=1.5)
        for answer, whole, most in zip(some, free, allowed, strict=True):
            assert answer.ids == whole.ids[:most]
            assert answer.ended == (whole.ended and len(whole.ids) < most)
    with pytest.raises(BadInput, match="max_decode_ratio 0: give more"):
        model.generate(rows, max_decode_ratio=0)


@torch.no_grad()
def test_clips_of_similar_length_go_together(model):
    """What `embed_speech` gives is what one pass over all clips gives."""
    wavs = make_wavs((0.3, 1.1, 1.0, 2.4, 0.95, 2.0))
    mels = [model.encoder.mel(wav) for wav in wavs]
    lengths = torch.tensor([len(mel) for mel in mels])
    mel = pad_sequence(mels, batch_first=True)
    sizes = [len(group) for group in similar_lengths(lengths)]
    assert sizes == [2, 3, 1]
    embeds, counts, _ = model.adapter(*model.encoder(mel, lengths))
    for speech in (
        model.embed_speech(mel, lengths),
        model.adapt(*model.encoder(mel, lengths)),
    ):
        assert torch.equal(speech.lengths, counts)
        assert speech.embeds.shape == embeds.shape
        assert (speech.embeds - embeds).abs().max() < 1e-4
