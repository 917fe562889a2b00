"""Case and punctuation by likelihood, on a tiny random LLM."""

import itertools

import pytest
import torch

from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.engines import Request
from blsp_plugin.continuation.engines.casing import (
    ENDS,
    OPENING,
    CasingEngine,
    choices,
    restore,
)
from blsp_plugin.data.recasing import words
from blsp_plugin.llm import FrozenLLM
from tests.tiny import tiny_llm

TEXTS = [
    "I MET TOM IN PARIS",
    "ÉTÉ",
    "A Name, kept",
    "5 6",
    "",
    "WE'RE 5 IN ALL",
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return FrozenLLM(tiny_llm(tmp_path_factory.mktemp("llm")))


@torch.no_grad()
def score(llm, pieces):
    """Log-probability of a text after the opening, read at once."""
    tokenizer = llm.tokenizer
    start = tokenizer(OPENING)["input_ids"]
    ids = tokenizer(list(pieces), add_special_tokens=False)["input_ids"]
    ids = list(itertools.chain(*ids))
    row = torch.tensor([start + ids])
    logits = llm.model(input_ids=row).logits[0].float().log_softmax(-1)
    picked = logits[torch.arange(len(start) - 1, row.shape[1] - 1), ids]
    return picked.sum().item()


def test_words_stay_and_cased_text_too(llm):
    restored = restore(llm, TEXTS)
    for given, text in zip(TEXTS, restored, strict=True):
        assert words(text) == words(given)
    assert restored[2:5] == TEXTS[2:5]
    assert restored[0][-1] in ENDS and restored[0].startswith("I")


def test_batch_does_not_matter(llm):
    assert restore(llm, TEXTS) == [restore(llm, [text])[0] for text in TEXTS]


def test_wide_beam_finds_the_best_of_all(llm):
    spoken = ["we", "met", "tom"]
    ways = [choices(word, i == 0) for i, word in enumerate(spoken)]
    every = list(itertools.product(*ways, ENDS))
    best = max(every, key=lambda pieces: score(llm, pieces))
    found = restore(llm, [" ".join(spoken).upper()], beam=len(every))
    assert found == ["".join(best)]


def test_engine_answers_with_the_text(llm):
    engine = CasingEngine(llm, batch_size=2)
    behaviour = Behaviour("recase", "Not read.")
    asked = [
        Request(i, str(i), behaviour, "Not read.", text, (0,))
        for i, text in enumerate(TEXTS)
    ]
    answers = {}
    for group in engine.generate(engine.plan(asked)):
        answers.update({request.key: got.text for request, got in group})
    assert [answers[request.key] for request in asked] == restore(llm, TEXTS)
    assert engine.fingerprint() != CasingEngine(llm, beam=1).fingerprint()
    assert engine.fingerprint().isprintable()
