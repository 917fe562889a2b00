"""GigaSpeech (arXiv 2106.06909) as Parquet with the toolkit's columns.

Its clips are stretches of long recordings, and XL has 8.3 million of them:
``GigaSpeech.json`` is streamed, and the manifests are Parquet.

Authors
 * The blsp_plugin team 2026
"""

import re
from pathlib import Path

from blsp_plugin.data.json_stream import stream_list
from blsp_plugin.data.manifest import Rejected
from blsp_plugin.data.preparation import (
    COLUMNS,
    STRETCH,
    Clip,
    check_folder,
    make_order,
    prepare_manifests,
)
from blsp_plugin.errors import BadInput

__all__ = ["METADATA", "SUBSETS", "prepare_gigaspeech", "tidy_text"]

METADATA = "GigaSpeech.json"
SUBSETS = ("XS", "S", "M", "L", "XL")
# What is heard in an utterance that nobody speaks.
GARBAGE = {"<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>"}
PUNCTUATION = {
    "<COMMA>": ",",
    "<PERIOD>": ".",
    "<QUESTIONMARK>": "?",
    "<EXCLAMATIONPOINT>": "!",
}
TAG = re.compile(r"\s*(" + "|".join(PUNCTUATION) + ")")
# Names of the transcript, the better first: with case, or upper-case only.
TEXTS = ("text_tidy", "text_tn")


def tidy_text(text):
    """Write GigaSpeech's punctuation tags as punctuation.

    Arguments
    ---------
    text : str
        As in the corpus.

    Returns
    -------
    str
        The same words, with the marks at the end of theirs. Garbage tags stay.

    Example
    -------
    >>> tidy_text("YES <COMMA> I DO <PERIOD> REALLY <QUESTIONMARK>")
    'YES, I DO. REALLY?'
    """
    return TAG.sub(lambda match: PUNCTUATION[match[1]], text).strip()


def _is_garbage(text):
    words = set(text.split()) - set(PUNCTUATION)
    return bool(words) and words <= GARBAGE


def _read_splits(data_folder, splits, subset):
    """Yield (manifest name, `Clip` or `Rejected` or None), in one pass."""
    sources = {"train": subset, "dev": "DEV", "test": "TEST"}
    wanted = {}
    for name, parts in splits.items():
        for part in parts:
            if part not in sources:
                raise BadInput(
                    f"{data_folder}: no GigaSpeech split {part!r}; name "
                    "train (a subset), dev or test"
                )
            wanted.setdefault(f"{{{sources[part]}}}", []).append(name)
    file = data_folder / METADATA
    for row, audio in enumerate(stream_list(file, "audios"), 1):
        try:
            path = data_folder / audio["path"]
            speaker, subsets = audio.get("speaker", ""), audio["subsets"]
            segments = list(audio["segments"])
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{file}, audio {row}: no {error}; it is not GigaSpeech's "
                "metadata of version 1"
            ) from error
        for segment in segments:
            for source in segment.get("subsets", subsets):
                for name in wanted.get(source, ()):
                    yield name, _clip(name, path, speaker, segment, file, row)


def _clip(name, path, speaker, segment, file, row):
    try:
        text = next(segment[key] for key in TEXTS if key in segment)
        if name != "test" and _is_garbage(text):
            return None
        stretch = float(segment["begin_time"]), float(segment["end_time"])
        columns = {"spk_id": speaker, "wrd": tidy_text(text)}
        clip = (segment["sid"], path, columns, str(file), row)
        return Clip(*clip, stretch=stretch)
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        StopIteration,
    ) as error:
        reason = (
            f"segment of audio {row} is not whole ({error!r}); it needs sid, "
            "begin_time, end_time and text_tn"
        )
        return Rejected(str(segment.get("sid", "")), str(file), row, reason)


def prepare_gigaspeech(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("dev",),
    test_splits=("test",),
    subset="XL",
    max_rejected=0.01,
):
    """Write ``train.parquet``, ``valid.parquet`` and ``test.parquet``.

    Columns ``ID, duration, wav, spk_id, wrd, start, stop``: seconds of the
    segment, ``$data_root/...``, and samples of the recording at its own rate.
    Upper-case as found, with punctuation instead of its tags. Utterances of
    garbage (``<SIL> <NOISE> <MUSIC> <OTHER>``) are left out and counted in
    ``prepared.json``; the test set keeps them. Done once: a second call with
    the same order returns at once. Segments that cannot be used are listed in
    ``rejected.jsonl``; their row is the number of the audio in the JSON file.

    Arguments
    ---------
    data_folder : str or os.PathLike
        Holds ``GigaSpeech.json`` and ``audio/``.
    save_folder : str or os.PathLike
        Where the Parquet files go.
    train_splits : sequence of str
        Of train (the subset), dev and test, those of ``train.parquet``. With
        none the file is not written.
    valid_splits : sequence of str
        Those of ``valid.parquet``.
    test_splits : sequence of str
        Those of ``test.parquet``.
    subset : str
        What to train on: XS, S, M, L or XL (10 h to 10 000 h).
    max_rejected : float
        The fraction of segments that may be bad.

    Raises
    ------
    BadInput
        The JSON file is missing, cut short or another one, there is no such
        subset, or too many segments are bad.

    Example
    -------
    >>> import json, pyarrow.parquet, soundfile
    >>> root = getfixture("tmp_path")
    >>> soundfile.write(root / "a.wav", [0.0] * 32000, 16000)
    >>> segment = {"sid": "a_1", "begin_time": 0.5, "end_time": 1.5}
    >>> segment.update(text_tn="YES <PERIOD>", subsets=["{TEST}"])
    >>> audio = {"path": "a.wav", "speaker": "N/A", "subsets": ["{TEST}"]}
    >>> audio["segments"] = [segment]
    >>> text = json.dumps({"audios": [audio]})
    >>> _ = (root / "GigaSpeech.json").write_text(text)
    >>> prepare_gigaspeech(root, root / "save", [], [])
    >>> table = pyarrow.parquet.read_table(root / "save/test.parquet")
    >>> list(table.to_pylist()[0].values())
    ['a_1', 1.0, '$data_root/a.wav', 'N/A', 'YES.', 8000, 24000]
    """
    data_folder = check_folder(data_folder)
    if subset not in SUBSETS:
        raise BadInput(
            f"{data_folder}: no GigaSpeech subset {subset!r}; set subset to "
            f"one of {', '.join(SUBSETS)}"
        )
    order = make_order(
        "GigaSpeech",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        subset=subset,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(Path(data_folder), order["splits"], subset),
        columns=(*COLUMNS, *STRETCH),
        suffix=".parquet",
        max_rejected=max_rejected,
    )
