"""What stage 1 writes, and why nothing of it is lost or written twice.

While it runs, each process appends JSON lines to a shard of its own: one line
a response, rejected ones included, on the disk before the next batch starts.
A line that a crash has torn has no newline yet; its owner drops it when it
opens the shard again. When all is there, one Parquet file a split is made of
the shards, in the order of the input, and appears whole or not at all.

Authors
 * The blsp_plugin team 2026
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import re

import pyarrow
import pyarrow.parquet
from speechbrain.utils.logger import get_logger

from blsp_plugin.continuation.behaviours import row_key
from blsp_plugin.errors import BadInput
from blsp_plugin.files import disk_errors

__all__ = [
    "COLUMNS",
    "Shard",
    "check_settings",
    "hash_rows",
    "read_shard",
    "scan_shards",
    "shard_path",
    "write_table",
]

logger = get_logger(__name__)

COLUMNS = pyarrow.schema(
    [
        ("ID", pyarrow.string()),
        ("clip_id", pyarrow.string()),
        ("wav", pyarrow.string()),
        ("duration", pyarrow.float64()),
        ("transcript", pyarrow.string()),
        ("text", pyarrow.string()),
        ("behaviour", pyarrow.string()),
        ("instruction", pyarrow.string()),
        ("response", pyarrow.string()),
        ("response_ids", pyarrow.list_(pyarrow.int32())),
        ("ended", pyarrow.bool_()),
    ]
)
_ROW_GROUP = 8192


class Shard:
    """An append-only JSONL file with one owner.

    Arguments
    ---------
    path : str
        The file; made if it is not there, its torn end dropped if it has one.

    Raises
    ------
    BadInput
        If another process is writing it.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train-0000.jsonl"
    >>> with Shard(path) as shard:
    ...     shard.append([{"ID": "a"}, {"ID": "b"}])
    >>> [record["ID"] for _, record in read_shard(path)]
    ['a', 'b']
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with disk_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise BadInput(
                f"{self.path}: another process writes to it; wait until it "
                "is done, or stop it"
            ) from error
        self._size = self._whole_lines()
        os.ftruncate(self._file, self._size)
        _sync_folder(self.path)

    def append(self, records):
        """Put records on the disk; afterwards no crash can lose them.

        Arguments
        ---------
        records : list of dict
            JSON-able; all of them are written, or none.

        Raises
        ------
        OSError
            ENOSPC, naming the file, if the disk is full.
        """
        lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in records]
        data = "".join(lines).encode()
        try:
            with disk_errors(self.path):
                left = memoryview(data)
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def close(self):
        """Give the shard up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _whole_lines(self):
        """Size of the file up to its last newline."""
        end = os.fstat(self._file).st_size
        step = 1 << 16
        while end > 0:
            start = max(0, end - step)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0


def read_shard(path):
    """Read the whole lines of a shard.

    Arguments
    ---------
    path : str
        The file; somebody may be appending to it.

    Yields
    ------
    offset : int
        Where the line starts, in bytes.
    record : dict
        A damaged line is left out, with a warning: it will be made again.
    """
    offset = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                try:
                    record = json.loads(line)
                    record["ID"]
                except (ValueError, TypeError, KeyError):
                    logger.warning("%s, row %d: damaged", path, number)
                else:
                    yield offset, record
            offset += len(line)


def shard_path(folder, split, rank):
    """Path of the shard that a process writes for a split.

    Arguments
    ---------
    folder : str
        Of all shards.
    split : str
        Name of the split.
    rank : int
        Of the process.

    Returns
    -------
    str
    """
    return os.path.join(folder, f"{split}-{rank:04d}.jsonl")


def scan_shards(folder, split):
    """Find what is already written, by whatever number of processes.

    Arguments
    ---------
    folder : str
        Of all shards.
    split : str
        Name of the split.

    Returns
    -------
    dict
        From the ID to (path, offset) of its line.
    """
    found = {}
    name = re.compile(re.escape(split) + r"-\d+\.jsonl")
    for file in sorted(filter(name.fullmatch, os.listdir(folder))):
        path = os.path.join(folder, file)
        for offset, record in read_shard(path):
            found.setdefault(record["ID"], (path, offset))
    return found


def hash_rows(rows, keys):
    """Name the content of some rows.

    Arguments
    ---------
    rows : iterable of dict
        In order.
    keys : sequence of str
        What counts.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps([row.get(key) for key in keys])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]


def check_settings(path, settings):
    """Let a folder hold the work of one set of settings only.

    Arguments
    ---------
    path : str
        ``settings.json`` of the folder; none, if it has not been begun yet.
    settings : dict
        Everything that decides the texts.

    Raises
    ------
    BadInput
        If the folder was begun with other settings; names the differences.

    Example
    -------
    >>> path = getfixture("tmp_path") / "settings.json"
    >>> from blsp_plugin.files import write_json
    >>> write_json({"llm": "a", "seed": 1}, path)
    >>> check_settings(path, {"llm": "a", "seed": 2})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    blsp_plugin.errors.BadInput: ... seed was 1 and is 2 now; ...
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8") as stream:
            before = _flatten(json.load(stream))
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"{path}: not readable ({error}); use another output_folder"
        ) from error
    now = _flatten(json.loads(json.dumps(settings)))
    differences = [
        f"{key} was {_short(before.get(key))} and is {_short(now.get(key))} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        more = len(differences) - 3
        raise BadInput(
            f"{path}: this folder was begun with other settings: "
            + ", ".join(differences[:3])
            + (f" and {more} more" if more > 0 else "")
            + "; use another output_folder, or the settings it was begun with"
        )


def write_table(path, items, index, keep=()):
    """Make one Parquet file of a split's shards, in the order of its input.

    Arguments
    ---------
    path : str
        The Parquet file; appears whole or not at all.
    items : iterable of (dict, Behaviour)
        What was asked for. Rows have ``id``, ``wav``, ``duration``,
        ``transcript``, ``text`` and the ``keep`` columns.
    index : dict
        From `scan_shards`.
    keep : sequence of str
        Further columns, as text.

    Returns
    -------
    rejected : list of dict
        The records that have a reason instead of a place in the table.
    counts : collections.Counter
        ``rows``, ``written``, ``truncated``, ``tokens``, and written rows by
        behaviour as ``written_<name>``.

    Raises
    ------
    BadInput
        If a response is missing.
    """
    fields = [(name, pyarrow.string()) for name in keep]
    schema = pyarrow.schema([*COLUMNS, *fields])
    rejected, counts = [], collections.Counter()
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with disk_errors(path), contextlib.ExitStack() as stack:
            # The footer is written on closing: the stream must outlive it.
            stream = stack.enter_context(open(temporary, "wb"))
            with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
                group = []
                for row, behaviour, record in _joined(items, index):
                    counts["rows"] += 1
                    counts["tokens"] += len(record["response_ids"])
                    if record["reason"] is not None:
                        rejected.append(record)
                        continue
                    counts["written"] += 1
                    counts[f"written_{behaviour.name}"] += 1
                    counts["truncated"] += not record["ended"]
                    group.append(_table_row(row, behaviour, record, keep))
                    if len(group) == _ROW_GROUP:
                        _write_group(writer, group, schema)
                        group = []
                _write_group(writer, group, schema)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    _sync_folder(path)
    return rejected, counts


def _joined(items, index):
    """Bring each row together with its record on the disk."""
    with contextlib.ExitStack() as stack:
        streams = {}
        for row, behaviour in items:
            key = row_key(row, behaviour)
            if key not in index:
                raise BadInput(
                    f"{key}: no response in the shards; run the same command "
                    "again to write it"
                )
            path, offset = index[key]
            if path not in streams:
                streams[path] = stack.enter_context(open(path, "rb"))
            streams[path].seek(offset)
            yield row, behaviour, json.loads(streams[path].readline())


def _table_row(row, behaviour, record, keep):
    return {
        "ID": record["ID"],
        "clip_id": row["id"],
        "wav": os.path.abspath(row["wav"]),
        "duration": row["duration"],
        "transcript": row["transcript"],
        "text": row["text"],
        "behaviour": behaviour.name,
        "instruction": behaviour.instruction,
        "response": record["response"],
        "response_ids": record["response_ids"],
        "ended": record["ended"],
        **{name: str(row[name]) for name in keep},
    }


def _write_group(writer, group, schema):
    if group:
        writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _flatten(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}, so that a difference has a name."""
    pairs = enumerate(tree) if isinstance(tree, list) else tree.items()
    flat = {}
    for key, value in pairs:
        if isinstance(value, dict | list):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value):
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sync_folder(path):
    """A new name is on the disk only once its folder is."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
