"""What every preparer does: measure the clips, write manifests, once.

A preparer reads a corpus' own files and says which clip has which words; the
rest is here, a stream from end to end, so that memory does not grow with the
corpus.

Authors
 * The blsp_plugin team 2026
"""

import collections
import contextlib
import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger
from speechbrain.utils.parallel import parallel_map

from blsp_plugin.data.audio import probe_speech
from blsp_plugin.data.manifest import Rejected, check_rejected, write_rejected
from blsp_plugin.data.writers import open_manifest
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_json

__all__ = [
    "COLUMNS",
    "STRETCH",
    "Clip",
    "check_folder",
    "is_prepared",
    "mark_prepared",
    "prepare_manifests",
]

logger = get_logger(__name__)

# The toolkit's columns, in its order, and those of a stretch of a recording.
COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
STRETCH = ("start", "stop")
STAMP = "prepared.json"
END_SLACK = 0.1  # seconds that a stretch may end behind its recording
SUFFIXES = (".csv", ".parquet")


class Clip(NamedTuple):
    """A clip as a corpus' own files describe it, not looked at yet.

    Arguments
    ---------
    id : str
        Its ID.
    path : pathlib.Path
        Its audio file, in the data folder.
    columns : dict of str
        ``spk_id``, ``wrd`` and what else is to be written.
    file : str
        The file that describes it.
    row : int
        The row there.
    duration : float, optional
        Seconds, where the corpus says so. Default: the audio header's.
    stretch : (float, float), optional
        Where it begins and ends in a longer recording, seconds.
    """

    id: str
    path: Path
    columns: dict
    file: str
    row: int
    duration: float = None
    stretch: tuple = None


def check_folder(data_folder):
    """Return the folder as a Path, or raise BadInput if there is none."""
    if not os.path.isdir(data_folder):
        raise BadInput(f"{data_folder}: no such folder; correct data_folder")
    return Path(data_folder)


def is_prepared(order, save_folder):
    """Whether just this was prepared there before, and the files still are.

    Arguments
    ---------
    order : dict
        What decides the manifests; JSON. Its ``corpus`` is for messages.
    save_folder : str or os.PathLike
        Where they are.

    Returns
    -------
    bool

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> order = {"corpus": "LibriSpeech"}
    >>> mark_prepared(order, folder, [])
    >>> is_prepared(order, folder), is_prepared({"corpus": "x"}, folder)
    (True, False)
    """
    folder = Path(save_folder)
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        there = all((folder / name).is_file() for name in stamp["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not there or stamp["order"] != order:
        return False
    logger.info("%s is prepared already in %s", order["corpus"], folder)
    return True


def mark_prepared(order, save_folder, files, **counts):
    """Leave the stamp that `is_prepared` looks for.

    Arguments
    ---------
    order : dict
        What decided the manifests.
    save_folder : str or os.PathLike
        Where they are.
    files : sequence of str
        Their names.
    **counts : dict or int
        For people to read.
    """
    for name in files:
        stem, suffix = os.path.splitext(name)
        for other in set(SUFFIXES) - {suffix}:
            # Left by another order: nobody is to take it for this one's.
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(save_folder, stem + other))
    stamp = {"order": order, "files": list(files), **counts}
    write_json(stamp, os.path.join(save_folder, STAMP))


def prepare_manifests(
    order,
    save_folder,
    clips,
    columns=COLUMNS,
    suffix=".csv",
    max_rejected=0.01,
):
    """Write the manifests of a corpus' clips, whole or not at all.

    Headers are read in threads, with a progress bar. A row that cannot be
    used goes to ``rejected.jsonl`` with its reason. An empty transcript is
    such a reason, but not in the test set, of which nothing is dropped for
    its text.

    Arguments
    ---------
    order : dict
        What decides the manifests: ``corpus``, ``data_folder``, ``splits``
        (by manifest name, "train", "valid" or "test"; the empty ones are not
        written), options. JSON.
    save_folder : str or os.PathLike
        Where they go.
    clips : iterable of (str, Clip or Rejected or None)
        Each with the name of its manifest; None for one that was left out on
        purpose, and is counted.
    columns : sequence of str
        Of the manifests.
    suffix : str
        ".csv" or ".parquet".
    max_rejected : float
        The fraction of clips that may be bad.

    Raises
    ------
    BadInput
        Too many clips are bad; ``rejected.jsonl`` is written even so.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", [0.0] * 8000, 16000)
    >>> words = {"spk_id": "s", "wrd": "Hello"}
    >>> clip = Clip("a", folder / "a.wav", words, "list.txt", 1)
    >>> order = {"corpus": "my corpus", "data_folder": str(folder)}
    >>> order["splits"] = {"train": ["all"]}
    >>> prepare_manifests(order, folder, [("train", clip)])
    >>> (folder / "train.csv").read_text().splitlines()[1]
    'a,0.5,$data_root/a.wav,s,Hello'
    """
    save_folder = Path(save_folder)
    names = [name for name, parts in order["splits"].items() if parts]
    files = {name: name + suffix for name in names}
    listed = save_folder / "rejected.jsonl"
    counts, left_out = collections.Counter(), collections.Counter()
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                open_manifest(save_folder / file, columns)
            )
            for name, file in files.items()
        }

        def write_rows():
            """Write the good rows, yield the bad ones."""
            for name, row in _measured(clips, order["data_folder"]):
                if isinstance(row, Rejected):
                    counts["rejected"] += 1
                    yield row
                elif row is None:
                    left_out[name] += 1
                else:
                    counts[name] += 1
                    writers[name](row)

        write_rejected(write_rows(), listed)
        # Within the stack: the manifests appear only if this is passed.
        check_rejected(
            counts["rejected"],
            counts.total(),
            max_rejected,
            what=f"{order['corpus']} clips",
            path=listed,
        )
    for name, file in files.items():
        facts = (save_folder / file, counts[name], left_out[name])
        logger.info("%s: %d clips, %d left out", *facts)
    # Last, so that a half-made set of files does not count as done.
    mark_prepared(
        order, save_folder, files.values(), clips=counts, left_out=left_out
    )


def _measured(clips, data_folder):
    """Yield (name, row or Rejected or None), in order."""

    # Stretches of one recording follow each other: one look at its header.
    @functools.lru_cache(maxsize=64)
    def probe(path):
        return probe_speech(path)

    def measure(item):
        name, clip = item
        if not isinstance(clip, Clip):
            return item
        try:
            if not clip.columns["wrd"] and name != "test":
                raise BadInput("empty transcript; fill it in or drop the row")
            row = {
                "ID": clip.id,
                "wav": _relative(clip.path, data_folder),
                **_extent(clip, probe),
            }
        except BadInput as error:
            return name, Rejected(clip.id, clip.file, clip.row, str(error))
        return name, {**row, **clip.columns}

    with ThreadPoolExecutor(8) as pool:  # they wait for the disk
        yield from parallel_map(
            measure,
            clips,
            chunk_size=64,
            executor=pool,
            progress_bar_kwargs={"desc": "clips", "unit": "clip"},
        )


def _relative(path, data_folder):
    return f"$data_root/{os.path.relpath(path, data_folder)}"


def _extent(clip, probe):
    """How long a clip is, and for a stretch, from where to where."""
    if clip.duration is not None:
        if not clip.path.is_file():
            raise BadInput(f"{clip.path}: no such audio file; add it")
        return {"duration": clip.duration}
    info = probe(clip.path)
    if clip.stretch is None:
        return {"duration": info.duration}
    begin, end = clip.stretch
    if end <= info.duration + END_SLACK:
        end = min(end, info.duration)
    begin, end = (round(time * info.sample_rate) for time in (begin, end))
    if not 0 <= begin < end <= round(info.duration * info.sample_rate):
        raise BadInput(
            f"{clip.path}: {clip.stretch[0]} s to {clip.stretch[1]} s is not "
            f"in its {info.duration:.2f} s; correct them or drop the row"
        )
    duration = (end - begin) / info.sample_rate
    return {"duration": duration, "start": begin, "stop": end}
