"""Each visitor's own conversation, for as long as it is used.

Conversations hold keys and values of the LLM, so they stay on the server; a
page knows its own by the key of its session only.

Authors
 * The blsp_plugin team 2026
"""

import threading
import time
from collections import OrderedDict

__all__ = ["Visitors"]

_REMEMBERED = 1000  # keys of conversations that ended
_GONE = (
    "Your earlier conversation was closed after a long pause; this is a new "
    "one."
)


class Visitors:
    """Key -> conversation; those that rest too long are dropped.

    Arguments
    ---------
    begin : callable
        Makes a new conversation, an object as `Talk` with ``greeting`` (str),
        ``waiting`` and ``asked`` (bool: a turn waits, or waits or runs) and
        ``stop()``.
    idle : float
        Seconds without a turn after which a conversation ends.
    most : int
        Conversations that are kept; the one that rests longest makes room.
    grace : float
        Seconds that a conversation is kept after its page was closed: a phone
        that sleeps closes it too.
    clock : callable
        Seconds.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> now = [0.0]
    >>> visitors = Visitors(
    ...     lambda: SimpleNamespace(greeting="", asked=False), 60,
    ...     clock=lambda: now[0])
    >>> visitors.get("a") is visitors.get("a") is not visitors.get("b")
    True
    >>> now[0] = 61.0
    >>> visitors.sweep()
    >>> len(visitors)
    0
    """

    def __init__(
        self, begin, idle=3600, most=32, grace=300, clock=time.monotonic
    ):
        self.begin = begin
        self.idle = idle
        self.most = most
        self.grace = min(grace, idle)
        self.clock = clock
        self._kept = OrderedDict()  # key -> conversation, last used last
        self._until = {}
        self._ended = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self):
        return len(self._kept)

    @property
    def waiting(self):
        """Turns that were asked for and are not done."""
        with self._lock:
            return sum(talk.asked for talk in self._kept.values())

    def get(self, key):
        """A visitor's conversation, a new one if there is none.

        Arguments
        ---------
        key : str or None
            Of the session; without one, nobody can come back to it.

        Returns
        -------
        object
        """
        if key is None:
            return self.begin()
        with self._lock:
            self.sweep()
            if key not in self._kept:
                while len(self._kept) >= self.most and self._drop_one():
                    pass
                self._kept[key] = self.begin()
                if self._ended.pop(key, False):
                    self._kept[key].greeting = _GONE
            self._kept.move_to_end(key)
            self._until[key] = self.clock() + self.idle
            return self._kept[key]

    def renew(self, key):
        """Begin anew; what was said is forgotten.

        Arguments
        ---------
        key : str
            Of the session.

        Returns
        -------
        object
            The new conversation.
        """
        with self._lock:
            old = self._kept.pop(key, None)
            if old is not None:
                old.stop()
            return self.get(key)

    def leave(self, key):
        """A page was closed: its conversation ends soon.

        Arguments
        ---------
        key : str
            Of the session.
        """
        with self._lock:
            if key in self._kept:
                self._kept[key].stop()
                # A turn in the queue goes with the page.
                self._kept[key].waiting = False
                self._until[key] = self.clock() + self.grace

    def sweep(self):
        """Drop what has rested too long, but nothing that is at work."""
        with self._lock:
            now = self.clock()
            for key in [k for k in self._kept if self._until[k] <= now]:
                if not self._kept[key].asked:
                    self._drop(key)

    def _drop_one(self):
        """Make room; False where all are at work."""
        for key, talk in self._kept.items():
            if not talk.asked:
                self._drop(key)
                return True
        return False

    def _drop(self, key):
        del self._kept[key], self._until[key]
        self._ended[key] = True
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
