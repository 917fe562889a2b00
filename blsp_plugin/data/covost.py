"""CoVoST 2 (arXiv 2007.10310) as the toolkit's CSV files.

Speech and transcripts are Common Voice's, translations come as
``covost_v2.<source>_<target>.tsv`` (github.com/facebookresearch/covost). The
toolkit's own ``covost_prepare.py`` lower-cases, strips punctuation and drops
rows, of the test set too. Here texts stay as found and the test set is whole,
so that scores compare with published ones.

Authors
 * The blsp_plugin team 2026
"""

import re
from pathlib import Path
from typing import NamedTuple

from blsp_plugin.data.common_voice import find_locales
from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    COLUMNS,
    Clip,
    check_folder,
    make_order,
    prepare_manifests,
)
from blsp_plugin.data.tsv import read_tsv
from blsp_plugin.errors import BadInput

__all__ = ["find_pairs", "pick_pair", "prepare_covost", "read_pair"]

TABLE = re.compile(r"covost_v2\.(.+)_(.+?)(?:\.(train|dev|test))?\.tsv")
# What the `split` column of the one-file format calls them. CoVoST 2 trains on
# more than Common Voice does.
NAMES = {"train_covost": "train"}
# Clips of train, dev and test (arXiv 2007.10310, and the data card of covost2
# on the Hugging Face hub); all pairs out of English have the same.
PUBLISHED = {
    "en_*": (289430, 15531, 15531),
    "fr_en": (207374, 14760, 14760),
    "de_en": (127834, 13511, 13511),
    "es_en": (79015, 13221, 13221),
    "ca_en": (95854, 12730, 12730),
    "it_en": (31698, 8940, 8951),
    "ru_en": (12112, 6110, 6300),
    "zh-CN_en": (7085, 4843, 4898),
    "pt_en": (9158, 3318, 4023),
    "fa_en": (53949, 3445, 3445),
    "et_en": (1782, 1576, 1571),
    "mn_en": (2067, 1761, 1759),
    "nl_en": (7108, 1699, 1699),
    "tr_en": (3966, 1624, 1629),
    "ar_en": (2283, 1758, 1695),
    "sv-SE_en": (2160, 1349, 1595),
    "lv_en": (2337, 1125, 1629),
    "sl_en": (1843, 509, 360),
    "ta_en": (1358, 384, 786),
    "ja_en": (1119, 635, 684),
    "id_en": (1243, 792, 844),
    "cy_en": (1241, 690, 690),
}


class Pair(NamedTuple):
    """A language pair.

    Arguments
    ---------
    source : str
        Spoken language.
    target : str
        Language of the translations.
    folder : pathlib.Path
        Common Voice's folder of the spoken language.
    tables : dict of pathlib.Path
        By split; one that has all splits is under "all".
    """

    source: str
    target: str
    folder: Path
    tables: dict


def find_pairs(data_folder):
    """Find the language pairs of a CoVoST 2 folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        A Common Voice folder, see `find_locales`. The tables lie beside the
        locales or in them.

    Returns
    -------
    dict of Pair
        By (source, target).

    Example
    -------
    >>> folder = getfixture("tmp_path") / "fr"
    >>> (folder / "clips").mkdir(parents=True)
    >>> (folder / "covost_v2.fr_en.tsv").touch()
    >>> list(find_pairs(folder)), list(find_pairs(folder.parent))
    ([('fr', 'en')], [('fr', 'en')])
    """
    locales = find_locales(data_folder)
    pairs = {}
    for folder in dict.fromkeys([Path(data_folder), *locales.values()]):
        for file in sorted(folder.glob("covost_v2.*.tsv")):
            match = TABLE.fullmatch(file.name)
            if match:
                source, target, split = match.groups()
                clips = locales.get(source, folder)
                pair = Pair(source, target, clips, {})
                pair = pairs.setdefault((source, target), pair)
                pair.tables[split or "all"] = file
    return pairs


def pick_pair(data_folder, source=None, target=None):
    """The one language pair that is meant.

    Arguments
    ---------
    data_folder : str or os.PathLike
        As for `find_pairs`.
    source : str, optional
        Spoken language. Default: the only one.
    target : str, optional
        Language of the translations. Default: the only one.

    Returns
    -------
    Pair

    Raises
    ------
    BadInput
        There is no such pair, or several.
    """
    pairs = find_pairs(data_folder)
    fit = [
        pair
        for pair in pairs.values()
        if source in (None, pair.source) and target in (None, pair.target)
    ]
    if len(fit) == 1:
        return fit[0]
    there = ", ".join("_".join(pair) for pair in pairs)
    raise BadInput(
        f"{data_folder}: source {source!r} and target {target!r} asked, CoVoST "
        f"is there in {there or 'none'}; set source and target to one of them"
    )


def read_pair(pair, splits):
    """Read translations, with the transcripts that belong to them.

    Arguments
    ---------
    pair : Pair
        The language pair.
    splits : sequence of str
        Of train, dev and test.

    Yields
    ------
    split : str
        Of the row.
    file : pathlib.Path
        That has the row.
    row : int
        Line there.
    record : dict of str
        ``path``, ``sentence``, ``translation``, ``client_id``, as far as they
        are there.
    reason : str or None
        Why the row is bad.

    Raises
    ------
    BadInput
        A table is missing or not CoVoST's.
    """
    for split in splits:
        file = pair.tables.get(split) or pair.tables.get("all")
        if file is None:
            raise BadInput(
                f"{pair.folder}: no covost_v2.{pair.source}_{pair.target}."
                f"{split}.tsv; add it, or name another split"
            )
        rows = list(_table(file, split))
        whole = [record for _, record, reason in rows if not reason]
        transcripts = {}
        if any("sentence" not in record for record in whole):
            transcripts = _transcripts(pair.folder, whole)
        for row, record, reason in rows:
            known = {"client_id": "", **transcripts.get(record.get("path"), {})}
            record = {**known, **record}
            if not reason and not record["path"]:
                reason = "empty path; restore the row"
            if not reason and "sentence" not in record:
                reason = (
                    f"{record['path']} is not in validated.tsv; take the "
                    "Common Voice release that CoVoST 2 was made of (4.0)"
                )
            yield split, file, row, record, reason


def _table(file, split):
    """Yield (row, record, reason) of the rows of one split."""
    for row, record, reason in read_tsv(file, ["path", "translation"]):
        name = record.pop("split", split)
        if NAMES.get(name, name) == split:
            yield row, record, reason


def _transcripts(folder, records):
    """What Common Voice knows of some clips, by their path."""
    wanted = {record["path"] for record in records}
    needed = ["client_id", "path", "sentence"]
    return {
        record["path"]: {name: record[name] for name in needed}
        for _, record, reason in read_tsv(folder / "validated.tsv", needed)
        if not reason and record["path"] in wanted
    }


def _published(pair):
    """[{split: clips}] of a pair, as `check_counts` wants it."""
    name = "en_*" if pair.source == "en" else f"{pair.source}_{pair.target}"
    splits = ("train", "dev", "test")
    return [dict(zip(splits, PUBLISHED.get(name, ()), strict=False))]


def _read_splits(pair, splits):
    """Yield (manifest name, `Clip` or `Rejected`) of all splits."""
    for name, parts in splits.items():
        for _, file, row, record, reason in read_pair(pair, parts):
            clip = record.get("path", "")
            if reason:
                yield name, Rejected(Path(clip).stem, str(file), row, reason)
                continue
            columns = {
                "spk_id": record["client_id"],
                "wrd": record["sentence"].strip(),
                "translation": record["translation"].strip(),
            }
            path = pair.folder / "clips" / clip
            yield name, Clip(path.stem, path, columns, str(file), row)


def prepare_covost(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("dev",),
    test_splits=("test",),
    source=None,
    target=None,
    max_rejected=0.01,
):
    r"""Write ``train.csv``, ``valid.csv`` and ``test.csv`` of a language pair.

    Columns ``ID, duration, wav, spk_id, wrd, translation``. Both forms of the
    tables do: one file a pair with a ``split`` column, or one a split. Where
    they have no transcripts these come from Common Voice's ``validated.tsv``.
    Done once: a second call with the same order returns at once. Rows that
    cannot be used are listed in ``rejected.jsonl``; a warning says where a
    split has another number of clips than CoVoST 2 published.

    Arguments
    ---------
    data_folder : str or os.PathLike
        A Common Voice folder with ``covost_v2.<source>_<target>.tsv`` or
        ``covost_v2.<source>_<target>.<split>.tsv``.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Splits of ``train.csv``, of train, dev and test. With none the file is
        not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    source : str, optional
        Spoken language. Default: the only one that is there.
    target : str, optional
        Language of the translations. Default: the only one that is there.
    max_rejected : float
        The fraction of clips that may be bad.

    Raises
    ------
    BadInput
        The pair or a table is missing, or too many clips are bad.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path") / "fr"
    >>> (folder / "clips").mkdir(parents=True)
    >>> soundfile.write(folder / "clips" / "a.mp3", [0.0] * 16000, 16000)
    >>> header = "path\tsentence\ttranslation\tclient_id\n"
    >>> table = folder / "covost_v2.fr_en.test.tsv"
    >>> _ = table.write_text(header + "a.mp3\tBonjour !\tHello!\ts\n")
    >>> prepare_covost(folder, folder / "csv", [], [])
    >>> (folder / "csv/test.csv").read_text().splitlines()[1]
    'a,1.0,$data_root/clips/a.mp3,s,Bonjour !,Hello!'
    """
    pair = pick_pair(check_folder(data_folder), source, target)
    order = make_order(
        "CoVoST 2",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        source=pair.source,
        target=pair.target,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(pair, order["splits"]),
        columns=(*COLUMNS, "translation"),
        max_rejected=max_rejected,
        published=_published(pair),
    )
