"""Files that appear whole or not at all, and full disks that say so.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import errno
import json
import os
import secrets

__all__ = [
    "atomic_write",
    "disk_errors",
    "sync_folder",
    "write_json",
    "write_jsonl",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_errors(path):
    """Name the file in the error of a full disk (or quota, or size limit).

    Arguments
    ---------
    path : str
        What is being written.

    Raises
    ------
    OSError
        ENOSPC with the file's name, which `one_line_errors` shows.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(error.errno), path) from error


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open ``path`` for writing so that it appears whole or not at all.

    Arguments
    ---------
    path : str or os.PathLike
        The file to write; its folder is made if need be.
    mode : str
        "w" for text, "wb" for bytes.

    Yields
    ------
    file object
        Text is UTF-8, newlines as given.

    Example
    -------
    >>> path = getfixture("tmp_path") / "note.txt"
    >>> with atomic_write(path) as stream:
    ...     _ = stream.write("done")
    >>> path.read_text()
    'done'
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    # Machines that share the folder may have processes of the same number.
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(temporary, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def write_json(value, path):
    """Write a JSON file that appears whole or not at all.

    Arguments
    ---------
    value : dict
        What to write.
    path : str
        The file.
    """
    with disk_errors(path), atomic_write(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def write_jsonl(records, path):
    """Write a file of JSON lines that appears whole or not at all.

    Arguments
    ---------
    records : iterable of dict
        One a line.
    path : str
        The file.
    """
    with disk_errors(path), atomic_write(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def sync_folder(path):
    """Put the name of a file on the disk: it is there once its folder is.

    Arguments
    ---------
    path : str
        The file.
    """
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
