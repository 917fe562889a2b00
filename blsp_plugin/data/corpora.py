"""The one entry by which recipes get their CSV files.

Authors
 * The blsp_plugin team 2026
"""

import os
from typing import NamedTuple

from blsp_plugin.data.librispeech import find_splits, prepare_librispeech
from blsp_plugin.errors import BadInput

__all__ = ["CorpusFiles", "prepare_corpus"]


class CorpusFiles(NamedTuple):
    """Where a corpus' manifests are; `read_manifest` says if one is missing.

    Arguments
    ---------
    train_csv : str
        Manifest of the training clips.
    valid_csv : str
        Manifest of the validation clips.
    test_csv : str
        Manifest of the test clips.
    data_root : str
        What ``$data_root`` in them stands for.
    """

    train_csv: str
    valid_csv: str
    test_csv: str
    data_root: str


def _csv_files(csv_folder, data_root):
    names = ("train.csv", "valid.csv", "test.csv")
    paths = [os.path.join(csv_folder, name) for name in names]
    return CorpusFiles(*paths, os.fspath(data_root))


def prepare_corpus(
    data_folder=None,
    save_folder=None,
    train_splits=("train-clean-100",),
    valid_splits=("dev-clean",),
    test_splits=("test-clean",),
    skip_prep=False,
):
    """Find or make the train, valid and test CSV of a corpus.

    Arguments
    ---------
    data_folder : str or os.PathLike, optional
        None or "starter": the starter corpus. A folder that holds any of
        ``train.csv``, ``valid.csv``, ``test.csv``: those, as they are. A
        LibriSpeech tree: see `prepare_librispeech`.
    save_folder : str or os.PathLike, optional
        Where CSV files go that have to be made.
    train_splits : sequence of str
        LibriSpeech splits to train on.
    valid_splits : sequence of str
        LibriSpeech splits to validate on.
    test_splits : sequence of str
        LibriSpeech splits to test on.
    skip_prep : bool
        If True, CSV files that would have to be made are taken to be in
        ``save_folder`` already.

    Returns
    -------
    CorpusFiles
        Paths of the three manifests, and what ``$data_root`` stands for.

    Raises
    ------
    BadInput
        The folder is missing or holds nothing of that kind.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "train.csv").touch()
    >>> prepare_corpus(root).train_csv == str(root / "train.csv")
    True
    """
    if data_folder is None or str(data_folder) == "starter":
        # Only this branch needs the starter kit.
        from blsp_plugin import starter

        folder = starter.corpus()
        return _csv_files(folder, folder)
    if not os.path.isdir(data_folder):
        raise BadInput(f"{data_folder}: no such folder; correct data_folder")
    files = _csv_files(data_folder, data_folder)
    if any(os.path.isfile(path) for path in files[:3]):
        return files
    if not find_splits(data_folder):
        raise BadInput(
            f"{data_folder}: holds neither train.csv, valid.csv, test.csv nor "
            "LibriSpeech splits such as dev-clean; correct data_folder"
        )
    if save_folder is None:
        raise BadInput(
            f"{data_folder}: is LibriSpeech; name a save_folder for its CSV"
        )
    prepare_librispeech(
        data_folder,
        save_folder,
        train_splits,
        valid_splits,
        test_splits,
        skip_prep=skip_prep,
    )
    return _csv_files(save_folder, data_folder)
