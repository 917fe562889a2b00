"""Tensors that frozen models compute once: an append-only store on disk.

Encoder states and teacher targets do not change while an adapter learns. They
lie in ``<folder>/<kind>-<fingerprint of the configuration>/``: a readable
``configuration.json``, and a pair of files for each writer, data and index
(`blsp_plugin.data.cache_files` says what is in them). Another configuration
lies in another folder.

What holds, whatever is killed when:

* An entry is there whole or not at all. Its record is written once its data
  are on the disk; a record that is torn, damaged or promises more than the
  data file has counts as not written, so its entry is computed again.
* A file has one writer, which made it; nobody changes or deletes it later.
  Ranks, processes and machines that share the folder need no lock; what a dead
  writer left is read. Of two entries with one key (equal, since the
  configuration is) one counts.
* What is read is what was written: the crc32 of an entry is checked each time.

An entry costs 36 bytes of memory, 360 MB for ten million, in each process that
reads: those of a loader too.

Authors
 * The blsp_plugin team 2026
"""

import functools
import hashlib
import json
import os
import shutil

import numpy
from speechbrain.utils.logger import get_logger

from blsp_plugin.data.cache_files import (
    FORMAT,
    RECORD,
    CacheWriter,
    DataFile,
    file_size,
    folder_errors,
    record_checks,
    unpack_entry,
)
from blsp_plugin.data.keys import checked_key, clip_key, text_key
from blsp_plugin.errors import BadInput
from blsp_plugin.files import disk_errors, write_json

__all__ = ["ArrayCache", "CacheWriter", "DamagedEntry", "clip_key", "text_key"]

logger = get_logger(__name__)

_ROW = numpy.dtype(  # of the index in memory; its bytes sort as its fields do
    [("key", "S16"), ("file", ">u4"), ("offset", ">u8"), ("length", ">u8")]
)
_BYTES = f"S{_ROW.itemsize}"
_BLOCK = 1 << 16  # records that are read at once
_OPEN = 64  # data files that a process keeps open


class DamagedEntry(BadInput):
    """An entry whose bytes are not those that were written."""


class ArrayCache:
    """Named tensors by key, for many readers and writers at once.

    It can be pickled and forked: files are opened where they are read. Threads
    may read one cache, but must not do so while one of them refreshes it.

    Arguments
    ---------
    folder : str or os.PathLike
        Of all caches.
    configuration : dict
        Name -> str or number: all that makes the values (fingerprint of the
        model, dtype ...). Its "kind" names the folder.

    Raises
    ------
    BadInput
        If the folder cannot be made or read.

    Example
    -------
    >>> import torch
    >>> made_by = {"kind": "states", "encoder": "0123", "dtype": "bfloat16"}
    >>> cache = ArrayCache(getfixture("tmp_path"), made_by)
    >>> keys = [text_key(n) for n in range(3)]
    >>> with cache.writer() as writer:
    ...     for key in cache.missing(keys):
    ...         writer.put(key, {"states": torch.ones(2, 4).bfloat16()})
    >>> len(cache), cache.missing(keys), keys[0] in cache
    (3, [], True)
    >>> cache[keys[0]]["states"].shape
    torch.Size([2, 4])
    """

    def __init__(self, folder, configuration):
        for name, value in configuration.items():
            if not isinstance(value, str | int | float):
                raise ValueError(f"{name}: {value!r} is no text or number")
        text = json.dumps([FORMAT, configuration], sort_keys=True)
        fingerprint = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        name = f"{configuration.get('kind', 'cache')}-{fingerprint}"
        self.folder = os.path.join(os.fspath(folder), name)
        self._stems = []  # of the file pairs, by the numbers in the rows
        self._done = {}  # stem -> its records that are read
        self._rows = numpy.empty(0, _ROW)
        self._open = functools.lru_cache(_OPEN)(DataFile)
        with folder_errors():
            with disk_errors(self.folder):
                os.makedirs(self.folder, exist_ok=True)
            readable = os.path.join(self.folder, "configuration.json")
            if not os.path.exists(readable):
                write_json(configuration, readable)
            self.refresh()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_open"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open = functools.lru_cache(_OPEN)(DataFile)

    @property
    def bytes(self):
        """Size of all its files, those of other writers included."""
        with os.scandir(self.folder) as entries:
            return sum(
                entry.stat().st_size
                for entry in entries
                if entry.name.endswith((".data", ".index"))
            )

    def __len__(self):
        """Number of entries."""
        return len(self._rows)

    def __contains__(self, key):
        """Whether there is an entry of this key."""
        return self._find(key) is not None

    def missing(self, keys):
        """Keys without an entry.

        Arguments
        ---------
        keys : iterable of bytes
            Of 16 bytes each.

        Returns
        -------
        list of bytes
            In their order, each once.
        """
        keys = list(dict.fromkeys(map(checked_key, keys)))
        if not len(self._rows):
            return keys
        wanted = numpy.array(keys, dtype="S16")
        places = numpy.searchsorted(self._rows.view(_BYTES), wanted)
        found = self._rows["key"][places.clip(max=len(self._rows) - 1)]
        return [keys[i] for i in numpy.flatnonzero(found != wanted)]

    def _find(self, key):
        rows = self._rows
        place = numpy.searchsorted(rows.view(_BYTES), checked_key(key))
        if place < len(rows) and rows[place].tobytes().startswith(key):
            return rows[place]
        return None

    def __getitem__(self, key):
        """Read an entry.

        Arguments
        ---------
        key : bytes
            16 bytes.

        Returns
        -------
        dict
            Name -> tensor on the CPU, as it was put.

        Raises
        ------
        KeyError
            If there is none.
        DamagedEntry
            If its bytes have changed, or its file has gone.
        """
        row = self._find(key)
        if row is None:
            raise KeyError(key.hex())
        path = self._path(self._stems[row["file"]], "data")
        offset, length = int(row["offset"]), int(row["length"])
        try:
            return unpack_entry(key, self._open(path).read(offset, length))
        except FileNotFoundError as error:
            raise DamagedEntry(
                f"{path}: has been deleted meanwhile; delete *.filled beside "
                "it and run the same command again, which computes its "
                "entries anew"
            ) from error
        except ValueError as error:
            raise DamagedEntry(
                f"{path}: damaged at byte {offset} ({error}); delete {path} "
                "and *.filled beside it and run the same command again, which "
                "computes its entries anew"
            ) from error

    def refresh(self):
        """Take in what others have written since."""
        grown, old = [], len(self._rows)
        for name in sorted(os.listdir(self.folder)):
            stem, suffix = os.path.splitext(name)
            if suffix != ".index":
                continue
            if stem not in self._done:
                self._done[stem] = 0
                self._stems.append(stem)
            size = file_size(self._path(stem, "index")) // RECORD.itemsize
            if size > self._done[stem]:
                grown.append((stem, size))
        if not grown:
            return
        more = sum(size - self._done[stem] for stem, size in grown)
        rows = numpy.empty(old + more, _ROW)
        rows[:old] = self._rows
        end = old
        for stem, size in grown:
            for records in self._read_index(stem, size):
                new = rows[end : end + len(records)]
                for field in ("key", "offset", "length"):
                    new[field] = records[field]
                new["file"] = self._stems.index(stem)
                end += len(records)
        if end == old:
            return
        rows = rows[:end]
        rows.view(_BYTES).sort()  # in place: by key, then file and offset
        first = numpy.ones(end, dtype=bool)
        first[1:] = rows["key"][1:] != rows["key"][:-1]
        self._rows = rows if first.all() else rows[first]

    def _read_index(self, stem, size):
        """Yield the records of whole entries, a block at a time."""
        # Looked at after the index: whatever that promised is in the data.
        data = self._path(stem, "data")
        data_size = file_size(data)
        if not data_size:  # deleted, as `DamagedEntry` asked
            return
        bad = 0
        with open(self._path(stem, "index"), "rb") as stream:
            stream.seek(self._done[stem] * RECORD.itemsize)
            for begin in range(self._done[stem], size, _BLOCK):
                raw = stream.read(min(_BLOCK, size - begin) * RECORD.itemsize)
                records = numpy.frombuffer(raw, RECORD)
                good = records["check"] == record_checks(raw)
                good &= records["offset"] + records["length"] <= data_size
                good = numpy.flatnonzero(good)
                bad += len(records) - len(good)
                if len(good):
                    # A tail that is not whole yet is looked at again.
                    self._done[stem] = begin + int(good[-1]) + 1
                    yield records[good]
        if bad:
            logger.warning(
                "%s: %d damaged entries; they count as not written", data, bad
            )

    def _path(self, stem, suffix):
        return os.path.join(self.folder, f"{stem}.{suffix}")

    def writer(self, rank=0):
        """A writer with files of its own; close it, or use ``with``.

        Arguments
        ---------
        rank : int
            Of the process, for the names of the files.

        Returns
        -------
        CacheWriter
        """
        return CacheWriter(self, rank)

    def reserve(self, bytes_wanted):
        """Refuse work that the disk cannot hold, before it starts.

        Arguments
        ---------
        bytes_wanted : int
            Bytes of the tensors to come.

        Raises
        ------
        BadInput
            If fewer are free than these and a margin: 1 % of them, 1 GB at
            least.
        """
        free = shutil.disk_usage(self.folder).free
        wanted = bytes_wanted + max(bytes_wanted // 100, 10**9)
        if free < wanted:
            raise BadInput(
                f"{self.folder}: the cache needs {wanted / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free; free some, give it a folder on "
                "another disk, or go without it"
            )
