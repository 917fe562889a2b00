"""Transcripts as text."""

import pytest

from blsp_plugin.data.text import (
    is_shouted,
    normalise_transcript,
    recase,
    wer_normaliser,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\r\n c  ", "a b c"),
        ("e\u0301te\u0301", "été"),
        ("nul\x00 bell\x07 next\x85line", "nul bell next line"),
        ("no\u00a0break\u2028line", "no break line"),
        ("Case, STAYS! <|im_end|> too.", "Case, STAYS! <|im_end|> too."),
        ("\x00\n\t", ""),
        ("", ""),
    ],
)
def test_normalise_transcript(text, expected):
    assert normalise_transcript(text) == expected
    assert normalise_transcript(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GO DO YOU HEAR", True),
        ("ÉTÉ À 5", True),
        ("OK then", False),
        ("all lower", False),
        ("12 34", False),
        ("你好", False),
        ("", False),
    ],
)
def test_is_shouted(text, expected):
    assert is_shouted(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GO DO YOU HEAR", "Go do you hear."),
        ("I'M HERE AND I'LL STAY", "I'm here and I'll stay."),
        ("so i said i", "So I said I."),
        ("i.e. THIS".lower(), "I.e. This."),
        ("HELLO. WHO IS THERE?", "Hello. Who is there?"),
        ("“WHY NOT”", "“Why not”."),
        ("wait...", "Wait..."),
        ("'TIS 5 O'CLOCK", "'Tis 5 o'clock."),
        ("ÉTÉ", "Été."),
        ("Already Cased", "Already Cased"),
        ("5 6", "5 6"),
        ("你好", "你好"),
        ("", ""),
    ],
)
def test_recase(text, expected):
    assert recase(text) == expected
    assert recase(expected) == expected


def test_recase_raises_i_in_english_only():
    assert recase("I BAMBINI E I CANI", "it") == "I bambini e i cani."


def test_wer_normaliser():
    english = wer_normaliser("en")
    assert english("It's twenty-five colours!") == "it is 25 colors"
    assert wer_normaliser("en-GB")("COLOUR") == "color"
    assert wer_normaliser("de")("Straße, 25!").split() == ["straße", "25"]
    assert wer_normaliser("en") is english
