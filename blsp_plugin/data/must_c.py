"""MuST-C (Di Gangi et al. 2019, N19-1202) as the toolkit's CSV files.

TED talks in English with translations: ``<split>.yaml`` says where each
sentence is heard, ``<split>.en`` and ``<split>.<language>`` have its words, all
line by line.

Authors
 * The blsp_plugin team 2026
"""

import collections
import re
from pathlib import Path

import yaml

from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    COLUMNS,
    STRETCH,
    Clip,
    check_folder,
    make_order,
    pick_one,
    prepare_manifests,
)
from blsp_plugin.data.tsv import read_lines
from blsp_plugin.errors import BadInput

__all__ = ["PUBLISHED", "find_targets", "prepare_must_c"]

PAIR = re.compile(r"en-(\w+)")
# Sentences by target language, of versions 1.0 and, for German, 2.0: as data
# cards and recipes on them count (N19-1202 has hours only).
PUBLISHED = {
    "de": [
        {"dev": 1423, "tst-COMMON": 2641},
        {"dev": 1415, "tst-COMMON": 2580},
    ],
    "es": [{"dev": 1316, "tst-COMMON": 2502}],
    "fr": [{"dev": 1412, "tst-COMMON": 2632}],
    "it": [{"dev": 1309, "tst-COMMON": 2574}],
    "nl": [{"dev": 1423, "tst-COMMON": 2615}],
    "pt": [{"dev": 1367, "tst-COMMON": 2502}],
    "ro": [{"dev": 1370, "tst-COMMON": 2556}],
    "ru": [{"dev": 1317, "tst-COMMON": 2513}],
}


def find_targets(data_folder):
    """Find the target languages of a MuST-C folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``en-<language>/data/``, or is one of these ``en-<language>``.

    Returns
    -------
    dict of pathlib.Path
        The folder of the splits, by language.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "en-de/data/dev/txt").mkdir(parents=True)
    >>> list(find_targets(root)), list(find_targets(root / "en-de"))
    (['de'], ['de'])
    """
    root = Path(data_folder).absolute()
    targets = {}
    for folder in [root, *sorted(root.glob("en-*"))]:
        match = PAIR.fullmatch(folder.name)
        if match and next(folder.glob("data/*/txt"), None):
            targets[match[1]] = folder / "data"
    return targets


def _read_segments(file):
    """The list in a YAML file, each as far as it is whole."""
    try:
        with open(file, encoding="utf-8") as stream:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            segments = yaml.load(stream, loader)
    except FileNotFoundError as error:
        raise BadInput(
            f"{file}: no such file; extract MuST-C again or name another split"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        row = f", row {place.line + 1}" if place else ""
        raise BadInput(
            f"{file}{row}: not YAML in UTF-8; download it again"
        ) from error
    if not isinstance(segments, list):
        raise BadInput(
            f"{file}: no list of segments; it is not a file of MuST-C"
        )
    return segments


def _read_split(folder, split, target):
    """Yield (row, segment, transcript, translation) of a split."""
    file = folder / split / "txt" / f"{split}.yaml"
    columns = [_read_segments(file)]
    for language in ("en", target):
        lines = read_lines(file.with_suffix(f".{language}"))
        columns.append([line.strip() for _, line in lines])
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
        raise BadInput(
            f"{file}: {counts[0]} segments, but {counts[1]} lines in "
            f"{split}.en and {counts[2]} in {split}.{target}: they cannot be "
            "told to belong together; extract MuST-C again"
        )
    yield from zip(range(1, counts[0] + 1), *columns, strict=True)


def _read_splits(folder, target, splits):
    """Yield (manifest name, `Clip` or `Rejected`) of all splits."""
    for name, parts in splits.items():
        for split in parts:
            places = collections.Counter()
            for row, segment, text, translation in _read_split(
                folder, split, target
            ):
                file = str(folder / split / "txt" / f"{split}.yaml")
                try:
                    path = folder / split / "wav" / segment["wav"]
                    begin = float(segment["offset"])
                    stretch = begin, begin + float(segment["duration"])
                    speaker = str(segment.get("speaker_id", ""))
                except (KeyError, TypeError, ValueError) as error:
                    reason = (
                        f"segment is not whole ({error!r}); it needs wav, "
                        "offset and duration"
                    )
                    yield name, Rejected("", file, row, reason)
                    continue
                place = places[path.stem]
                places[path.stem] += 1
                columns = {
                    "spk_id": speaker,
                    "wrd": text,
                    "translation": translation,
                }
                clip = (f"{path.stem}_{place}", path, columns, file, row)
                yield name, Clip(*clip, stretch=stretch)


def prepare_must_c(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("dev",),
    test_splits=("tst-COMMON",),
    target=None,
    max_rejected=0.01,
):
    r"""Write ``train.csv``, ``valid.csv`` and ``test.csv`` of a language.

    Columns ``ID, duration, wav, spk_id, wrd, start, stop, translation``: the
    talk and the sentence's place among its sentences, seconds,
    ``$data_root/...``, samples of the recording. Texts stay as found. Done
    once: a second call with the same order returns at once. Rows that cannot
    be used are listed in ``rejected.jsonl``; a warning says where a split has
    another number of sentences than published.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``en-<language>/data/<split>/wav`` and ``txt``, or is that
        ``en-<language>``.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Splits of ``train.csv``, of train, dev, tst-COMMON and tst-HE. With
        none the file is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    target : str, optional
        Language of the translations. Default: the only one that is there.
    max_rejected : float
        The fraction of sentences that may be bad.

    Raises
    ------
    BadInput
        The language or a file is missing, the files of a split differ in
        their number of lines, or too many sentences are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> split = root / "en-de/data/tst-HE"
    >>> for kind in ("txt", "wav"):
    ...     (split / kind).mkdir(parents=True)
    >>> soundfile.write(split / "wav/ted_1.wav", [0.0] * 32000, 16000)
    >>> segment = "- {duration: 1.0, offset: 0.5, speaker_id: spk.1, "
    >>> segment += "wav: ted_1.wav}\n"
    >>> texts = {"yaml": segment, "en": "Thanks.\n", "de": "Danke.\n"}
    >>> for kind, text in texts.items():
    ...     _ = (split / "txt" / f"tst-HE.{kind}").write_text(text)
    >>> prepare_must_c(root, root / "csv", [], [], ["tst-HE"])
    >>> (root / "csv/test.csv").read_text().splitlines()[1].split(",")[3:]
    ['spk.1', 'Thanks.', '8000', '24000', 'Danke.']
    """
    there = find_targets(check_folder(data_folder))
    target = pick_one(data_folder, "MuST-C", "target", there, target)
    order = make_order(
        "MuST-C",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        target=target,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(there[target], target, order["splits"]),
        columns=(*COLUMNS, *STRETCH, "translation"),
        max_rejected=max_rejected,
        published=PUBLISHED.get(target, ()),
    )
