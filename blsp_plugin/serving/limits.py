"""How much one caller, and all of them, may ask for.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

__all__ = ["Limits"]


class Limits(NamedTuple):
    """Bounds of a server.

    Arguments
    ---------
    seconds : float
        Longest clip.
    body : int
        Largest request, bytes; a clip is a third larger in it than it is.
    queue : int
        Requests that are read, wait or are answered at a time.
    new_tokens : int
        Longest answer, in tokens; of a request that does not say.
    read_seconds : float
        In which a request's headers must be there, and then each of its
        pieces.
    body_seconds : float
        In which a whole request must be there.
    answer_seconds : float
        In which it must be answered, and the answer taken.
    messages : int
        Of a conversation.
    clips : int
        Of a conversation.
    """

    seconds: float = 120.0
    body: int = 32 * 2**20
    queue: int = 256
    new_tokens: int = 256
    read_seconds: float = 10.0
    body_seconds: float = 120.0
    answer_seconds: float = 600.0
    messages: int = 64
    clips: int = 32

    @property
    def uploads(self):
        """Bytes of requests that are in memory at a time."""
        return 8 * self.body
