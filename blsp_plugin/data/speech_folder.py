"""A folder of speech with one table, or of several, as the toolkit's CSV files.

The simplest form for recordings of one's own: ``manifest.tsv``, tab-separated
without quoting, with the columns ``id``, ``wav``, ``duration_s``, ``speaker``,
``lang``, ``split``, ``text``. What may be there too: ``intent``, ``slots``,
``tr_<language>`` (translations), and ``prompt``, which says that clips of
several languages mean the same.

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
from blsp_plugin.errors import BadInput
from blsp_plugin.files import atomic_write

__all__ = ["find_tables", "prepare_speech_folder", "write_table"]

TABLE = "manifest.tsv"
NEEDED = ("id", "wav", "duration_s", "speaker", "lang", "split", "text")
EXTRAS = ("prompt", "intent", "slots")


def find_tables(data_folder):
    """Find the tables of a speech folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``manifest.tsv`` or ``<corpus>/manifest.tsv``.

    Returns
    -------
    dict of pathlib.Path
        The tables by corpus; the folder's own is under its name.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> for corpus in ("phone", "games"):
    ...     (root / corpus).mkdir()
    ...     (root / corpus / "manifest.tsv").touch()
    >>> list(find_tables(root)), list(find_tables(root / "phone"))
    (['games', 'phone'], ['phone'])
    """
    root = Path(data_folder).absolute()
    files = [root / TABLE] if (root / TABLE).is_file() else []
    files = files or sorted(root.glob(f"*/{TABLE}"))
    return {file.parent.name: file for file in files}


def write_table(rows, folder):
    """Write a speech folder's table, whole or not at all.

    Arguments
    ---------
    rows : iterable of dict
        Strings under all the names that a table must have.
    folder : str or os.PathLike
        Gets ``manifest.tsv``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_table([dict.fromkeys(NEEDED, "") | {"id": "a"}], folder)
    >>> (folder / "manifest.tsv").read_text().split()[-1]
    'a'
    """
    lines = ["\t".join(row[name] for name in NEEDED) for row in rows]
    with atomic_write(Path(folder) / TABLE) as stream:
        stream.write("\n".join(["\t".join(NEEDED), *lines]) + "\n")


def _read_tables(data_folder, files, splits, language, target):
    """{file: its rows}, if what is asked is in them."""
    tables = {file: list(read_tsv(file, NEEDED)) for file in files}
    rows = [row for table in tables.values() for row in table]
    records = [record for _, record, reason in rows if not reason]
    columns = {column for record in records for column in record}

    def check(option, there, wanted):
        for name in wanted:
            pick_one(data_folder, "speech", option, sorted(there), name)

    check("language", {r["lang"] for r in records}, {language} - {None})
    targets = {c.removeprefix("tr_") for c in columns if c.startswith("tr_")}
    check("target", targets, {target} - {None})
    for name, parts in splits.items():
        check(f"{name}_splits", {r["split"] for r in records}, parts)
    return tables


def _is_wanted(record, target, spoken):
    """Whether a clip has a translation, and one that is spoken if any are."""
    if target is None:
        return True
    if record["lang"] == target or not record.get(f"tr_{target}", "").strip():
        return False
    return not spoken or record["prompt"] in spoken


def _clip(file, row, record, target, name):
    text, intent = record["text"].strip(), record.get("intent", "")
    try:
        duration = float(record["duration_s"])
        reason = None if duration > 0 else "duration_s is not positive"
    except ValueError:
        reason = f"duration_s {record['duration_s']!r} is no number"
    if not record["id"] or not record["wav"]:
        reason = "id or wav is empty"
    if not text and not intent:
        reason = "neither text nor intent"
    if reason:
        reason += "; fill it in or drop the row"
        return Rejected(name, str(file), row, reason)
    columns = {
        "spk_id": record["speaker"],
        "wrd": text,
        "lang": record["lang"],
        **{extra: record.get(extra, "") for extra in EXTRAS},
    }
    if target is not None:
        columns["translation"] = record[f"tr_{target}"].strip()
    path = file.parent / record["wav"]
    return Clip(name, path, columns, str(file), row, duration=duration)


def _read_splits(data_folder, files, splits, language, target):
    """Yield (manifest name, `Clip` or `Rejected` or None) of all splits."""
    asked = (splits, language, target)
    tables = _read_tables(data_folder, files.values(), *asked)
    for corpus, file in files.items():
        rows, spoken = tables[file], set()
        if target is not None:
            # Both directions between two spoken languages get the same
            # prompts in the same order.
            rows.sort(key=lambda row: row[1].get("prompt", ""))
            spoken = {
                record.get("prompt", "")
                for _, record, reason in rows
                if not reason and record["lang"] == target
            } - {""}
        for row, record, reason in rows:
            name = f"{corpus}_{record.get('id', '')}"
            if reason:
                yield "", Rejected(name, str(file), row, reason)
                continue
            if language not in (None, record["lang"]):
                continue
            for manifest, parts in splits.items():
                if record["split"] not in parts:
                    continue
                wanted = _is_wanted(record, target, spoken)
                clip = (
                    _clip(file, row, record, target, name) if wanted else None
                )
                yield manifest, clip


def prepare_speech_folder(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("valid",),
    test_splits=("test",),
    language=None,
    corpora=None,
    target=None,
    max_rejected=0.01,
):
    r"""Write ``train.csv``, ``valid.csv`` and ``test.csv`` of a speech folder.

    Columns ``ID, duration, wav, spk_id, wrd, lang, prompt, intent, slots``:
    ``<corpus>_<id>``, seconds, ``$data_root/...``, and what the table has,
    else nothing; with ``target`` also ``translation``. Only a clip with an
    intent may lack its text. Done once: a second call with the same order
    returns at once. Rows that cannot be used are listed in
    ``rejected.jsonl``.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``manifest.tsv`` or ``<corpus>/manifest.tsv``, whose paths are
        relative to it.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        What column ``split`` says of the clips of ``train.csv``. With none
        the file is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    language : str, optional
        Only clips with this ``lang``. Default: all.
    corpora : str or sequence of str, optional
        Only these subfolders. Default: all.
    target : str, optional
        ``tr_<target>`` becomes ``translation``. Clips without one, and in a
        corpus that has prompts spoken in that language those whose prompt is
        not, are left out of the test set too, and counted in
        ``prepared.json``. The clips come in the order of their prompts: from
        one language to another and back they are the same.
    max_rejected : float
        The fraction of clips that may be bad.

    Raises
    ------
    BadInput
        A table is missing or another one, no clip is of that corpus, split or
        language, or too many clips are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path") / "mine"
    >>> root.mkdir()
    >>> soundfile.write(root / "a.wav", [0.0] * 16000, 16000)
    >>> row = ["a", "a.wav", "1.0", "s", "fr", "test", "Oui.", "Yes."]
    >>> rows = [[*NEEDED, "tr_en"], row]
    >>> text = "".join("\t".join(row) + "\n" for row in rows)
    >>> _ = (root / "manifest.tsv").write_text(text)
    >>> prepare_speech_folder(root, root / "csv", [], [], target="en")
    >>> (root / "csv/test.csv").read_text().splitlines()[1]
    'mine_a,1.0,$data_root/a.wav,s,Oui.,fr,,,,Yes.'
    """
    files = find_tables(check_folder(data_folder))
    if corpora is not None:
        corpora = [corpora] if isinstance(corpora, str) else list(corpora)
        for name in corpora:
            pick_one(data_folder, "speech", "corpora", files, name)
        files = {name: files[name] for name in corpora}
    if not files:
        raise BadInput(
            f"{data_folder}: no {TABLE} and no <corpus>/{TABLE}; correct "
            "data_folder"
        )
    if target is not None and target == language:
        raise BadInput(
            f"{data_folder}: language and target are both {target!r}; set "
            "target to another language"
        )
    order = make_order(
        "speech folder",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        language=language,
        corpora=list(files),
        target=target,
    )
    columns = (*COLUMNS, "lang", *EXTRAS)
    prepare_manifests(
        order,
        save_folder,
        _read_splits(data_folder, files, order["splits"], language, target),
        columns=columns if target is None else (*columns, "translation"),
        max_rejected=max_rejected,
    )
