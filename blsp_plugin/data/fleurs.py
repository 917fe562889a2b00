"""FLEURS (arXiv 2205.12446) as the toolkit's CSV files.

The sentences of FLoRes, spoken in 102 languages: a sentence has the same
number in all of them, and in each up to three recordings.

Authors
 * The blsp_plugin team 2026
"""

from pathlib import Path

from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    COLUMNS,
    Clip,
    check_folder,
    make_order,
    pick_one,
    prepare_manifests,
)
from blsp_plugin.data.tsv import read_tsv

__all__ = ["PUBLISHED", "find_languages", "prepare_fleurs"]

SPLITS = ("train", "dev", "test")
# The tables have no header.
HEADER = (
    *("id", "file_name", "raw_transcription", "transcription", "chars"),
    *("num_samples", "gender"),
)
# Recordings by language, as far as it is known: copies of the corpus on the
# Hugging Face hub.
PUBLISHED = {
    "cmn_hans_cn": {"dev": 409, "test": 945},
    "en_us": {"dev": 394, "test": 647},
    "es_419": {"test": 908},
    "fr_fr": {"dev": 289, "test": 676},
}


def find_languages(data_folder):
    """Find the languages of a FLEURS folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``<language>/{train,dev,test}.tsv`` and ``<language>/audio``, or
        holds these in ``data``.

    Returns
    -------
    dict of pathlib.Path
        Their folders.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "data/fr_fr/audio").mkdir(parents=True)
    >>> (root / "data/fr_fr/test.tsv").touch()
    >>> list(find_languages(root))
    ['fr_fr']
    """
    root = Path(data_folder)
    return {
        folder.name: folder
        for holder in (root, root / "data")
        for folder in sorted(holder.glob("*_*"))
        if (folder / "audio").is_dir()
        and any((folder / f"{split}.tsv").is_file() for split in SPLITS)
    }


def _tidy(text):
    """A sentence without the quotes that a writer of CSV put around it."""
    text = text.strip()
    inner = text[1:-1]
    whole = len(text) > 1 and text[0] == text[-1] == '"'
    if whole and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"').strip()
    return text


def _read_sentences(folder):
    """{number: sentence} of a language."""
    sentences = {}
    for split in SPLITS:
        file = folder / f"{split}.tsv"
        if file.is_file():
            for _, record, reason in read_tsv(file, (), HEADER):
                if not reason:
                    text = _tidy(record["raw_transcription"])
                    sentences.setdefault(record["id"], text)
    return sentences


def _read_splits(folder, splits, target):
    """Yield (manifest name, `Clip` or `Rejected` or None) of all splits."""
    translations = _read_sentences(target) if target else {}
    for name, parts in splits.items():
        for split in parts:
            file = folder / f"{split}.tsv"
            for row, record, reason in read_tsv(file, (), HEADER):
                clip = record.get("file_name", "")
                if not reason and not clip:
                    reason = "empty file_name; restore the row"
                if reason:
                    ID = Path(clip).stem
                    yield name, Rejected(ID, str(file), row, reason)
                    continue
                columns = {
                    "spk_id": "",
                    "wrd": _tidy(record["raw_transcription"]),
                    "prompt": record["id"],
                }
                if target:
                    columns["translation"] = translations.get(record["id"])
                    if not columns["translation"]:
                        yield name, None
                        continue
                path = folder / "audio" / split / clip
                yield name, Clip(path.stem, path, columns, str(file), row)


def prepare_fleurs(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("dev",),
    test_splits=("test",),
    language=None,
    target=None,
    max_rejected=0.01,
):
    r"""Write ``train.csv``, ``valid.csv`` and ``test.csv`` of one language.

    Columns ``ID, duration, wav, spk_id, wrd, prompt``: the recording's name,
    seconds, ``$data_root/...``, nothing (the corpus names no speakers), the
    sentence with case and punctuation (``raw_transcription``), and its
    number; with ``target`` also ``translation``. Done once: a second call
    with the same order returns at once. Rows that cannot be used are listed
    in ``rejected.jsonl``.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``<language>/{train,dev,test}.tsv`` and
        ``<language>/audio/{train,dev,test}/*.wav``, or that in ``data``.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Of train, dev and test, those of ``train.csv``. With none the file is
        not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    language : str, optional
        What is spoken, such as fr_fr. Default: the only one that is there.
    target : str, optional
        Another language that is there: its sentences are the translations.
        Recordings whose sentence it lacks are left out, also of the test
        set, and counted in ``prepared.json``.
    max_rejected : float
        The fraction of recordings that may be bad.

    Raises
    ------
    BadInput
        A language or a table is missing, or too many recordings are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> for name, text in (("fr_fr", "Oui."), ("en_us", "Yes.")):
    ...     (root / name / "audio/test").mkdir(parents=True)
    ...     soundfile.write(root / name / "audio/test/1.wav", [0.0] * 160, 16)
    ...     row = f"7\t1.wav\t{text}\t{text.lower()}\ty e s\t160\tMALE\n"
    ...     _ = (root / name / "test.tsv").write_text(row)
    >>> options = {"language": "fr_fr", "target": "en_us"}
    >>> prepare_fleurs(root, root / "csv", [], [], **options)
    >>> (root / "csv/test.csv").read_text().splitlines()[1]
    '1,10.0,$data_root/fr_fr/audio/test/1.wav,,Oui.,7,Yes.'
    """
    there = find_languages(check_folder(data_folder))
    language = pick_one(data_folder, "FLEURS", "language", there, language)
    order = make_order(
        "FLEURS",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        language=language,
        target=target,
    )
    columns, published = (*COLUMNS, "prompt"), [PUBLISHED.get(language, {})]
    if target is not None:
        # Less than all by intent.
        columns, published = (*columns, "translation"), ()
        target = there[pick_one(data_folder, "FLEURS", "target", there, target)]
    prepare_manifests(
        order,
        save_folder,
        _read_splits(there[language], order["splits"], target),
        columns=columns,
        max_rejected=max_rejected,
        published=published,
    )
