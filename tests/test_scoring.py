"""Likelihoods of labels: equal to a pass for each pair of clip and label."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from blsp_plugin import scoring
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.packing import Row
from blsp_plugin.prompts import Prompt
from tests.conftest import make_wavs

LABELS = ("on", "on and off", "set the volume to zero", "play", "a")


def label_ids(llm):
    """Tokens of the labels."""
    encode = llm.tokenizer
    return [encode(x, add_special_tokens=False)["input_ids"] for x in LABELS]


@pytest.mark.parametrize("folder", ["llm_folder", "sentencepiece_folder"])
def test_label_scoring_equals_full_forward(model, folder, request, monkeypatch):
    """On speech of several lengths and on text, two instructions."""
    model.llm = FrozenLLM(request.getfixturevalue(folder))
    prompt = Prompt(model.llm.tokenizer)
    wavs = make_wavs((0.4, 3.0, 1.2))
    speech = model.embed_wavs(wavs)
    rows, texts = [], []
    asked = ("Which one is it?", "Name the intent.", "Which one is it?")
    for instruction, length in zip(asked, speech.lengths.tolist(), strict=True):
        prefix, suffix = prompt.ids(instruction)
        rows.append(Row(prefix, length, suffix))
        slot = prompt.slot_ids(instruction, "turn it on " * length)
        texts.append(Row(prefix, slot, suffix))
    labels = label_ids(model.llm)
    scores = model.score(rows, labels, speech)
    assert scores.shape == (3, len(LABELS))
    # Plain transformers, one unpadded pair at a time.
    plain = AutoModelForCausalLM.from_pretrained(model.llm.source).eval()
    embed = plain.get_input_embeddings()
    for number, row in enumerate(rows):
        heard = speech.embeds[number, : speech.lengths[number]]
        for column, label in enumerate(labels):
            answer = torch.tensor([*label, model.llm.eos_id])
            whole = torch.cat(
                [
                    embed(torch.tensor(row.prefix)),
                    heard,
                    embed(torch.tensor([*row.suffix])),
                    embed(answer),
                ]
            )
            with torch.no_grad():
                logits = plain(inputs_embeds=whole[None]).logits[0]
            after = logits[-len(answer) - 1 : -1].log_softmax(-1)
            full = after.gather(1, answer[:, None]).sum()
            assert abs(scores[number, column] - full) < 1e-3
    # Where labels do not fit behind a prompt, and where nothing is shared.
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", 3)
    assert torch.allclose(model.score(rows, labels, speech), scores, atol=1e-4)
    text_scores = model.score(texts, labels)
    model.llm.prefix_reuse = False
    assert torch.allclose(model.score(rows, labels, speech), scores, atol=1e-4)
    assert torch.allclose(model.score(texts, labels), text_scores, atol=1e-4)
