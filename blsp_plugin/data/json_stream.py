"""JSON files of corpora: whole, or a long list item by item.

Authors
 * The blsp_plugin team 2026
"""

import json
import re

from blsp_plugin.errors import BadInput

__all__ = ["read_json", "stream_list"]

DECODER = json.JSONDecoder()
WHITE = re.compile(r"[ \t\r\n]*")
BLOCK = 2**20  # characters read at a time
# A decoder that wants more text stops at its end, or at the beginning of a
# string that has none, but not further away than strings are long.
LONGEST_STRING = 2**16


def read_json(path, read):
    """Read a JSON file whole.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8.
    read : callable
        Makes what is wanted of its value; it need not check what it takes.

    Returns
    -------
    object
        What ``read`` returns.

    Raises
    ------
    BadInput
        Missing, not JSON, or not what ``read`` takes.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"a": [1, 2]}')
    >>> read_json(path, lambda value: value["a"])
    [1, 2]
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            return read(json.load(stream))
    except FileNotFoundError as error:
        raise BadInput(
            f"{path}: no such file; download or extract the corpus again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: not the file of this corpus ({error!r}); download or "
            "extract it again"
        ) from error


def stream_list(path, key):
    """Read the items of the list under a key of a JSON file's one object.

    Memory holds one item at a time, besides the keys before the list; what
    follows the list is not read.

    Arguments
    ---------
    path : str or os.PathLike
        The file, UTF-8.
    key : str
        Of the list.

    Yields
    ------
    object
        Each item.

    Raises
    ------
    BadInput
        Missing, not JSON, cut short, or without that list.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"version": {"x": 1}, "audios": [{"a": 1}, 2]}')
    >>> list(stream_list(path, "audios"))
    [{'a': 1}, 2]
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            text = _Text(path, stream)
            _find_list(text, key)
            if text.peek() == "]":
                return
            while True:
                yield text.value()
                text.item += 1
                if text.take(",]") == "]":
                    return
    except FileNotFoundError as error:
        raise BadInput(
            f"{path}: no such file; download or extract the corpus again"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8; download it again") from error


def _find_list(text, key):
    """Read up to the first item of the list."""
    text.take("{")
    while text.peek() == '"':
        found = text.value()
        text.take(":")
        if found == key:
            text.take("[")
            return
        text.value()
        if text.take(",}") == "}":
            break
    raise BadInput(
        f"{text.path}: has no list {key!r}; it is not the file of this corpus"
    )


class _Text:
    """The text of a file from some place on, read as it is needed."""

    def __init__(self, path, stream):
        self.path = path
        self.stream = stream
        self.text = ""
        self.at = 0
        self.item = 1

    def peek(self):
        """The next character that is not white space; "" at the end."""
        while True:
            self.at = WHITE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, allowed):
        """Go over the next character, which must be an allowed one."""
        found = self.peek()
        if not found or found not in allowed:
            self._refuse()
        self.at += 1
        return found

    def value(self):
        """Go over the next JSON value, and return it."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                broken = error.pos < len(self.text) - LONGEST_STRING
                if broken or not self._more():
                    self._refuse()
                continue
            length = end - self.at
            # At the end of the block a number may go on in the next one.
            if end < len(self.text) or not self._more():
                self.at += length
                return value

    def _more(self):
        """Read on, twice as much as is waiting: long items are read fast."""
        waiting = self.text[self.at :]
        block = self.stream.read(max(BLOCK, len(waiting)))
        self.text, self.at = waiting + block, 0
        return bool(block)

    def _refuse(self):
        raise BadInput(
            f"{self.path}: cut short, or not JSON, at item {self.item} of its "
            "list; download or extract it again"
        )
