"""Clips to begin with.

Authors
 * The blsp_plugin team 2026
"""

import os
from typing import NamedTuple

from blsp_plugin import starter
from blsp_plugin.errors import BadInput

__all__ = ["Example", "find_examples", "starter_examples"]

_MOST = 8
_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
# Of the starter corpus' test split, so that no adapter was trained on them.
_STARTER = (
    (
        "agent-pass",
        "Please repeat the following words.",
        "Password: repeat the words",
    ),
    (
        "pbx-invalidpark",
        "Please translate the following text into French.",
        "Parked call: in French",
    ),
    (
        "vm-rec-temp",
        "What should be done after the tone?",
        "Voicemail: what to do after the tone",
    ),
    ("demo-nogo", "Summarize this in a few words.", "Failure: in a few words"),
)


class Example(NamedTuple):
    """A clip with an instruction.

    Arguments
    ---------
    path : str
        The clip.
    instruction : str
        What to do with it.
    label : str
        How it is called on the page.
    """

    path: str
    instruction: str
    label: str


def starter_examples():
    """Clips of the starter corpus, where it is on this machine already.

    Returns
    -------
    list of Example
    """
    part = starter.PARTS["corpus-en"]
    if not starter.is_ready(part):
        return []
    folder = os.path.join(starter.root(), part.name, "flac")
    found = [
        Example(os.path.join(folder, f"en__{name}.flac"), instruction, label)
        for name, instruction, label in _STARTER
    ]
    return [example for example in found if os.path.isfile(example.path)]


def find_examples(folder, instruction):
    """Clips of a folder, the first eight by name.

    Arguments
    ---------
    folder : str
        Holds clips; ``<name>.txt`` beside a clip is its instruction.
    instruction : str
        Where a clip has none of its own.

    Returns
    -------
    list of Example

    Raises
    ------
    BadInput
        If there is no such folder, or no clip in it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("a.wav", "b.flac", "readme.md"):
    ...     _ = (folder / name).write_bytes(b"")
    >>> _ = (folder / "b.txt").write_text("Which city?")
    >>> [example.label for example in find_examples(folder, "Repeat.")]
    ['a: Repeat.', 'b: Which city?']
    """
    if not os.path.isdir(folder):
        raise BadInput(f"{folder}: no such folder; give one with clips in it")
    names = sorted(os.listdir(folder))
    clips = [name for name in names if name.lower().endswith(_SUFFIXES)]
    if not clips:
        raise BadInput(
            f"{folder}: has no clips ({', '.join(_SUFFIXES)}); add some, or "
            "leave the examples out"
        )
    found = []
    for name in clips[:_MOST]:
        path = os.path.join(os.path.abspath(folder), name)
        stem = os.path.splitext(path)[0]
        told, words = stem + ".txt", instruction
        if os.path.isfile(told):
            with open(told, encoding="utf-8", errors="replace") as stream:
                words = stream.read().strip() or instruction
        label = f"{os.path.basename(stem)}: {words}"
        found.append(Example(path, words, label))
    return found
