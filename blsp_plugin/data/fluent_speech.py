"""Fluent Speech Commands (arXiv 1904.03670) as the toolkit's CSV files.

Authors
 * The blsp_plugin team 2026
"""

import os
from pathlib import Path

from blsp_plugin.data.manifest import Rejected, read_csv
from blsp_plugin.data.preparation import (
    COLUMNS,
    Clip,
    check_folder,
    make_order,
    prepare_manifests,
)
from blsp_plugin.errors import BadInput

__all__ = ["PUBLISHED", "TABLE", "prepare_fluent_speech"]

TABLE = os.path.join("data", "{}_data.csv")
SLOTS = ("action", "object", "location")
# arXiv 1904.03670, table 1.
PUBLISHED = [{"train": 23132, "valid": 3118, "test": 3793}]


def _read_splits(data_folder, splits):
    """Yield (manifest name, `Clip` or `Rejected`) of all splits."""
    files = {s: data_folder / TABLE.format(s) for s in sum(splits.values(), [])}
    for split, file in files.items():
        if not file.is_file():
            raise BadInput(
                f"{file}: no such file; extract Fluent Speech Commands again, "
                f"or name another split than {split}"
            )
    needed = ("path", "speakerId", "transcription", *SLOTS)
    for name, parts in splits.items():
        for split in parts:
            file = files[split]
            for row, record, reason in read_csv(file, needed):
                if not reason and not record["path"]:
                    reason = "empty path; restore the row"
                if reason:
                    yield name, Rejected("", str(file), row, reason)
                    continue
                columns = {
                    "spk_id": record["speakerId"],
                    "wrd": record["transcription"].strip(),
                    "intent": " ".join(record[slot] for slot in SLOTS),
                }
                path = data_folder / record["path"]
                yield name, Clip(path.stem, path, columns, str(file), row)


def prepare_fluent_speech(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("valid",),
    test_splits=("test",),
    max_rejected=0.01,
):
    r"""Write ``train.csv``, ``valid.csv`` and ``test.csv`` of the corpus.

    Columns ``ID, duration, wav, spk_id, wrd, intent``: the clip's name,
    seconds, ``$data_root/...``, the sentence as found, and its action, object
    and location with a space between. Done once: a second call with the same
    order returns at once. Rows that cannot be used are listed in
    ``rejected.jsonl``; a warning says where a split has another number of
    clips than published.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``data/{train,valid,test}_data.csv`` and ``wavs/speakers/``.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Of train, valid and test, those of ``train.csv``. With none the file
        is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    max_rejected : float
        The fraction of clips that may be bad.

    Raises
    ------
    BadInput
        A table is missing or another one, or too many clips are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> (root / "data").mkdir()
    >>> soundfile.write(root / "a.wav", [0.0] * 16000, 16000)
    >>> table = ",path,speakerId,transcription,action,object,location\n"
    >>> table += '0,a.wav,s,"Lights on, please",activate,lights,none\n'
    >>> _ = (root / "data/test_data.csv").write_text(table)
    >>> prepare_fluent_speech(root, root / "csv", [], [])
    >>> (root / "csv/test.csv").read_text().splitlines()[1]
    'a,1.0,$data_root/a.wav,s,"Lights on, please",activate lights none'
    """
    data_folder = check_folder(data_folder)
    order = make_order(
        "Fluent Speech Commands",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(Path(data_folder), order["splits"]),
        columns=(*COLUMNS, "intent"),
        max_rejected=max_rejected,
        published=PUBLISHED,
    )
