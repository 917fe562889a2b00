"""Behaviours: who gets which instruction."""

import collections
import json
import os

import pytest

from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.errors import BadInput
from blsp_plugin.hparams import load_hparams
from tests.training import ROOT

SAID = ("Go on.", "What comes next?", "Tell the rest.")
CLIPS = [f"clip{i}" for i in range(3000)]


def label(share=1.0, said=SAID, name="label"):
    return Behaviour(name, said[0], share=share, paraphrases=said[1:])


def test_every_paraphrase_gets_its_part_of_the_clips():
    behaviour = label(share=0.5)
    assert behaviour.instructions == SAID
    drawn = collections.Counter(behaviour.draw(clip) for clip in CLIPS)
    assert set(drawn) == {None, 0, 1, 2}
    assert 1400 < drawn[None] < 1600
    # The share's draw is independent of the choice's.
    for index in range(3):
        assert 430 < drawn[index] < 570
    # Another behaviour chooses anew.
    other = label(share=0.5, name="other")
    both = collections.Counter(
        (behaviour.draw(clip), other.draw(clip)) for clip in CLIPS
    )
    assert len(both) == 16
    for pair, count in both.items():
        expected = 3000
        for drawn in pair:
            expected *= 1 / 2 if drawn is None else 1 / 6
        assert 0.6 * expected < count < 1.4 * expected
    assert [behaviour.draw(c, 1) for c in CLIPS] != [
        behaviour.draw(c) for c in CLIPS
    ]


def test_a_larger_share_adds_clips_and_changes_nothing_else():
    half, more, whole = label(0.5), label(0.8), label(1.0)
    for clip in CLIPS:
        drawn = [b.draw(clip) for b in (half, more, whole)]
        assert drawn[2] is not None
        assert drawn[1] in (None, drawn[2])
        assert drawn[0] in (None, drawn[1])


def test_draws_stay_what_they_were():
    """A run that was begun with an earlier release can be finished."""
    alone = Behaviour("label", "Go on.", share=0.5)
    taken = [clip for clip in CLIPS[:12] if alone.draw(clip) is not None]
    assert taken == [f"clip{i}" for i in (0, 2, 4, 6, 7, 9, 10, 11)]
    drawn = [label().draw(clip) for clip in CLIPS[:12]]
    assert drawn == [2, 2, 2, 0, 2, 2, 1, 2, 0, 0, 0, 2]
    # Where there is nothing to draw, everybody gets the instruction.
    assert {Behaviour("label", "Go on.").draw(clip) for clip in CLIPS} == {0}


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"instruction": " "}, "' ' is no text"),
        ({"instruction": None}, "None is no text"),
        ({"paraphrases": [""]}, "'' is no text"),
        ({"paraphrases": [True]}, "True is no text"),
        ({"paraphrases": ["Go on."]}, "'Go on.' is there twice"),
        ({"paraphrases": ["More.", "More."]}, "'More.' is there twice"),
        ({"paraphrases": "More."}, "must be a list"),
        ({"paraphrases": None}, "must be a list"),
    ],
)
def test_bad_instructions_are_refused(settings, complaint):
    with pytest.raises(BadInput, match=complaint):
        Behaviour(**{"name": "a", "instruction": "Go on.", **settings})


def test_a_list_from_yaml_is_as_good_as_a_tuple():
    listed = Behaviour("a", "Go on.", paraphrases=["More."])
    assert listed == Behaviour("a", "Go on.", paraphrases=("More.",))
    assert len({listed, listed}) == 1
    assert json.loads(json.dumps(vars(listed)))["paraphrases"] == ["More."]


def test_mixed_preset(llm_folder):
    path = os.path.join(ROOT, "hparams", "mixed_generate.yaml")
    with open(path, encoding="utf-8") as stream:
        lines = [x for x in stream if x.strip() and not x.startswith("#")]
    assert lines[0] == "base: generate.yaml\n" and len(lines) <= 40
    hparams, _, _ = load_hparams(path, {"llm": llm_folder})
    continuation = hparams["continuation"]
    names = [behaviour.name for behaviour in continuation.behaviours]
    assert names == [
        "continue",
        "repeat",
        "answer",
        "summarise",
        "translate",
        "sentiment",
    ]
    # Each clip is continued, and gets one other behaviour on average.
    shares = [behaviour.share for behaviour in continuation.behaviours]
    assert shares[0] == 1 and sum(shares) == pytest.approx(2.1)
    said = [b.instructions for b in continuation.behaviours]
    assert [len(instructions) for instructions in said[:2]] == [4, 3]
    assert all(" ".join(s.split()) == s for some in said for s in some)
    for check in continuation.filters:
        assert set(check.behaviours or ()) <= set(names)
    languages = {
        name: check.language
        for check in continuation.filters
        if check.reason == "wrong language"
        for name in check.behaviours
    }
    assert languages["translate"] == "de" and languages["continue"] == "en"
    json.dumps(continuation.describe())
