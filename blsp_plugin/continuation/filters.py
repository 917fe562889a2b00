"""Filters: which responses are not worth learning from, and why.

A filter looks at a request before any work is spent on it, or at the response,
or at both, and names one reason. Responses that were cut at
``max_new_tokens`` pass: they are kept as not ended.

Authors
 * The blsp_plugin team 2026
"""

import functools
import importlib.metadata
import re
from difflib import SequenceMatcher

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from blsp_plugin.errors import BadInput

__all__ = [
    "Filter",
    "EmptyPrompt",
    "LongPrompt",
    "EmptyResponse",
    "TooShort",
    "Refusal",
    "Repetition",
    "Echo",
    "WrongLanguage",
    "first_reason",
]

_WORD = re.compile(r"\w+(?:'\w+)*")
REFUSALS = (
    "as an ai",
    "i am an ai",
    "i'm an ai",
    "a helpful ai",
    "an ai assistant",
    "ai language model",
    "i'm sorry, but i",
    "i am sorry, but i",
    "i apologize, but i",
    "i cannot assist",
    "i can't assist",
    "i cannot help with",
    "i can't help with",
    "i cannot fulfill",
    "i can't fulfill",
    "i cannot provide",
    "i can't provide",
)


def _words(text):
    return _WORD.findall(text.casefold().replace("’", "'"))


class Filter:
    """One reason to reject; subclasses say when.

    Arguments
    ---------
    behaviours : sequence of str, optional
        Names of the behaviours that it looks at; all by default.
    """

    reason = "none"

    def __init__(self, behaviours=None):
        self.behaviours = None if behaviours is None else list(behaviours)

    def applies(self, behaviour):
        """Whether it looks at responses of this behaviour."""
        return self.behaviours is None or behaviour.name in self.behaviours

    def before(self, request):
        """Whether to reject a request unanswered.

        Arguments
        ---------
        request : Request
            Not generated yet.

        Returns
        -------
        bool
        """
        return False

    def after(self, request, generation):
        """Whether to reject a response.

        Arguments
        ---------
        request : Request
            What was asked.
        generation : Generation
            What the LLM wrote.

        Returns
        -------
        bool
        """
        return False

    def describe(self):
        """Its class and thresholds, a dict for JSON."""
        return {"filter": type(self).__name__, **vars(self)}


class EmptyPrompt(Filter):
    """No transcript: the LLM would invent something that nobody said."""

    reason = "empty prompt"

    def before(self, request):
        """True if there is nothing to continue."""
        return not request.text.strip()


class LongPrompt(Filter):
    """A prompt longer than the LLM is to read.

    Arguments
    ---------
    max_tokens : int
        Longest prompt, instruction and template included. The authors take
        prompts under 192 tokens.
    behaviours : sequence of str, optional
        See `Filter`.
    """

    reason = "long prompt"

    def __init__(self, max_tokens=192, behaviours=None):
        super().__init__(behaviours)
        self.max_tokens = max_tokens

    def before(self, request):
        """True if the prompt has more tokens."""
        return len(request.prompt_ids) > self.max_tokens


class EmptyResponse(Filter):
    """The LLM ended at once, or wrote nothing but control tokens."""

    reason = "empty response"

    def after(self, request, generation):
        """True if there is no text."""
        return not generation.text


class TooShort(Filter):
    """A response too short to teach anything.

    Arguments
    ---------
    min_tokens : int
        Shortest response.
    behaviours : sequence of str, optional
        See `Filter`; a repetition is as short as what it repeats.
    """

    reason = "too short"

    def __init__(self, min_tokens=4, behaviours=None):
        super().__init__(behaviours)
        self.min_tokens = min_tokens

    def after(self, request, generation):
        """True if the response has fewer tokens."""
        return len(generation.ids) < self.min_tokens


class Refusal(Filter):
    """The LLM refuses, or talks of itself, instead of doing as it was asked.

    Arguments
    ---------
    phrases : sequence of str
        Lower-case; a transcript that has the phrase itself may be answered
        with it.
    behaviours : sequence of str, optional
        See `Filter`.
    """

    reason = "refusal"

    def __init__(self, phrases=REFUSALS, behaviours=None):
        super().__init__(behaviours)
        self.phrases = list(phrases)

    def after(self, request, generation):
        """True if a phrase is the LLM's own."""
        response = generation.text.casefold().replace("’", "'")
        given = request.text.casefold().replace("’", "'")
        # Whole words: "as an ai" is not in "as an aid worker".
        return any(
            phrase not in given
            and re.search(rf"\b{re.escape(phrase)}\b", response)
            for phrase in self.phrases
        )


class Repetition(Filter):
    """The response runs in a loop.

    Arguments
    ---------
    repeats : int
        How often a unit must stand in a row.
    min_tokens : int
        Length of such a run, so that "no, no, no, no" and "1000000" pass.
    behaviours : sequence of str, optional
        See `Filter`.

    Example
    -------
    >>> [Repetition().loops(ids) for ids in ([1, 2, 3] * 4, [1, 2, 3] * 3)]
    [True, False]
    """

    reason = "repetition"

    def __init__(self, repeats=4, min_tokens=12, behaviours=None):
        super().__init__(behaviours)
        self.repeats = repeats
        self.min_tokens = min_tokens

    def loops(self, ids):
        """Whether a run of equal units is somewhere in a list.

        Arguments
        ---------
        ids : sequence of int
            Token ids.

        Returns
        -------
        bool
        """
        for period in range(1, len(ids) // self.repeats + 1):
            run = period  # tokens so far that repeat with this period
            needed = max(period * self.repeats, self.min_tokens)
            for i in range(period, len(ids)):
                run = run + 1 if ids[i] == ids[i - period] else period
                if run >= needed:
                    return True
        return False

    def after(self, request, generation):
        """True if the response loops, wherever in it."""
        return self.loops(generation.ids)


class Echo(Filter):
    """A response that merely repeats its prompt: instruction or transcript.

    One that repeats the transcript and then goes on passes.

    Arguments
    ---------
    max_overlap : float
        Fraction of the response's words that may be the prompt's, in its
        order.
    transcript : bool
        Whether the transcript counts. False is for behaviours like "repeat",
        which may say it again, but not their instruction.
    behaviours : sequence of str, optional
        See `Filter`.

    Example
    -------
    >>> echo = Echo()
    >>> echo.overlap("The sea was calm.", "the sea was calm")
    1.0
    >>> echo.overlap("The sea was calm.", "The sea was calm until noon came.")
    ... # doctest: +ELLIPSIS
    0.57...
    """

    reason = "echo"

    def __init__(self, max_overlap=0.8, transcript=True, behaviours=None):
        super().__init__(behaviours)
        self.max_overlap = max_overlap
        self.transcript = transcript

    def overlap(self, given, response):
        """How much of the response is some other text.

        Arguments
        ---------
        given : str
            What was in the prompt.
        response : str
            What the LLM made of it.

        Returns
        -------
        float
            0 to 1; case and punctuation don't count.
        """
        given, written = _words(given), _words(response)
        if not written:
            return 0.0
        matcher = SequenceMatcher(None, given, written, autojunk=False)
        same = sum(block.size for block in matcher.get_matching_blocks())
        return same / len(written)

    def after(self, request, generation):
        """True if the response is nothing but its prompt."""
        said, text = request.instruction, request.text
        if self.transcript:
            # The response may have them in either order.
            prompt = f"{said}\n{text}\n{said}"
            return self.overlap(prompt, generation.text) > self.max_overlap
        # A transcript may be much like the instruction.
        return (
            self.overlap(said, generation.text) > self.max_overlap
            and self.overlap(text, generation.text) <= self.max_overlap
        )


@functools.cache
def _identifier():
    """The language identifier: half a second to load, one for all filters."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class WrongLanguage(Filter):
    """The response is clearly in another language than it should be.

    Figures for the defaults are in docs/experiments.md, section 4: 0.1 % of
    the English texts long enough to be judged are taken for something else.

    Arguments
    ---------
    language : str
        ISO 639 code of the right one, as "en"; a region ("pt-BR") is
        ignored.
    min_letters : int
        Shorter responses are not judged. Counted in UTF-8 bytes of letters,
        for a Chinese character says as much as three Latin ones.
    ratio : float
        How much likelier than the right language another one must be.
    behaviours : sequence of str, optional
        See `Filter`.

    Raises
    ------
    BadInput
        If the library does not know the language.

    Example
    -------
    >>> english = WrongLanguage("en")
    >>> english.is_other("Das Meer war ruhig, bis der Sturm kam.")
    True
    >>> english.is_other("The sea was calm until the storm came.")
    False
    >>> english.is_other("Das Meer.")  # too short to tell
    False
    """

    reason = "wrong language"

    def __init__(
        self, language="en", min_letters=20, ratio=10, behaviours=None
    ):
        super().__init__(behaviours)
        self.language = language
        self.min_letters = min_letters
        self.ratio = ratio
        # Another version may judge otherwise.
        version = importlib.metadata.version("py3langid")
        self.detector = f"py3langid {version}"
        if self._code() not in _identifier().labels:
            raise BadInput(
                f"language {language!r}: WrongLanguage does not know it; give "
                f"one of {' '.join(sorted(_identifier().labels))}, or leave "
                "this filter out"
            )

    def _code(self):
        return re.split("[-_]", str(self.language).lower())[0]

    def is_other(self, text):
        """Whether a text is clearly in another language.

        Arguments
        ---------
        text : str
            A response.

        Returns
        -------
        bool
        """
        letters = "".join(filter(str.isalpha, text))
        if len(letters.encode()) < self.min_letters:
            return False
        ranked = _identifier().rank(text)
        best, likelihood = ranked[0]
        right = dict(ranked)[self._code()]
        # "zxx" is no language: numbers, markup.
        return best != "zxx" and likelihood > self.ratio * right

    def after(self, request, generation):
        """True if the response is in another language."""
        return self.is_other(generation.text)


def first_reason(filters, request, generation=None):
    """The first filter's reason against a request or its response.

    Arguments
    ---------
    filters : sequence of Filter
        In the order in which they are asked.
    request : Request
        What is, or was, asked of the LLM.
    generation : Generation, optional
        Its response; without one the request alone is judged.

    Returns
    -------
    str or None
        None if nothing speaks against it.
    """
    for check in filters:
        if not check.applies(request.behaviour):
            continue
        if generation is None:
            bad = check.before(request)
        else:
            bad = check.after(request, generation)
        if bad:
            return check.reason
    return None
