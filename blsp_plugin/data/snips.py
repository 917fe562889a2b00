"""Snips' smart lights (arXiv 1810.12735) as the toolkit's CSV files.

Commands to lights, spoken close to the microphone or far from it. The layout
is that which the corpus' own handler reads, ``CrossValDataset`` in
github.com/sonos/spoken-language-understanding-research-datasets: recordings in
``speech_corpus``, meanings in ``dataset.json``, joined by the text. The corpus
is for cross-validation and has no splits.

Authors
 * The blsp_plugin team 2026
"""

import json
from pathlib import Path

from blsp_plugin.data.json_stream import read_json
from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    COLUMNS,
    Clip,
    check_folder,
    make_order,
    pick_one,
    prepare_manifests,
)
from blsp_plugin.errors import BadInput

__all__ = ["find_snips", "prepare_snips"]

DATASET = "dataset.json"
RECORDINGS = "speech_corpus/metadata.json"
FOLDS = tuple(f"fold{number}" for number in range(1, 6))


def find_snips(data_folder):
    """Find the corpora of this layout in a folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        One of them, or the folder that holds them.

    Returns
    -------
    dict of pathlib.Path
        Their folders, by their names.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> corpus = root / "smart-lights-en-close-field"
    >>> (corpus / "speech_corpus").mkdir(parents=True)
    >>> (corpus / "dataset.json").touch()
    >>> (corpus / "speech_corpus/metadata.json").touch()
    >>> list(find_snips(root))
    ['smart-lights-en-close-field']
    """
    root = Path(data_folder).absolute()
    return {
        folder.name: folder
        for folder in [root, *sorted(root.glob("smart-lights-*"))]
        if (folder / DATASET).is_file() and (folder / RECORDINGS).is_file()
    }


def _read_queries(dataset):
    """[(intent, text, entities, fold)] of ``dataset.json``."""
    queries = []
    for intent, about in dataset["intents"].items():
        for place, utterance in enumerate(about["utterances"]):
            chunks = utterance["data"]
            entities = [
                {"type": chunk["slot_name"], "filler": chunk["text"].strip()}
                for chunk in chunks
                if chunk.get("slot_name")
            ]
            text = "".join(chunk["text"] for chunk in chunks)
            fold = FOLDS[place % len(FOLDS)]
            queries.append((intent, text, entities, fold))
    return queries


def _read_recordings(metadata):
    """{text: [(ID, file, speaker)]} of ``metadata.json``."""
    recordings = {}
    for name, about in metadata.items():
        worker = about.get("worker")
        speaker = worker.get("id", "") if isinstance(worker, dict) else worker
        found = (name, about["filename"], str(speaker or ""))
        recordings.setdefault(about["text"], []).append(found)
    return recordings


def _read_splits(folder, splits):
    """Yield (manifest name, `Clip` or `Rejected` or None) of all splits."""
    unknown = set(sum(splits.values(), [])) - {"all", *FOLDS}
    if unknown:
        raise BadInput(
            f"{folder}: no split {sorted(unknown)[0]!r}; name all, or "
            f"{', '.join(FOLDS)}"
        )
    queries = read_json(folder / DATASET, _read_queries)
    recordings = read_json(folder / RECORDINGS, _read_recordings)
    file = str(folder / DATASET)
    for name, parts in splits.items():
        for part in parts:
            waiting = dict(recordings)
            for row, (intent, text, entities, fold) in enumerate(queries, 1):
                # A text that is there twice has its recordings once.
                heard = waiting.pop(text, ())
                if part not in ("all", fold):
                    continue
                if not heard:
                    yield name, None
                for ID, audio, speaker in heard:
                    columns = {
                        "spk_id": speaker,
                        "wrd": text.strip(),
                        "intent": intent,
                        "entities": json.dumps(entities, ensure_ascii=False),
                    }
                    path = folder / "speech_corpus/audio" / audio
                    yield name, Clip(ID, path, columns, file, row)
            if part != "all":
                continue
            for text, heard in waiting.items():
                for ID, *_ in heard:
                    reason = (
                        f"{text!r} is no query of {DATASET}; extract the "
                        "corpus again or drop the recording"
                    )
                    listed = str(folder / RECORDINGS)
                    yield name, Rejected(ID, listed, 0, reason)


def prepare_snips(
    data_folder,
    save_folder,
    train_splits=(),
    valid_splits=(),
    test_splits=("all",),
    subset=None,
    max_rejected=0.01,
):
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of smart lights.

    Columns ``ID, duration, wav, spk_id, wrd, intent, entities``: seconds,
    ``$data_root/...``, the worker who spoke, the query as found, its intent,
    and a JSON list of entities ``{"type", "filler"}``. Queries that nobody
    spoke, which the corpus has, are left out and counted in
    ``prepared.json``. Done once: a second call with the same order returns at
    once. Rows that cannot be used are listed in ``rejected.jsonl``; their row
    is the number of the query.

    Arguments
    ---------
    data_folder : str or os.PathLike
        ``smart-lights-en-close-field`` (or ``-far-field``), which holds
        ``dataset.json`` and ``speech_corpus/``, or the folder that holds it.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Of ``train.csv``. The corpus has no splits: by default all of it is
        tested on. For cross-validation every fifth query of each intent makes
        ``fold1``, the next ones ``fold2``, to ``fold5``. With none the file
        is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    subset : str, optional
        Name of the corpus' folder. Default: the only one that is there.
    max_rejected : float
        The fraction of recordings that may be bad.

    Raises
    ------
    BadInput
        The corpus or a file is missing or another one, there is no such
        split, or too many recordings are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> (root / "speech_corpus/audio").mkdir(parents=True)
    >>> path = root / "speech_corpus/audio/1.wav"
    >>> soundfile.write(path, [0.0] * 16000, 16000)
    >>> chunks = [{"text": "Lights on in the "}]
    >>> chunks += [{"text": "attic", "entity": "room", "slot_name": "room"}]
    >>> intents = {"SwitchLightOn": {"utterances": [{"data": chunks}]}}
    >>> _ = (root / DATASET).write_text(json.dumps({"intents": intents}))
    >>> about = {"filename": "1.wav", "text": "Lights on in the attic"}
    >>> _ = (root / RECORDINGS).write_text(json.dumps({"1": about}))
    >>> prepare_snips(root, root / "csv")
    >>> (root / "csv/test.csv").read_text().splitlines()[1].split(",", 4)[4]
    'Lights on in the attic,SwitchLightOn,"[{""type"": ""room"", \
""filler"": ""attic""}]"'
    """
    there = find_snips(check_folder(data_folder))
    subset = pick_one(data_folder, "Snips", "subset", there, subset)
    order = make_order(
        "Snips",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        subset=subset,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(there[subset], order["splits"]),
        columns=(*COLUMNS, "intent", "entities"),
        max_rejected=max_rejected,
    )
