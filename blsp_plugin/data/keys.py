"""Keys by content: what is computed once is found by what it was made from.

Authors
 * The blsp_plugin team 2026
"""

import functools
import hashlib
import json
import os
import struct

from blsp_plugin.errors import BadInput

__all__ = ["KEY_BYTES", "checked_key", "clip_key", "text_key"]

KEY_BYTES = 16

_WHOLE = 1 << 22  # bytes: a file up to this size is hashed whole
_SAMPLE = 1 << 18  # bytes of a bigger one that are hashed at three places


def text_key(*parts):
    """Key of what is made from texts, numbers and other keys.

    Arguments
    ---------
    *parts : str, int, float, bool, None, bytes or (nested) list of these
        All that the value depends on beside the configuration.

    Returns
    -------
    bytes
        16 bytes, different for ``("ab", "c")`` and ``("a", "bc")``.

    Raises
    ------
    TypeError
        For anything else, a numpy number or a tensor for instance.

    Example
    -------
    >>> text_key("Continue.", [3, 1]).hex()
    '8f9e4fba7cab8f38e3cfdfdc810a6ab8'
    """
    text = json.dumps(parts, default=_bytes_as_json)
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _bytes_as_json(part):
    if isinstance(part, bytes):
        return {"bytes": part.hex()}
    raise TypeError(f"{type(part).__name__} cannot be a part of a key")


def clip_key(path, start=None, stop=None):
    """Key of a clip, or of a stretch of it, by content: a moved file keeps it.

    A file up to 4 MB is hashed whole. A bigger one is known by its size, its
    modification time and 256 kB each at its begin, middle and end, so a copy
    without the time (cp without -p) counts as another file.

    Arguments
    ---------
    path : str or os.PathLike
        An audio file.
    start : int, optional
        First sample, at the file's own rate. Default: 0.
    stop : int, optional
        One past the last sample, at the file's own rate. Default: the end.

    Returns
    -------
    bytes
        16 bytes.

    Raises
    ------
    BadInput
        If the file is missing or unreadable.

    Example
    -------
    >>> path = getfixture("tmp_path") / "clip.wav"
    >>> _ = path.write_bytes(b"RIFF...")
    >>> clip_key(path) == clip_key(path, 0), clip_key(path) == clip_key(path, 1)
    (True, False)
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise BadInput(
            f"{path}: no such audio file; correct the path or data_root"
        )
    try:
        facts = os.stat(path)
        # A program can set mtime back, but neither ctime nor the inode.
        known = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        content = _content(path, *known, facts.st_ino)
    except OSError as error:
        raise BadInput(
            f"{path}: not readable ({error.strerror}); correct its "
            "permissions, or drop the row"
        ) from error
    return text_key(content, start or 0, stop)


@functools.lru_cache(maxsize=1024)
def _content(path, size, mtime_ns, ctime_ns, inode):
    """Digest of a file; the segments of a recording come one after another."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    with open(path, "rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
            return digest.digest()
        # An hour of audio may be asked for by thousands of segments, each in
        # a process that has not seen it yet: hashed whole, a 100-MB file would
        # cost each a tenth of a second and all its bytes over the network.
        # Editing changes the size or the time, so three samples will do.
        digest.update(struct.pack("<Qq", size, mtime_ns))
        for place in (0, (size - _SAMPLE) // 2, size - _SAMPLE):
            stream.seek(place)
            digest.update(stream.read(_SAMPLE))
    return digest.digest()


def checked_key(key):
    """The key, or ValueError if it is none."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ValueError(f"a key is {KEY_BYTES} bytes, not {key!r}")
    return key
