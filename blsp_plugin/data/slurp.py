"""SLURP (Bastianelli et al. 2020, arXiv 2011.13205) as the toolkit's CSV files.

Sentences to an assistant with what they mean (github.com/pswietojanski/slurp),
each spoken several times. Intents and entities are written as the corpus' own
scripts/evaluation has them.

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
    prepare_manifests,
)
from blsp_plugin.data.tsv import read_lines
from blsp_plugin.errors import BadInput

__all__ = ["PUBLISHED", "find_slurp", "prepare_slurp"]

# Where a clone of the repository has the tables, the toolkit's script looks
# for them, and scripts/download_audio.sh puts the recordings.
TABLES = ("dataset/slurp", "slurp", ".")
AUDIO = ("audio", ".", "scripts/audio")
RECORDINGS = ("slurp_real", "slurp_synth")
SPLITS = ("train", "train_synthetic", "devel", "test")
MEANING = ("intent", "scenario", "action", "entities")
CLOSE = "-headset"
# Recordings that the repository's tables list, 72 thousand in all.
PUBLISHED = [{"train": 50628, "devel": 8690, "test": 13078}]


def find_slurp(data_folder):
    """Find the two parts of SLURP in a folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        A clone of its repository, or the tables beside the recordings.

    Returns
    -------
    tables : pathlib.Path or None
        The folder of ``<split>.jsonl``.
    audio : pathlib.Path or None
        The folder of ``slurp_real`` and ``slurp_synth``.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "slurp_real").mkdir()
    >>> (root / "test.jsonl").touch()
    >>> find_slurp(root) == (root, root)
    True
    """
    root = Path(data_folder)
    tables = [
        root / place
        for place in TABLES
        if any((root / place / f"{split}.jsonl").is_file() for split in SPLITS)
    ]
    audio = [
        root / place
        for place in AUDIO
        if any((root / place / kind).is_dir() for kind in RECORDINGS)
    ]
    return next(iter(tables), None), next(iter(audio), None)


def _read_speakers(sentences):
    """{recording: speaker} of ``metadata.json``."""
    return {
        name: recording.get("usrid", "")
        for sentence in sentences.values()
        for name, recording in sentence["recordings"].items()
    }


def _read_sentence(line):
    """A sentence's columns and the files of its recordings."""
    sentence = json.loads(line)
    words = [token["surface"] for token in sentence["tokens"]]
    entities = [
        {
            "type": entity["type"],
            "filler": " ".join(
                words[place].lower() for place in entity["span"]
            ),
        }
        for entity in sentence["entities"]
    ]
    scenario, action = sentence["scenario"], sentence["action"]
    columns = {
        "wrd": sentence["sentence"].strip(),
        # The field `intent` says sometimes less; nobody scores with it.
        "intent": f"{scenario}_{action}",
        "scenario": scenario,
        "action": action,
        "entities": json.dumps(entities, ensure_ascii=False),
    }
    return columns, [recording["file"] for recording in sentence["recordings"]]


def _without_far(files):
    """Recordings without those that a headset heard at the same time."""
    close = {file for file in files if Path(file).stem.endswith(CLOSE)}
    return [
        file
        for file in files
        if Path(file).stem + CLOSE + Path(file).suffix not in close
    ]


def _read_splits(tables, audio, splits, headset):
    """Yield (manifest name, `Clip` or `Rejected` or None) of all splits."""
    metadata = tables / "metadata.json"
    speakers = {}
    if metadata.is_file():
        speakers = read_json(metadata, _read_speakers)
    for name, parts in splits.items():
        for split in parts:
            synthetic = split == "train_synthetic"
            folder = audio / ("slurp_synth" if synthetic else "slurp_real")
            file = tables / f"{split}.jsonl"
            for row, line in read_lines(file):
                if not line.strip():
                    continue
                try:
                    columns, files = _read_sentence(line)
                except (
                    ValueError,
                    KeyError,
                    IndexError,
                    TypeError,
                    AttributeError,
                ) as error:
                    reason = (
                        f"no sentence of SLURP ({error!r}); download the "
                        "file again"
                    )
                    yield name, Rejected("", str(file), row, reason)
                    continue
                wanted = _without_far(files) if headset else files
                for clip in wanted:
                    path = folder / clip
                    own = {**columns, "spk_id": speakers.get(clip, "")}
                    yield name, Clip(path.stem, path, own, str(file), row)
                for _ in range(len(files) - len(wanted)):
                    yield name, None


def prepare_slurp(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("devel",),
    test_splits=("test",),
    headset=False,
    max_rejected=0.01,
):
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of SLURP.

    One row a recording, columns ``ID, duration, wav, spk_id, wrd, intent,
    scenario, action, entities``: the recording's name, seconds,
    ``$data_root/...``, the speaker if there is a ``metadata.json``, the
    sentence as found, ``<scenario>_<action>``, and a JSON list of entities
    ``{"type", "filler"}``. Done once: a second call with the same order
    returns at once. Rows that cannot be used are listed in
    ``rejected.jsonl``; a warning says where a split has another number of
    recordings than published.

    Arguments
    ---------
    data_folder : str or os.PathLike
        A clone of the corpus' repository with the recordings in ``audio/``,
        or ``<split>.jsonl`` beside ``slurp_real`` and ``slurp_synth``.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Of train, train_synthetic, devel and test, those of ``train.csv``.
        With none the file is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    headset : bool
        Where a distant microphone and a headset heard the same, only the
        headset; the others are left out and counted in ``prepared.json``.
        Published scores are on all.
    max_rejected : float
        The fraction of recordings that may be bad.

    Raises
    ------
    BadInput
        A table or the recordings are missing, or too much is bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> (root / "slurp_real").mkdir()
    >>> soundfile.write(root / "slurp_real/a.flac", [0.0] * 16000, 16000)
    >>> sentence = {"sentence": "wake me at six", "intent": "alarm_set"}
    >>> sentence.update(scenario="alarm", action="set")
    >>> sentence["tokens"] = [{"surface": w} for w in "wake me at six".split()]
    >>> sentence["entities"] = [{"type": "time", "span": [3]}]
    >>> sentence["recordings"] = [{"file": "a.flac"}]
    >>> _ = (root / "test.jsonl").write_text(json.dumps(sentence))
    >>> prepare_slurp(root, root / "csv", [], [])
    >>> (root / "csv/test.csv").read_text().splitlines()[1].split(",", 4)[4]
    'wake me at six,alarm_set,alarm,set,"[{""type"": ""time"", \
""filler"": ""six""}]"'
    """
    tables, audio = find_slurp(check_folder(data_folder))
    if tables is None or audio is None:
        lacking = "<split>.jsonl" if tables is None else "slurp_real"
        raise BadInput(
            f"{data_folder}: no {lacking}; take SLURP's repository and "
            "recordings whole, or correct data_folder"
        )
    order = make_order(
        "SLURP",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        headset=bool(headset),
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(tables, audio, order["splits"], headset),
        columns=(*COLUMNS, *MEANING),
        max_rejected=max_rejected,
        published=() if headset else PUBLISHED,
    )
