"""LibriSpeech (openslr.org/12) as the toolkit's CSV files.

Writes the columns of the toolkit's own ``librispeech_prepare.py``, which its
wheel does not ship.

Authors
 * The blsp_plugin team 2026
"""

from pathlib import Path

from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    Clip,
    check_folder,
    make_order,
    prepare_manifests,
)
from blsp_plugin.errors import BadInput

__all__ = ["find_splits", "prepare_librispeech"]

TRANSCRIPTS = "*/*/*.trans.txt"


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


def _read_splits(data_folder, splits):
    """Yield (manifest name, `Clip` or `Rejected`) of all splits."""
    there = find_splits(data_folder)
    for split in sum(splits.values(), []):
        if split not in there:
            raise BadInput(
                f"{data_folder}: no LibriSpeech split {split!r}, it has "
                f"{', '.join(there) or 'none'}; extract it or name another"
            )
    for name, parts in splits.items():
        for split in parts:
            for file in sorted((data_folder / split).glob(TRANSCRIPTS)):
                for item in _read_chapter(file):
                    yield name, item


def _read_chapter(file):
    heard = {clip.stem: clip for clip in file.parent.glob("*.flac")}
    for row, utterance, words in _read_transcripts(file):
        path = heard.pop(utterance, None)
        if path is None:
            reason = f"no {utterance}.flac there; extract the split again"
            yield Rejected(utterance, str(file), row, reason)
            continue
        # Speaker and chapter, as in the toolkit's own script.
        speaker = "-".join(utterance.split("-")[:2])
        columns = {"spk_id": speaker, "wrd": words}
        yield Clip(utterance, path, columns, str(file), row)
    for utterance, path in sorted(heard.items()):
        reason = f"no line in {file.name}; add its transcript"
        yield Rejected(utterance, str(path), 0, reason)


def prepare_librispeech(
    data_folder,
    save_folder,
    train_splits=("train-clean-100",),
    valid_splits=("dev-clean",),
    test_splits=("test-clean",),
    max_rejected=0.01,
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
    data_folder = check_folder(data_folder)
    order = make_order(
        "LibriSpeech",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(data_folder, order["splits"]),
        max_rejected=max_rejected,
    )
