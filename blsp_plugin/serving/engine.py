"""What writes answers: the interface, and what every engine needs.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

__all__ = ["Cutter", "End", "Engine", "Wish"]


class Wish(NamedTuple):
    """How an answer is to be written.

    Arguments
    ---------
    max_new_tokens : int
        Longest answer.
    temperature : float
        0 is greedy.
    top_p : float
        Share of the tokens that are drawn from.
    seed : int, optional
        Of the draws.
    stop : tuple of str
        Texts that end the answer and are no part of it.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = None
    stop: tuple = ()


class End(NamedTuple):
    """Comes behind the last piece of an answer.

    Arguments
    ---------
    reason : str
        "stop" if the LLM (or a stop text) ended it, "length" if it was cut.
    tokens : int
        That were written, with the one that ended it.
    """

    reason: str
    tokens: int


class Engine:
    """What every engine does.

    Attributes
    ----------
    room : int or None
        Tokens of a prompt and its answer, at most.
    """

    room = None

    async def write(self, embeds, wish, stream):
        """Write an answer; closing the iterator ends the work on it.

        Arguments
        ---------
        embeds : torch.Tensor
            Shape (tokens, hidden_size), the prompt.
        wish : Wish
            Of the caller.
        stream : bool
            Whether pieces are wanted as they come, or all at once.

        Yields
        ------
        str or End
            Pieces of the text, not empty; `End` is the last.

        Raises
        ------
        Refusal
            If nothing, or nothing more, can be written.
        """
        raise NotImplementedError
        yield

    async def healthy(self):
        """Whether it can work now, a bool."""
        return True

    async def close(self):
        """Put down what it holds."""


class Cutter:
    """A text that comes in pieces -> what of it can be shown already.

    That is all up to the first of some stop texts, without the spaces around.

    Arguments
    ---------
    stops : sequence of str
        Not part of the text.

    Example
    -------
    >>> cutter = Cutter(["STOP"])
    >>> [cutter.feed(piece) for piece in (" a", " bS", "x S", "TOP more")]
    ['a', ' b', 'Sx', '']
    >>> cutter.ended, cutter.rest()
    (True, '')
    """

    def __init__(self, stops=()):
        self.stops = tuple(stops)
        self.ended = False
        self._text = ""
        self._shown = 0

    def feed(self, piece):
        """Take a piece; the text that follows what was shown, maybe "".

        Arguments
        ---------
        piece : str
            What comes next.
        """
        if self.ended:
            return ""
        self._text += piece
        if not self._shown:
            self._text = self._text.lstrip()
        places = [self._text.find(stop) for stop in self.stops]
        places = [place for place in places if place >= 0]
        if places:
            self.ended = True
            self._text = self._text[: min(places)]
            return self._show(len(self._text))
        return self._show(len(self._text) - self._held())

    def rest(self):
        """What was held back, once no piece follows."""
        return self._show(len(self._text))

    def _held(self):
        """Characters at the end that may be the beginning of a stop text."""
        return max(
            (
                size
                for stop in self.stops
                for size in range(1, len(stop))
                if self._text.endswith(stop[:size])
            ),
            default=0,
        )

    def _show(self, end):
        text = self._text[:end].rstrip()
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new
