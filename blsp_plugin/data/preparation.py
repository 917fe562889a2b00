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
from pathlib import Path, PurePath
from typing import NamedTuple

from speechbrain.utils.logger import get_logger
from speechbrain.utils.parallel import parallel_map
from tqdm import tqdm

from blsp_plugin.data.audio import find_stretch, probe_speech
from blsp_plugin.data.manifest import Rejected, check_rejected, write_rejected
from blsp_plugin.data.writers import open_manifest
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_json

__all__ = [
    "COLUMNS",
    "STRETCH",
    "Clip",
    "check_counts",
    "check_folder",
    "forget_prepared",
    "is_prepared",
    "make_order",
    "mark_prepared",
    "pick_one",
    "prepare_manifests",
]

logger = get_logger(__name__)

# The toolkit's columns, in its order, and those of a stretch of a recording.
COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
STRETCH = ("start", "stop")
STAMP = "prepared.json"
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


def pick_one(data_folder, corpus, option, there, name=None):
    """Which of the things that a folder has is meant.

    Arguments
    ---------
    data_folder : str or os.PathLike
        The folder, for the message.
    corpus : str
        Its corpus, likewise.
    option : str
        The preparer's option that names one of them.
    there : sequence of str
        What is there.
    name : str, optional
        What the option says. Default: the only one.

    Returns
    -------
    str

    Raises
    ------
    BadInput
        It is not there, or there are several and none is named.

    Example
    -------
    >>> pick_one("/data", "FLEURS", "language", ["fr_fr"])
    'fr_fr'
    """
    there = list(there)
    if name is None and len(there) == 1:
        return there[0]
    if name in there:
        return name
    raise BadInput(
        f"{data_folder}: {option} {name!r} asked, {corpus} is there in "
        f"{', '.join(there) or 'none'}; set {option} to one of them"
    )


def check_counts(order, counts, published):
    """Warn where an official split has another number of clips than published.

    Arguments
    ---------
    order : dict
        From `make_order`.
    counts : dict of int
        Clips by manifest.
    published : sequence of dict of int
        Clips by split, a dict for each release of the corpus. A manifest of
        splits that none of them knows is not checked.

    Example
    -------
    >>> order = make_order("my corpus", "/data", [], [], ["test"])
    >>> check_counts(order, {"test": 10}, [{"test": 9}, {"test": 10}])
    """
    for name, parts in order["splits"].items():
        known = [
            sum(release[part] for part in parts)
            for release in published
            if parts and all(part in release for part in parts)
        ]
        if known and counts[name] not in known:
            logger.warning(
                "%s, %s: %s has %d clips, published are %s; before comparing "
                "with published results see rejected.jsonl, and whether the "
                "corpus is whole and of that release",
                order["corpus"],
                order["data_folder"],
                " + ".join(parts),
                counts[name],
                " or ".join(str(number) for number in sorted(set(known))),
            )


def make_order(corpus, data_folder, train, valid, test, **options):
    """What decides the manifests of a corpus, as a preparer's stamp has it.

    Arguments
    ---------
    corpus : str
        Its name.
    data_folder : str or os.PathLike
        Where it is.
    train : sequence of str
        The corpus' splits that make ``train``; with none it is not written.
    valid : sequence of str
        Those of ``valid``.
    test : sequence of str
        Those of ``test``.
    **options
        What else decides them; JSON.

    Returns
    -------
    dict

    Example
    -------
    >>> make_order("LibriSpeech", "/data", ["train-clean-100"], [], [])
    {'corpus': 'LibriSpeech', 'data_folder': '/data', \
'splits': {'train': ['train-clean-100'], 'valid': [], 'test': []}}
    """
    splits = {"train": list(train), "valid": list(valid), "test": list(test)}
    return {
        "corpus": corpus,
        "data_folder": os.path.abspath(data_folder),
        "splits": splits,
        **options,
    }


def is_prepared(order, save_folder):
    """Whether just this was prepared there before, and the files still are.

    Arguments
    ---------
    order : dict
        From `make_order`.
    save_folder : str or os.PathLike
        Where they are.

    Returns
    -------
    bool

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> order = make_order("LibriSpeech", "/data", [], [], [])
    >>> is_prepared(order, folder)
    False
    >>> mark_prepared(order, folder, [])
    >>> is_prepared(order, folder)
    True
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


def forget_prepared(save_folder):
    """Take the stamp away, before the files that it speaks of are replaced.

    Arguments
    ---------
    save_folder : str or os.PathLike
        Where they are.
    """
    (Path(save_folder) / STAMP).unlink(missing_ok=True)


def mark_prepared(order, save_folder, files, **counts):
    """Leave the stamp that `is_prepared` looks for.

    Arguments
    ---------
    order : dict
        From `make_order`.
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
    published=(),
):
    """Write the manifests of a corpus' clips, whole or not at all.

    Headers are read in threads, with a progress bar. A row that cannot be
    used goes to ``rejected.jsonl`` with its reason. An empty transcript is
    such a reason unless the clip has an intent, and so is an empty
    translation; but not in the test set, of which nothing is dropped for its
    text.

    Arguments
    ---------
    order : dict
        From `make_order`.
    save_folder : str or os.PathLike
        Where they go.
    clips : iterable of (str, Clip or Rejected or None)
        Each with the name of its manifest, "train", "valid" or "test"; None
        for one that was left out on purpose, and is counted. Not asked if
        just this was prepared before.
    columns : sequence of str
        Of the manifests.
    suffix : str
        ".csv" or ".parquet".
    max_rejected : float
        The fraction of clips that may be bad.
    published : sequence of dict of int
        What `check_counts` compares with.

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
    >>> order = make_order("my corpus", folder, ["all"], [], [])
    >>> prepare_manifests(order, folder, [("train", clip)])
    >>> (folder / "train.csv").read_text().splitlines()[1]
    'a,0.5,$data_root/a.wav,s,Hello'
    """
    if is_prepared(order, save_folder):
        return
    save_folder = Path(save_folder)
    names = [name for name, parts in order["splits"].items() if parts]
    files = {name: name + suffix for name in names}
    listed = save_folder / "rejected.jsonl"
    counts, left_out = collections.Counter(), collections.Counter()
    with contextlib.ExitStack() as stack:
        writers = {}
        for name, file in files.items():
            manifest = open_manifest(save_folder / file, columns)
            writers[name] = stack.enter_context(manifest)

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
        forget_prepared(save_folder)
    for name, file in files.items():
        facts = (save_folder / file, counts[name], left_out[name])
        logger.info("%s: %d clips, %d left out", *facts)
    check_counts(order, counts, published)
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
            if name != "test":
                _check_text(clip.columns)
            row = {
                "ID": clip.id,
                "wav": _relative(clip.path, data_folder),
                **_extent(clip, probe),
            }
        except BadInput as error:
            return name, Rejected(clip.id, clip.file, clip.row, str(error))
        return name, {**row, **clip.columns}

    with ThreadPoolExecutor(8) as pool:  # they wait for the disk
        measured = parallel_map(
            measure, clips, chunk_size=64, executor=pool, progress_bar=False
        )
        yield from tqdm(measured, desc="clips", unit="clip")


def _check_text(columns):
    if not columns["wrd"] and not columns.get("intent"):
        raise BadInput("empty transcript; fill it in or drop the row")
    if columns.get("translation") == "":
        raise BadInput("empty translation; fill it in or drop the row")


def _relative(path, data_folder):
    # No path is shortened: ".." of a linked folder is its target's parent.
    if PurePath(path).is_relative_to(data_folder):
        return f"$data_root/{PurePath(path).relative_to(data_folder)}"
    return os.path.join(os.getcwd(), path)


def _extent(clip, probe):
    """How long a clip is, and for a stretch, from where to where."""
    if clip.duration is not None:
        if not clip.path.is_file():
            raise BadInput(f"{clip.path}: no such audio file; add it")
        return {"duration": clip.duration}
    info = probe(clip.path)
    if clip.stretch is None:
        return {"duration": info.duration}
    start, stop = find_stretch(clip.path, info, *clip.stretch)
    duration = (stop - start) / info.sample_rate
    return {"duration": duration, "start": start, "stop": stop}
