"""Case and punctuation for bare transcripts, as a language model writes them.

An LLM rewrites the transcript, and what it writes is never used itself: its
case and its punctuation are carried over to the transcript's own words. So an
LLM that changes, drops or adds words does no harm, and where one answers
something else the rule's text stands.

Authors
 * The blsp_plugin team 2026
"""

import math
import re
import unicodedata
from difflib import SequenceMatcher
from typing import NamedTuple

from blsp_plugin.data.text import (
    ends_open,
    is_shouted,
    needs_recasing,
    normalise_transcript,
    recase,
)
from blsp_plugin.errors import BadInput

__all__ = [
    "INSTRUCTION",
    "Projection",
    "Recaser",
    "needs_recasing",
    "project",
    "words",
]

INSTRUCTION = (
    "Correct the capitalization and punctuation of the following sentence."
)
# Letters and digits with their combining marks; apostrophes inside only.
_CHARACTERS = r"(?:[^\W_][\u0300-\u036f]*)+"
WORD = re.compile(rf"{_CHARACTERS}(?:['’]{_CHARACTERS})*")
APOSTROPHES = re.compile("['’‘`]")
DASHES = re.compile("[-‐‑‒–—]+")
SENTENCE_END = re.compile("[.?!…]")
QUOTES = re.compile('["“”«»]')
PUNCTUATION = ("Po", "Pd", "Pi", "Pf")  # of Unicode, brackets left out
# No punctuation to us. An apostrophe at a word's edge is the transcript's
# own ("BOYS'") or quotes.
REFUSED = "'’‘#%&*/@\\"
FORMS = {
    "rule": recase,
    "lower": lambda text, language: text.lower(),
    "transcript": lambda text, language: text,
}


class Projection(NamedTuple):
    """A transcript with the case and punctuation of a rewriting.

    Arguments
    ---------
    text : str
        The transcript's words, in order.
    matched : float
        Fraction of them that the rewriting has as well, 0 to 1.
    """

    text: str
    matched: float


class _Gap(NamedTuple):
    """What stands between two words."""

    closing: str = ""  # belongs to the word before
    link: str = " "  # or a hyphen, or a dash between spaces
    opening: str = ""  # belongs to the word after


def words(text):
    """The words of a text, for comparison: without case and punctuation.

    Arguments
    ---------
    text : str
        Any text.

    Returns
    -------
    list of str

    Example
    -------
    >>> words("Well-known? It's “HERE”.")
    ['well', 'known', "it's", 'here']
    """
    return [_fold(word) for word in WORD.findall(text)]


def project(transcript, rewritten, language="en"):
    """Carry a rewriting's case and punctuation over to a transcript.

    No word is changed, added or lost, and neither is punctuation that the
    transcript has already. Words that the rewriting lacks get the form that
    `blsp_plugin.data.text.recase` gives them. What the rewriting has before
    and after the transcript's words (a preamble, a continuation) is left out;
    so are brackets, and quotation marks that are unpaired or around the whole.

    Arguments
    ---------
    transcript : str
        As `normalise_transcript` leaves it; mixed case is left alone.
    rewritten : str
        What the LLM made of it.
    language : str
        Of the rule.

    Returns
    -------
    Projection
        The rule's text and 0 if the rewriting is SHOUTED: it tells nothing.

    Example
    -------
    >>> project("MR O'NEIL WON SIX POUNDS", "Mr. O'Neil won £6!")
    Projection(text="Mr. O'Neil won six pounds!", matched=0.6)
    >>> project("WELL KNOWN IN FRANCE", 'Sure: "Well-known in France, he')
    Projection(text='Well-known in France.', matched=1.0)
    """
    if not needs_recasing(transcript):
        return Projection(transcript, 1.0)
    rule = recase(transcript, language)
    mark = "’" if "’" in transcript else "'"
    rewritten = APOSTROPHES.sub(mark, normalise_transcript(rewritten))
    ours, our_gaps = _split(transcript)
    theirs, their_gaps = _split(rewritten)
    pairs, starts, ends = _align(ours, theirs)
    if is_shouted(" ".join(theirs[j] for j in pairs.values())):
        return Projection(rule, 0.0)
    gaps = _choose_gaps(len(ours), their_gaps, pairs, starts, ends)
    gap = _merge(our_gaps[0], gaps[0])
    text = gap
    for i, form in enumerate(WORD.findall(rule)):
        other = theirs[pairs[i]] if i in pairs else ""
        # Lower case is the rule's as well, but for "I" and the first word.
        if _fold(other) == _fold(ours[i]) and not other.islower():
            form = other
        elif i not in pairs and SENTENCE_END.search(gap):
            form = form[0].upper() + form[1:]
        gap = _merge(our_gaps[i + 1], gaps[i + 1])
        text += form + gap
    text += "." if ends_open(text) else ""
    return Projection(text, len(pairs) / max(1, len(ours)))


class Recaser:
    """How an LLM is asked to recase a transcript, and what is made of it.

    Arguments
    ---------
    instruction : str
        What the LLM is told; docs/experiments.md compares some.
    max_growth : float
        Most tokens of a rewriting, per token of what the LLM is given.
    min_matched : float
        Fraction of a transcript's words that its rewriting must have; with
        less, the rule's text is used whole.
    form : str
        What the LLM is given: "rule" (the rule's text), "lower" (lower case:
        better if the prompt shows lower-case examples) or "transcript" (as it
        is: for `CasingEngine`).
    language : str
        Of the transcripts, for the rule.

    Raises
    ------
    BadInput
        If a setting makes no sense.

    Example
    -------
    >>> recaser = Recaser()
    >>> recaser.given("I MET TOM IN PARIS")
    'I met tom in paris.'
    >>> recaser.apply("I MET TOM IN PARIS", "I met Tom in Paris.")
    'I met Tom in Paris.'
    >>> recaser.apply("I MET TOM IN PARIS", "Of course! I would love to.")
    'I met tom in paris.'
    >>> recaser.max_new_tokens(10)
    28
    """

    def __init__(
        self,
        instruction=INSTRUCTION,
        max_growth=2.0,
        min_matched=0.7,
        form="rule",
        language="en",
    ):
        if not max_growth > 0:
            raise BadInput(f"max_growth {max_growth}: must be above 0")
        if not 0 <= min_matched <= 1:
            raise BadInput(f"min_matched {min_matched} is not in [0, 1]")
        if form not in FORMS:
            raise BadInput(f"form {form!r}: is none of {', '.join(FORMS)}")
        self.instruction = instruction
        self.max_growth = max_growth
        self.min_matched = min_matched
        self.form = form
        self.language = language

    def given(self, transcript):
        """What the LLM is given: see ``form``.

        Given SHOUTED text, a small LLM writes other words, or shouts back.

        Arguments
        ---------
        transcript : str
            As given.

        Returns
        -------
        str
        """
        if not needs_recasing(transcript):
            return transcript
        return FORMS[self.form](transcript, self.language)

    def max_new_tokens(self, n_tokens):
        """Longest rewriting of a transcript, in tokens.

        Arguments
        ---------
        n_tokens : int
            Of what the LLM is given.

        Returns
        -------
        int
            A few more than ``max_growth`` times as many: marks and the end.
        """
        return math.ceil(self.max_growth * n_tokens) + 8

    def apply(self, transcript, rewritten):
        """Return the recased transcript; see `project`.

        Arguments
        ---------
        transcript : str
            As given.
        rewritten : str
            The LLM's answer.

        Returns
        -------
        str
        """
        projection = project(transcript, rewritten, self.language)
        if projection.matched < self.min_matched:
            return recase(transcript, self.language)
        return projection.text

    def describe(self):
        """All its settings, a dict for JSON."""
        return dict(vars(self))


def _fold(word):
    """A word without its case."""
    word = unicodedata.normalize("NFC", word).casefold()
    return unicodedata.normalize("NFC", word)


def _split(text):
    """The words of a text, and the gaps before, between and after them."""
    return WORD.findall(text), WORD.split(text)


def _align(ours, theirs):
    """Pair words; also those that start and end stretches of equal meaning.

    Returns {our word: their word}, the same for words whose left edges are
    alike, and for right edges. A changed stretch ("TWENTY FIVE," as "25,")
    has its edges in common but no words.
    """
    keys = [
        [APOSTROPHES.sub("", _fold(w)) for w in ws] for ws in (ours, theirs)
    ]
    pairs, starts, ends = {}, {}, {}
    matcher = SequenceMatcher(None, *keys, autojunk=False)
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            same = dict(zip(range(i1, i2), range(j1, j2), strict=True))
            for table in (pairs, starts, ends):
                table.update(same)
        elif kind == "replace" and j2 - j1 <= 2 * (i2 - i1):
            starts[i1], ends[i2 - 1] = j1, j2 - 1
        elif kind == "delete":
            # What stood after the words left out, or before: nobody knows.
            ends.pop(i1 - 1, None)
    return pairs, starts, ends


def _choose_gaps(n_words, their_gaps, pairs, starts, ends):
    """The rewriting's gaps around each of our words."""
    # With a space, what stands at the ends belongs to the only word there.
    their_gaps = [" " + their_gaps[0], *their_gaps[1:-1], their_gaps[-1] + " "]
    theirs = [_read_gap(gap) for gap in their_gaps]
    gaps = []
    for i in range(n_words + 1):
        before, after = ends.get(i - 1), starts.get(i)
        closing = "" if before is None else theirs[before + 1].closing
        opening = "" if after is None else theirs[after].opening
        # A hyphen between two words that are both the transcript's.
        linked = i - 1 in pairs and pairs.get(i) == pairs[i - 1] + 1
        link = theirs[after].link if linked else " "
        gaps.append(_Gap(closing, link if 0 < i < n_words else "", opening))
    # The rewriting may go on after our last word: the rule ends it then.
    if not SENTENCE_END.search(gaps[-1].closing):
        gaps[-1] = _Gap(link="")
    marks = [QUOTES.findall(gap.closing + gap.opening) for gap in gaps]
    n_marks = sum(map(len, marks))
    around = n_marks == 2 and marks[0] and marks[-1]
    if n_marks % 2 or around:
        gaps = [_Gap(*(QUOTES.sub("", part) for part in gap)) for gap in gaps]
    return gaps


def _read_gap(text):
    """What a rewriting has between two words."""
    text = "".join(
        c
        for c in text
        if c == " "
        or (unicodedata.category(c) in PUNCTUATION and c not in REFUSED)
    )
    if " " not in text:
        return _Gap("", text) if DASHES.fullmatch(text) else _Gap(text)
    closing, _, rest = text.partition(" ")
    between, _, opening = rest.rpartition(" ")
    dash = DASHES.fullmatch(between.strip())
    return _Gap(closing, f" {dash[0]} " if dash else " ", opening)


def _merge(own, gap):
    """A transcript's own gap, with what the rewriting has to add to it."""
    if not gap.link:
        return _edge(own, gap.closing, gap.opening)
    if " " not in own:
        return own
    closing, _, rest = own.partition(" ")
    between, _, opening = rest.rpartition(" ")
    if between:
        return own
    closing = _edge(closing, closing=gap.closing)
    return closing + gap.link + _edge(opening, opening=gap.opening)


def _edge(own, closing="", opening=""):
    """Marks at a word's edge: apostrophes are part of it, others count."""
    return own if APOSTROPHES.sub("", own) else opening + own + closing
