"""Transcripts as text: cleaning, recasing, and what a WER compares.

Authors
 * The blsp_plugin team 2026
"""

import functools
import re
import unicodedata

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

__all__ = [
    "is_shouted",
    "needs_recasing",
    "normalise_transcript",
    "recase",
    "wer_normaliser",
]

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SENTENCE_START = re.compile(r"(^|[.!?…]\s+)(\W*)(\w)")
# The pronoun alone or before an apostrophe, but not the "i" of "i.e.".
ENGLISH_I = re.compile(r"\bi\b(?!\.\w)")
OPEN_END = re.compile(r"\w[\"'”’)\]]*$")

# How Whisper's authors normalise before a WER; any other language: basic.
WER_NORMALISERS = {
    "en": EnglishTextNormalizer,
    "english": EnglishTextNormalizer,
}


def normalise_transcript(text):
    r"""Clean a transcript without changing its words.

    Unicode NFC, control characters to spaces, runs of white space squeezed,
    ends stripped. Case and punctuation stay.

    Arguments
    ---------
    text : str
        As found in a manifest.

    Returns
    -------
    str
        One line; empty if there was nothing to say.

    Example
    -------
    >>> normalise_transcript(" two\tlines\r\nand a nul\x00 ")
    'two lines and a nul'
    """
    text = unicodedata.normalize("NFC", text)
    return " ".join(CONTROL.sub(" ", text).split())


def is_shouted(text):
    """Whether a text is ALL UPPER CASE, as LibriSpeech's transcripts are.

    Arguments
    ---------
    text : str
        A transcript.

    Returns
    -------
    bool
        True if it has cased letters and none of them is lower-case.

    Example
    -------
    >>> is_shouted("IT'S 5 O'CLOCK"), is_shouted("OK, go"), is_shouted("5")
    (True, False, False)
    """
    return text.isupper()


def needs_recasing(text):
    """Whether a text has lost its case, so that an LLM would read it badly.

    Arguments
    ---------
    text : str
        A transcript.

    Returns
    -------
    bool
        True if its cased letters are all upper-case or all lower-case; False
        for mixed case and for scripts without case.

    Example
    -------
    >>> [needs_recasing(text) for text in ("IT'S 5", "so", "So", "5", "你好")]
    [True, True, False, False, False]
    """
    return text.isupper() or text.islower()


def recase(text, language="en"):
    """Give a text without case its sentence case back, by rule.

    Text that needs it gets capitals at sentence starts, the English pronoun
    "I", and a final period if it ends in a word; other text is left alone.
    Names and acronyms stay lower-case, commas stay away: a rule cannot know
    them. `blsp_plugin.data.recasing` asks a language model.

    Arguments
    ---------
    text : str
        A transcript, as `normalise_transcript` leaves it.
    language : str
        "I" is raised in "en" only.

    Returns
    -------
    str
        The text in sentence case.

    Example
    -------
    >>> recase("I'M SURE THAT LONDON IS WHERE I LIVE")
    "I'm sure that london is where I live."
    >>> recase("NASA is fine")
    'NASA is fine'
    """
    if not needs_recasing(text):
        return text
    text = text.lower()
    if language == "en":
        text = ENGLISH_I.sub("I", text)
    text = SENTENCE_START.sub(lambda m: m[1] + m[2] + m[3].upper(), text)
    return text + "." if OPEN_END.search(text) else text


@functools.cache
def wer_normaliser(language):
    """The text normaliser with which a WER in a language is computed.

    Whisper's own (arXiv 2212.04356, appendix C), as `whisper_normalizer`
    packages them: figures compare with those of the Whisper paper.

    Arguments
    ---------
    language : str
        "en" (or "en-US", "english") for the English rules, which spell out
        contractions and numbers; anything else gets the basic ones.

    Returns
    -------
    callable
        From str to str. The same object each time.

    Example
    -------
    >>> wer_normaliser("en")("Mr. Brown can't see twenty-five colours!")
    'mister brown can not see 25 colors'
    >>> wer_normaliser("fr")("L'été, déjà ?").split()
    ['l', 'été', 'déjà']
    """
    family = language.lower().replace("_", "-").split("-")[0]
    return WER_NORMALISERS.get(family, BasicTextNormalizer)()
