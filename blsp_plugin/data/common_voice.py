"""Common Voice (commonvoice.mozilla.org) as the toolkit's CSV files.

Writes the columns of the toolkit's own ``common_voice_prepare.py``, but leaves
the sentences as they are: cased, punctuated, short ones too.

Authors
 * The blsp_plugin team 2026
"""

import os
from pathlib import Path

from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    Clip,
    check_folder,
    make_order,
    pick_one,
    prepare_manifests,
)
from blsp_plugin.data.tsv import read_tsv
from blsp_plugin.errors import BadInput

__all__ = ["find_locales", "pick_locale", "prepare_common_voice"]

NEEDED = ("client_id", "path", "sentence")
DURATIONS = "clip_durations.tsv"


def find_locales(data_folder):
    """Find the languages of a Common Voice release.

    Arguments
    ---------
    data_folder : str or os.PathLike
        The folder that holds ``<locale>/clips``, or a locale's own.

    Returns
    -------
    dict of pathlib.Path
        The folder of each locale; that of a locale's own folder is its name.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "fr" / "clips").mkdir(parents=True)
    >>> (root / "fr" / "test.tsv").touch()
    >>> list(find_locales(root)), list(find_locales(root / "fr"))
    (['fr'], ['fr'])
    """
    root = Path(os.path.abspath(data_folder))
    if _is_locale(root):
        return {root.name: root}
    return {f.name: f for f in sorted(root.iterdir()) if _is_locale(f)}


def _is_locale(folder):
    has_clips = (folder / "clips").is_dir()
    return has_clips and next(folder.glob("*.tsv"), None) is not None


def pick_locale(data_folder, language=None):
    """The folder of one language.

    Arguments
    ---------
    data_folder : str or os.PathLike
        As for `find_locales`.
    language : str, optional
        The locale. Default: the only one.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    BadInput
        It is not there, or there are several and none is named.
    """
    locales = find_locales(data_folder)
    return locales[
        pick_one(data_folder, "Common Voice", "language", locales, language)
    ]


def _read_durations(folder):
    """{clip's file name: seconds}, as far as the release has them."""
    path = folder / DURATIONS
    if not path.is_file():
        return {}
    durations = {}
    for row, record, reason in read_tsv(path, ["clip", "duration[ms]"]):
        try:
            milliseconds = float(record["duration[ms]"])
        except (KeyError, ValueError) as error:
            raise BadInput(
                f"{path}, row {row}: {reason or 'no number of milliseconds'}; "
                "mend it, or delete the file to read audio headers instead"
            ) from error
        durations[record["clip"]] = milliseconds / 1000
    return durations


def _read_splits(folder, splits):
    """Yield (manifest name, `Clip` or `Rejected`) of all splits."""
    for split in sum(splits.values(), []):
        if not (folder / f"{split}.tsv").is_file():
            there = sorted(file.stem for file in folder.glob("*.tsv"))
            raise BadInput(
                f"{folder}: no {split}.tsv, it has {', '.join(there)}; "
                "extract it or name another split"
            )
    durations = _read_durations(folder)
    for name, parts in splits.items():
        for split in parts:
            file = folder / f"{split}.tsv"
            for row, record, reason in read_tsv(file, NEEDED):
                yield name, _clip(folder, file, row, record, reason, durations)


def _clip(folder, file, row, record, reason, durations):
    clip = record.get("path", "")
    if not reason and not clip:
        reason = "empty path; restore the row"
    if reason:
        return Rejected(Path(clip).stem, str(file), row, reason)
    columns = {"spk_id": record["client_id"], "wrd": record["sentence"].strip()}
    return Clip(
        Path(clip).stem,
        folder / "clips" / clip,
        columns,
        str(file),
        row,
        duration=durations.get(clip),
    )


def prepare_common_voice(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("dev",),
    test_splits=("test",),
    language=None,
    max_rejected=0.01,
):
    r"""Write ``train.csv``, ``valid.csv`` and ``test.csv`` of one language.

    Columns ``ID, duration, wav, spk_id, wrd``: the clip's name, seconds,
    ``$data_root/...``, ``client_id``, and the sentence as found. Durations
    come from ``clip_durations.tsv`` if the release has it, else from the
    audio headers. Done once: a second call with the same order returns at
    once. Rows that cannot be used are listed in ``rejected.jsonl``.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``<locale>/clips/*.mp3`` and ``<locale>/*.tsv``, or is that
        locale's folder.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Names of the tables of ``train.csv``: train, validated, other, ...
        With none the file is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    language : str, optional
        The locale. Default: the only one that is there.
    max_rejected : float
        The fraction of clips that may be bad.

    Raises
    ------
    BadInput
        The locale or a table is missing, or too many clips are bad.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path") / "fr"
    >>> (folder / "clips").mkdir(parents=True)
    >>> soundfile.write(folder / "clips" / "a.mp3", [0.0] * 16000, 16000)
    >>> header = "client_id\tpath\tsentence\n"
    >>> table = folder / "test.tsv"
    >>> _ = table.write_text(header + "s\ta.mp3\tOh, là là !\n")
    >>> prepare_common_voice(folder, folder / "csv", [], [])
    >>> (folder / "csv/test.csv").read_text().splitlines()[1]
    'a,1.0,$data_root/clips/a.mp3,s,"Oh, là là !"'
    """
    folder = pick_locale(check_folder(data_folder), language)
    order = make_order(
        "Common Voice",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        language=folder.name,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(folder, order["splits"]),
        max_rejected=max_rejected,
    )
