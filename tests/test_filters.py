"""Filters that need more than a line: echoes and languages."""

import json
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.filters import Echo, WrongLanguage, first_reason
from blsp_plugin.decoding import Generation
from blsp_plugin.errors import BadInput

SAID = "Continue the following text in a coherent style."
TEXT = "The sea was calm."
LANGUAGES = {
    "en": "The captain looked at the sea and waited for the storm.",
    "de": "Der Kapitän sah auf das Meer und wartete auf den Sturm.",
    "fr": "Le capitaine regardait la mer et attendait la tempête.",
    "es": "El capitán miraba el mar y esperaba la tormenta.",
    "pt": "O capitão olhava para o mar e esperava a tempestade.",
    "it": "Il capitano guardava il mare e aspettava la tempesta.",
    "sv": "Kaptenen såg ut över havet och väntade på stormen.",
    "ru": "Капитан смотрел на море и ждал бури.",
    "zh": "船长看着大海，等待暴风雨的来临。",
    "ja": "船長は海を見ながら嵐を待っていた。",
    "ar": "نظر القبطان إلى البحر وانتظر العاصفة.",
    "el": "Ο καπετάνιος κοίταξε τη θάλασσα και περίμενε την καταιγίδα.",
}


def judge(check, response, said=SAID, text=TEXT, name="continue"):
    """The reason against a response, or None."""
    request = SimpleNamespace(
        behaviour=Behaviour(name, "Not this one."), instruction=said, text=text
    )
    return first_reason([check], request, Generation([1], response, True))


@pytest.mark.parametrize(
    "response",
    [
        SAID,
        "continue the following text, in a coherent style",
        f"{SAID}\n{TEXT}",
        f"{TEXT} {SAID}",
        f'"{TEXT}"',
        f"Text: {SAID} {TEXT}",
    ],
)
def test_echo_of_the_prompt(response):
    assert judge(Echo(), response) == "echo"


@pytest.mark.parametrize(
    "response",
    [
        "Then the wind rose in the west.",
        f"{TEXT} Then the wind rose in the west.",
        f"{SAID} Then the wind rose in the west and the ship began to roll.",
        "Calm as the sea was, in a moment the style of it all had changed.",
    ],
)
def test_no_echo(response):
    assert judge(Echo(), response) is None


def test_echo_of_the_instruction_alone():
    """For behaviours that may say the transcript again."""
    echo = Echo(transcript=False)
    said = "Please repeat the following words."
    assert judge(echo, said, said) == "echo"
    assert judge(echo, "Repeat the following words:", said) == "echo"
    assert judge(echo, TEXT, said) is None
    assert judge(echo, f"{said} {TEXT}", said) is None
    # What is to be repeated is itself like the instruction.
    assert judge(echo, "Repeat the words.", said, "Repeat the words") is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_wrong_language_both_ways(language):
    check = WrongLanguage(language)
    wrong = [name for name, text in LANGUAGES.items() if judge(check, text)]
    assert wrong == [name for name in LANGUAGES if name != language]


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Ja.",
        "Guten Morgen!",  # too short to tell
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "😀😀😀😀😀😀😀😀 ... !!! \u202e",
        "THE CAPTAIN LOOKED AT THE SEA AND WAITED.",
        "Berlin, Hamburg and Munich are the names of cities in Germany.",
        'In German, that is "Guten Morgen", which means good morning.',
    ],
)
def test_what_may_be_english_passes(response):
    assert judge(WrongLanguage(), response) is None


def test_a_few_words_of_another_script_are_enough():
    assert judge(WrongLanguage(), "你好，我是一个助手") == "wrong language"
    assert judge(WrongLanguage(min_letters=30), "你好，我是一个助手") is None


def test_how_much_likelier():
    text = "La vita e bella, my friend."  # Italian, 18 times as likely
    assert judge(WrongLanguage(ratio=5), text) == "wrong language"
    assert judge(WrongLanguage(ratio=100), text) is None


def test_languages_that_are_not_known_are_refused():
    for language in ("xx", "", "english", None):
        with pytest.raises(BadInput, match="WrongLanguage does not know it"):
            WrongLanguage(language)
    for region in ("pt-BR", "pt_PT", "PT"):
        assert judge(WrongLanguage(region), LANGUAGES["pt"]) is None
        assert judge(WrongLanguage(region), LANGUAGES["en"])


def test_descriptions_hold_all_that_decides():
    check = WrongLanguage("de", ratio=5, behaviours=["translate"])
    assert json.loads(json.dumps(check.describe())) == {
        "filter": "WrongLanguage",
        "behaviours": ["translate"],
        "language": "de",
        "min_letters": 20,
        "ratio": 5,
        "detector": f"py3langid {version('py3langid')}",
    }
    assert Echo(0.7, transcript=False).describe() == {
        "filter": "Echo",
        "behaviours": None,
        "max_overlap": 0.7,
        "transcript": False,
    }
