"""LibriSpeech (openslr.org/12) as the toolkit's CSV files.

Writes the columns of the toolkit's own ``librispeech_prepare.py``, which its
wheel does not ship.

Authors
 * The blsp_plugin team 2026
"""

import json
import os
from pathlib import Path

from speechbrain.utils.logger import get_logger

from blsp_plugin.data.audio import probe_many
from blsp_plugin.data.manifest import (
    Rejected,
    check_rejected,
    write_csv,
    write_rejected,
)
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_json

__all__ = ["COLUMNS", "find_splits", "prepare_librispeech"]

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
TRANSCRIPTS = "*/*/*.trans.txt"
STAMP = "librispeech_prepare.json"


def find_splits(data_folder):
    """Find the splits of a LibriSpeech tree.

    Arguments
    ---------
    data_folder : str or os.PathLike
        The folder that should hold ``train-clean-100`` and so on.

    Returns
    -------
    list of str
        Its folders that hold ``<speaker>/<chapter>/*.trans.txt``, sorted.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "dev-clean/84/121123").mkdir(parents=True)
    >>> (root / "dev-clean/84/121123/84-121123.trans.txt").touch()
    >>> find_splits(root)
    ['dev-clean']
    """
    folders = sorted(Path(data_folder).iterdir())
    return [f.name for f in folders if next(f.glob(TRANSCRIPTS), None)]


def _read_transcripts(file):
    """Yield (row, utterance id, words) of one chapter's transcripts."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{file}: not UTF-8; convert it, for example with iconv -t utf-8"
        ) from error
    for row, line in enumerate(lines, 1):
        utterance, _, words = line.strip().partition(" ")
        if utterance:
            yield row, utterance, words.strip()


def _read_split(data_folder, split):
    """Return the CSV rows of one split and its `Rejected`."""
    found, rejected = [], []
    for file in sorted((data_folder / split).glob(TRANSCRIPTS)):
        heard = {clip.stem: clip for clip in file.parent.glob("*.flac")}
        for row, utterance, words in _read_transcripts(file):
            clip = heard.pop(utterance, None)
            if clip is None:
                reason = f"no {utterance}.flac there; extract the split again"
            elif not words:
                reason = "empty transcript; fill it in or drop the line"
            else:
                found.append((file, row, clip, words))
                continue
            rejected.append(Rejected(utterance, str(file), row, reason))
        for utterance, clip in sorted(heard.items()):
            reason = f"no line in {file.name}; add its transcript"
            rejected.append(Rejected(utterance, str(clip), 0, reason))
    rows = []
    infos = probe_many([str(clip) for _, _, clip, _ in found])
    for (file, row, clip, words), info in zip(found, infos, strict=True):
        if isinstance(info, BadInput):
            rejected.append(Rejected(clip.stem, str(file), row, str(info)))
            continue
        rows.append(
            {
                "ID": clip.stem,
                "duration": info.duration,
                "wav": f"$data_root/{clip.relative_to(data_folder).as_posix()}",
                # Speaker and chapter, as in the toolkit's own script.
                "spk_id": "-".join(clip.stem.split("-")[:2]),
                "wrd": words,
            }
        )
    return rows, rejected


def _is_done(save_folder, order):
    try:
        stamp = json.loads((save_folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = [name for name, splits in order["splits"].items() if splits]
    there = all((save_folder / f"{name}.csv").is_file() for name in names)
    return there and stamp == order


def prepare_librispeech(
    data_folder,
    save_folder,
    train_splits=("train-clean-100",),
    valid_splits=("dev-clean",),
    test_splits=("test-clean",),
    max_rejected=0.01,
    skip_prep=False,
):
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of LibriSpeech.

    Columns ``ID, duration, wav, spk_id, wrd``: seconds, ``$data_root/...``,
    speaker-chapter, and the words as found, upper-case. Splits are merged in
    the order given. Done once: a second call with the same order returns at
    once. Rows that cannot be used are listed in ``rejected.jsonl``.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``<split>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt``
        and the FLAC files beside them.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        The splits of ``train.csv``; with none the file is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    max_rejected : float
        The fraction of clips that may be bad.
    skip_prep : bool
        If True, nothing is done.

    Raises
    ------
    BadInput
        A split is missing, or too many clips are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> chapter = root / "dev-clean/84/121123"
    >>> chapter.mkdir(parents=True)
    >>> soundfile.write(chapter / "84-121123-0000.flac", [0.0] * 8000, 16000)
    >>> text = "84-121123-0000 GO DO YOU HEAR"
    >>> _ = (chapter / "84-121123.trans.txt").write_text(text)
    >>> prepare_librispeech(root, root / "csv", [], ["dev-clean"], [])
    >>> (root / "csv/valid.csv").read_text().splitlines()[1].split(",")[2:]
    ['$data_root/dev-clean/84/121123/84-121123-0000.flac', '84-121123', \
'GO DO YOU HEAR']
    """
    if skip_prep:
        return
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    if not data_folder.is_dir():
        raise BadInput(f"{data_folder}: no such folder; correct data_folder")
    splits = {
        "train": list(train_splits),
        "valid": list(valid_splits),
        "test": list(test_splits),
    }
    order = {"data_folder": os.path.abspath(data_folder), "splits": splits}
    if _is_done(save_folder, order):
        logger.info("LibriSpeech is prepared already in %s", save_folder)
        return
    there = find_splits(data_folder)
    for split in sum(splits.values(), []):
        if split not in there:
            raise BadInput(
                f"{data_folder}: no LibriSpeech split {split!r}, it has "
                f"{', '.join(there) or 'none'}; extract it or name another"
            )
    files, rejected = {}, []
    for name, parts in splits.items():
        for split in parts:
            rows, bad = _read_split(data_folder, split)
            files.setdefault(name, []).extend(rows)
            rejected.extend(bad)
    n_all = len(rejected) + sum(map(len, files.values()))
    write_rejected(rejected, save_folder / "rejected.jsonl")
    check_rejected(
        len(rejected),
        n_all,
        max_rejected,
        what="LibriSpeech clips",
        path=save_folder / "rejected.jsonl",
    )
    for name, rows in files.items():
        write_csv(rows, save_folder / f"{name}.csv", COLUMNS)
        logger.info("%s.csv: %d clips", save_folder / name, len(rows))
    # Last, so that a half-made set of files does not count as done.
    write_json(order, save_folder / STAMP)
