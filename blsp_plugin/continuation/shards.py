"""Shards: what stage 1 writes while it runs, and why nothing of it is lost.

Each process appends JSON lines to a shard of its own: one line a response,
rejected ones included, on the disk before the next batch starts. A line that a
crash has torn has no newline yet; its owner drops it when it opens the shard
again.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import fcntl
import io
import json
import os
import re

import numpy
import pyarrow
import pyarrow.json
from speechbrain.utils.logger import get_logger

from blsp_plugin.errors import BadInput
from blsp_plugin.files import disk_errors, sync_folder

__all__ = [
    "Index",
    "RECORD",
    "Shard",
    "find_shards",
    "read_records",
    "scan_shards",
    "shard_path",
]

logger = get_logger(__name__)

RECORD = pyarrow.schema(
    [
        ("n", pyarrow.int64()),
        ("ID", pyarrow.string()),
        ("response", pyarrow.string()),
        ("response_ids", pyarrow.list_(pyarrow.int32())),
        ("ended", pyarrow.bool_()),
        ("reason", pyarrow.string()),
    ]
)
_BLOCK = 1 << 25  # bytes of a shard that are read at once


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
    >>> folder = getfixture("tmp_path")
    >>> with Shard(shard_path(folder, "train", 0)) as shard:
    ...     facts = {"response": "", "response_ids": [], "ended": True}
    ...     shard.append([{"n": n, "ID": str(n), **facts} for n in (4, 2)])
    >>> scan_shards(folder, "train", 6).done.tolist()
    [False, False, True, False, True, False]
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
        sync_folder(self.path)

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
        # A server may send half of a surrogate pair.
        data = "".join(lines).encode(errors="replace")
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


def shard_path(folder, split, rank, part=0):
    """Path of the shard that a process writes for a split.

    Arguments
    ---------
    folder : str
        Of all shards.
    split : str
        Name of the split.
    rank : int
        Of the process in its job.
    part : int
        Of the job in the cluster.

    Returns
    -------
    str
    """
    return os.path.join(folder, f"{split}-{part:05d}-{rank:05d}.jsonl")


def find_shards(folder, split):
    """The shards of a split, by whatever number of processes.

    Arguments
    ---------
    folder : str
        Of all shards.
    split : str
        Name of the split.

    Returns
    -------
    list of str
        Their paths, sorted.
    """
    name = re.compile(re.escape(split) + r"-\d{5,}-\d{5}\.jsonl")
    files = sorted(filter(name.fullmatch, os.listdir(folder)))
    return [os.path.join(folder, file) for file in files]


class Index:
    """Where the records of a split are, by the numbers of their requests.

    Arguments
    ---------
    size : int
        Number of requests.
    """

    def __init__(self, size):
        self.paths = []
        self._shard = numpy.full(size, -1, dtype=numpy.int32)
        self._offset = numpy.zeros(size, dtype=numpy.int64)
        self._length = numpy.zeros(size, dtype=numpy.int32)

    @property
    def done(self):
        """Which requests have a record: (requests,), bool."""
        return self._shard >= 0

    def add(self, path, numbers, offsets, lengths):
        """Add records of a shard; of two with one number the first stays."""
        if path not in self.paths:
            self.paths.append(path)
        numbers, first = numpy.unique(numbers, return_index=True)
        new = self._shard[numbers] < 0
        numbers, first = numbers[new], first[new]
        self._shard[numbers] = self.paths.index(path)
        self._offset[numbers] = offsets[first]
        self._length[numbers] = lengths[first]

    def places(self, start, stop):
        """Where some records are.

        Arguments
        ---------
        start : int
            The first request.
        stop : int
            One past the last.

        Yields
        ------
        path : str
            A shard.
        numbers : numpy.ndarray
            Requests whose records it has, in the order of the shard.
        runs : list of (int, int)
            First byte and one past the last, of neighbouring lines together.
        """
        shards = self._shard[start:stop]
        for shard in numpy.unique(shards[shards >= 0]):
            numbers = start + numpy.flatnonzero(shards == shard)
            numbers = numbers[numpy.argsort(self._offset[numbers])]
            begins = self._offset[numbers]
            ends = begins + self._length[numbers]
            gaps = numpy.flatnonzero(begins[1:] != ends[:-1])
            firsts = begins[numpy.concatenate([[0], gaps + 1])]
            lasts = ends[numpy.concatenate([gaps, [-1]])]
            runs = list(zip(firsts.tolist(), lasts.tolist(), strict=True))
            yield self.paths[shard], numbers, runs


def scan_shards(folder, split, size):
    """Find what is already written, by whatever number of processes.

    Arguments
    ---------
    folder : str
        Of all shards.
    split : str
        Name of the split.
    size : int
        Number of its requests.

    Returns
    -------
    Index
        Without damaged lines: they are warned of and will be made again.
    """
    index = Index(size)
    for path in find_shards(folder, split):
        with open(path, "rb") as stream:
            offset = line = 0
            while block := stream.read(_BLOCK):
                block += stream.readline()
                block = block[: block.rfind(b"\n") + 1]  # without a torn end
                if not block:
                    break
                ends = numpy.frombuffer(block, dtype=numpy.uint8) == 10
                ends = numpy.flatnonzero(ends) + 1
                starts = numpy.concatenate([[0], ends[:-1]])
                numbers = _numbers(block, starts, ends)
                bad = (numbers < 0) | (numbers >= size)
                for i in numpy.flatnonzero(bad):
                    logger.warning("%s, row %d: damaged", path, line + i + 1)
                index.add(
                    path,
                    numbers[~bad],
                    offset + starts[~bad],
                    (ends - starts)[~bad],
                )
                offset += len(block)
                line += len(ends)
    return index


def _numbers(block, starts, ends):
    """The request's number in each line; -1 for a damaged one."""
    try:
        numbers = _whole_numbers(block)
        if len(numbers) == len(ends):
            return numbers
    except (pyarrow.ArrowInvalid, UnicodeDecodeError):
        pass
    numbers = numpy.full(len(ends), -1, dtype=numpy.int64)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        with contextlib.suppress(pyarrow.ArrowInvalid, UnicodeDecodeError):
            found = _whole_numbers(block[start:end])
            if len(found) == 1:
                numbers[i] = found[0]
    return numbers


def _whole_numbers(lines):
    """The number in each line of which every field can be read, else -1."""
    lines.decode()  # the parser takes any bytes in a string
    table = _parse(lines)
    whole = table["n"].is_valid().to_numpy()
    for name in ("ID", "response", "response_ids", "ended"):
        whole = whole & table[name].is_valid().to_numpy()
    return numpy.where(whole, table["n"].fill_null(-1).to_numpy(), -1)


def _parse(lines):
    return pyarrow.json.read_json(
        io.BytesIO(lines),
        read_options=pyarrow.json.ReadOptions(block_size=len(lines) + 1),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=RECORD, unexpected_field_behavior="ignore"
        ),
    )


def read_records(index, start, stop):
    """Read the records of some requests.

    Arguments
    ---------
    index : Index
        From `scan_shards`.
    start : int
        The first request.
    stop : int
        One past the last.

    Returns
    -------
    pyarrow.Table
        Columns of `RECORD`, a row a request in their order; all of it is
        null where there is no record.
    """
    tables, numbers = [], []
    for path, here, runs in index.places(start, stop):
        with open(path, "rb") as stream:
            lines = b"".join(
                os.pread(stream.fileno(), end - begin, begin)
                for begin, end in runs
            )
        table = _parse(lines).select(RECORD.names)
        if table["n"].to_pylist() != here.tolist():
            raise BadInput(
                f"{path}: has changed while it was read; run it again"
            )
        tables.append(table)
        numbers.append(here)
    order = numpy.full(stop - start, -1, dtype=numpy.int64)
    if numbers:
        numbers = numpy.concatenate(numbers)
        order[numbers - start] = numpy.arange(len(numbers))
    table = pyarrow.concat_tables(tables) if tables else RECORD.empty_table()
    order = pyarrow.array(order, mask=order < 0)
    return table.take(order)
