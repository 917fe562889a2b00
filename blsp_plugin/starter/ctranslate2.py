"""Reader of CTranslate2 ``model.bin`` files, binary version 6.

Little endian throughout: u32 binary version, string specification, u32
revision, u32 number of variables; per variable: string name, u8 rank, u32
sizes, u8 type, u32 bytes, data; then u32 number of aliases, each a pair of
strings (alias, variable). A string is a u16 length, which counts its closing
NUL, and the bytes.

Authors
 * The blsp_plugin team 2026
"""

import struct
from collections import namedtuple

import numpy as np

from blsp_plugin.errors import BadInput

_TYPES = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}

Model = namedtuple("Model", ["specification", "revision", "variables"])
Model.__doc__ = """A model file's content.

Arguments
---------
specification : str
    The model's kind, such as "WhisperSpec".
revision : int
    Of the specification.
variables : dict
    Name to numpy array; aliases share the array they point to.
"""


def read(path):
    """Read a model file.

    Arguments
    ---------
    path : str
        The ``model.bin``.

    Returns
    -------
    Model
        Its specification and variables. The arrays are read-only views of
        the mapped file; copy them to keep them.

    Raises
    ------
    BadInput
        One line, when the file is cut short, has bytes left over, or is not
        of this format and version.
    """
    cursor = _Cursor(path)
    version = cursor.number("I", "the binary version")
    if version != 6:
        raise BadInput(
            f"{path}: CTranslate2 binary version {version} is not known here "
            "(6 is); is it a model.bin?"
        )
    specification = cursor.string("the specification")
    revision = cursor.number("I", "the revision")
    variables = {}
    for index in range(cursor.number("I", "the number of variables")):
        name = cursor.string(f"the name of variable {index}")
        variables[name] = cursor.array(name)
    for index in range(cursor.number("I", "the number of aliases")):
        alias = cursor.string(f"alias {index}")
        target = cursor.string(f"the variable of alias {index}")
        if target not in variables:
            raise BadInput(
                f"{path}: alias {alias} points to {target}, which is not "
                "there; fetch the file again"
            )
        variables[alias] = variables[target]
    cursor.end()
    return Model(specification, revision, variables)


class _Cursor:
    """A place in a mapped file, which never reads past its end."""

    def __init__(self, path):
        self.path = path
        try:
            self.data = np.memmap(path, dtype=np.uint8, mode="r")
        except ValueError:  # an empty file can't be mapped
            self.data = np.empty(0, dtype=np.uint8)
        self.place = 0

    def take(self, size, what):
        left = len(self.data) - self.place
        if size > left:
            raise BadInput(
                f"{self.path}: cut short: {what} needs {size} bytes at byte "
                f"{self.place}, {left} are left; fetch the file again"
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code, what):
        raw = self.take(struct.calcsize("<" + code), what)
        return struct.unpack("<" + code, raw.tobytes())[0]

    def string(self, what):
        raw = self.take(self.number("H", what), what).tobytes()
        if not raw.endswith(b"\0"):
            raise BadInput(
                f"{self.path}: {what} does not end with NUL at byte "
                f"{self.place}; the file is damaged, fetch it again"
            )
        return raw[:-1].decode("utf-8", errors="replace")

    def array(self, name):
        what = f"variable {name}"
        shape = tuple(
            self.number("I", what) for _ in range(self.number("B", what))
        )
        code = self.number("B", what)
        size = self.number("I", what)
        if code not in _TYPES:
            raise BadInput(
                f"{self.path}: {what} has unknown type {code}; the file is "
                "damaged or newer than this reader"
            )
        dtype = _TYPES[code]
        wanted = dtype.itemsize
        for length in shape:
            wanted *= length
        if size != wanted:
            raise BadInput(
                f"{self.path}: {what} of shape {shape} holds {size} bytes, "
                f"not {wanted}; the file is damaged, fetch it again"
            )
        # Variables start at any byte; numpy copes, at a copy's price.
        return self.take(size, what).view(dtype).reshape(shape)

    def end(self):
        left = len(self.data) - self.place
        if left:
            raise BadInput(
                f"{self.path}: {left} bytes are left after the last alias; "
                "the file is damaged, fetch it again"
            )
