"""The files of `ArrayCache`: their format, and the only hand that writes them.

``<rank>-<random>.data`` has entries, one behind the other: crc32 of all that
follows (4 bytes), length of the header (4), key (16), a JSON header
{name: [dtype, shape]}, the bytes of each tensor. Header and tensors are padded
to 8 bytes.

``<rank>-<random>.index`` has a record an entry: key (16 bytes), offset and
length in the data (8 each), crc32 of these 32 bytes (4).

All numbers are little-endian.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import errno
import json
import math
import os
import secrets
import struct
import zlib

import numpy
import torch

from blsp_plugin.data.keys import KEY_BYTES, checked_key
from blsp_plugin.errors import BadInput
from blsp_plugin.files import disk_errors, sync_folder

__all__ = [
    "CacheWriter",
    "DataFile",
    "FORMAT",
    "RECORD",
    "file_size",
    "folder_errors",
    "pack_entry",
    "record_checks",
    "unpack_entry",
]

FORMAT = 1  # part of the fingerprint: another format lies in another folder
RECORD = numpy.dtype(  # in the index file
    [("key", "S16"), ("offset", "<u8"), ("length", "<u8"), ("check", "<u4")]
)

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.bool),
    )
}
_HEAD = struct.Struct(f"<II{KEY_BYTES}s")  # crc32, length of the header, key
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
_BATCH = 1 << 26  # bytes of entries that are put on the disk together
_FILE = 1 << 32  # bytes after which a writer starts a new pair of files


def pack_entry(key, tensors):
    """An entry as it stands in the data file.

    Arguments
    ---------
    key : bytes
        16 bytes.
    tensors : dict
        Name -> tensor of any shape, on any device.

    Returns
    -------
    bytearray
        A multiple of 8 bytes.

    Raises
    ------
    ValueError
        If a dtype cannot be kept.

    Example
    -------
    >>> entry = pack_entry(bytes(16), {"ids": torch.tensor([[1, 2]])})
    >>> len(entry), unpack_entry(bytes(16), entry)
    (72, {'ids': tensor([[1, 2]])})
    """
    header, parts = {}, []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise ValueError(f"{name}: a tensor of {dtype} cannot be kept")
        header[name] = [dtype, list(tensor.shape)]
        flat = tensor.detach().cpu().reshape(-1).contiguous()
        values = flat.view(torch.uint8).numpy()
        parts += [values.data, bytes(-len(values) % 8)]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = _HEAD.pack(0, len(text), key)
    entry = bytearray().join([head, text, *parts])
    struct.pack_into("<I", entry, 0, zlib.crc32(memoryview(entry)[4:]))
    return entry


def unpack_entry(key, entry):
    """The tensors of an entry, bit by bit as they were packed.

    Arguments
    ---------
    key : bytes
        Of the entry.
    entry : bytearray
        Its bytes; the tensors share their memory.

    Returns
    -------
    dict
        Name -> tensor.

    Raises
    ------
    ValueError
        If these are not the bytes that were packed.
    """
    crc, length, found = _HEAD.unpack_from(entry)
    if found != key or crc != zlib.crc32(memoryview(entry)[4:]):
        raise ValueError("not what was written")
    place = _HEAD.size + length
    tensors = {}
    for name, (dtype, shape) in json.loads(entry[_HEAD.size : place]).items():
        dtype, count = _DTYPES[dtype], math.prod(shape)
        if count:
            flat = torch.frombuffer(
                entry, dtype=dtype, count=count, offset=place
            )
        else:
            flat = torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
        size = count * dtype.itemsize
        place += size + -size % 8
    return tensors


def record_checks(raw):
    """The check of each record.

    Arguments
    ---------
    raw : bytes
        Whole records.

    Returns
    -------
    numpy.ndarray
        Shape (records,), uint32: crc32 of all but the check itself.
    """
    size, view = RECORD.itemsize, memoryview(raw)
    starts = range(0, len(raw), size)
    crcs = (zlib.crc32(view[i : i + size - 4]) for i in starts)
    return numpy.fromiter(crcs, numpy.uint32, len(starts))


class CacheWriter:
    """Appends entries to files that nobody else writes.

    Made by `ArrayCache.writer`. Entries are put on the disk in batches of 64
    MB; leaving ``with`` does so for the rest, and shows them to the cache. A
    process that is killed loses what it has put since the last batch.

    Arguments
    ---------
    cache : ArrayCache
        Where they belong.
    rank : int
        For the names of the files.
    """

    def __init__(self, cache, rank):
        self._cache = cache
        self._rank = rank
        self._files = None  # descriptors of data and index
        self._path = None  # of the data
        self._pending = []  # (key, offset, length) without a record yet
        self._process = os.getpid()

    def put(self, key, tensors):
        """Add an entry.

        Arguments
        ---------
        key : bytes
            16 bytes.
        tensors : dict
            Name -> tensor of any shape, on any device.

        Raises
        ------
        OSError
            ENOSPC, naming the file, if the disk is full. The entries before
            this one are not touched.
        BadInput
            If the folder cannot be written.
        ValueError
            If a dtype cannot be kept.
        """
        entry = pack_entry(checked_key(key), tensors)
        if os.getpid() != self._process:
            raise RuntimeError("a forked process needs a writer of its own")
        if self._files is None:
            with folder_errors():
                self._start()
        data = self._files[0]
        try:
            with disk_errors(self._path):
                _write(data, entry, self._end)
        except OSError:
            with contextlib.suppress(OSError):  # leave room for the others
                os.ftruncate(data, self._end)
            raise
        self._pending.append((key, self._end, len(entry)))
        self._end += len(entry)
        if self._end - self._pending[0][1] >= _BATCH:
            self.flush()

    def flush(self):
        """Put all entries on the disk; afterwards no crash can lose them.

        Raises
        ------
        OSError
            ENOSPC, naming the file, if the disk is full; the entries since
            the last flush are then to be computed again.
        """
        if not self._pending:
            return
        records = numpy.zeros(len(self._pending), RECORD)
        for i, field in enumerate(("key", "offset", "length")):
            records[field] = [entry[i] for entry in self._pending]
        records["check"] = record_checks(records.tobytes())
        data, index = self._files
        try:
            with disk_errors(self._path):
                os.fsync(data)
                _write(index, records.tobytes(), self._index_end)
                os.fsync(index)
        except OSError:
            # The system may have dropped the bytes that it could not write, and
            # says so once only: no later record may speak of them.
            self._stop()
            raise
        self._index_end += records.nbytes
        self._pending = []
        if self._end >= _FILE:  # so that a damaged file costs little
            self._stop()

    def close(self):
        """Flush and give the files up; the cache sees the entries."""
        try:
            self.flush()
        finally:
            self._stop()
        self._cache.refresh()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
            return
        with contextlib.suppress(OSError):  # the first error is the one to show
            self.close()

    def _start(self):
        # Machines that share the folder may have processes of the same number.
        stem = f"{self._rank:05d}-{secrets.token_hex(8)}"
        stem = os.path.join(self._cache.folder, stem)
        self._path = f"{stem}.data"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with contextlib.ExitStack() as opened, disk_errors(self._path):
            files = []
            for path in (self._path, f"{stem}.index"):
                files.append(os.open(path, flags, 0o644))
                opened.callback(os.close, files[-1])
            sync_folder(self._path)
            sync_folder(self._cache.folder)
            opened.pop_all()
        self._files = files
        self._end = self._index_end = 0

    def _stop(self):
        for file in self._files or ():
            os.close(file)
        self._files, self._pending = None, []


class DataFile:
    """A file to read from, closed when nobody uses it any more.

    Arguments
    ---------
    path : str
        The file.
    """

    def __init__(self, path):
        self._file = None
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close=os.close):  # at the very end there is no os
        if self._file is not None:
            close(self._file)

    def read(self, offset, length):
        """Read some bytes; threads and forked processes may do so at once.

        Arguments
        ---------
        offset : int
            The first byte.
        length : int
            Number of bytes.

        Returns
        -------
        bytearray

        Raises
        ------
        ValueError
            If the file ends before.
        """
        entry = bytearray(length)
        left = memoryview(entry)
        while left:
            count = os.preadv(self._file, [left], offset)
            if not count:
                raise ValueError("cut short")
            left, offset = left[count:], offset + count
        return entry


def file_size(path):
    """Bytes of a file, 0 if there is none; opened, as a network disk wants."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        return os.fstat(stream.fileno()).st_size
    return 0


@contextlib.contextmanager
def folder_errors():
    """Turn the error of a folder that cannot be used into one line.

    Raises
    ------
    BadInput
        Naming the folder or the file. A full disk stays an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        raise BadInput(
            f"{error.filename}: {error.strerror}; give the cache a folder "
            "that can be written"
        ) from error


def _write(file, data, offset):
    """Write all bytes there; an error leaves some of them behind the end."""
    left = memoryview(data)
    while left:
        count = os.pwrite(file, left, offset)
        left, offset = left[count:], offset + count
