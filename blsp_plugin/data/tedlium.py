"""TED-LIUM, releases 2 and 3 (arXiv 1805.04699), as the toolkit's CSV files.

Clips are stretches of talks: the STM files say from when to when. Words stay
as found, lower-case and without punctuation; what is no word goes, and the
apostrophes that stand alone ("it 's") join their words again.

Authors
 * The blsp_plugin team 2026
"""

import re
from pathlib import Path

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

__all__ = ["PUBLISHED", "find_releases", "prepare_tedlium", "tidy_words"]

# Release 3 is in its `legacy` folder what release 2 is, with more to train on.
SPLITS = ("train", "dev", "test")
IGNORED = "ignore_time_segment_in_scoring"
FORMS = (".sph", ".wav", ".flac")
# Segments to score, in results of Kaldi's egs/tedlium and of RWTH's
# returnn-experiments.
PUBLISHED = [{"dev": 507, "test": 1155}, {"dev": 507, "test": 1157}]
# <unk>, <sil>, {NOISE}, and "(2)" for the second way to say a word.
NO_WORD = re.compile(r"<[^<>\s]*>|\{[^{}\s]*\}|\(\d+\)")
DETACHED = re.compile(r"(?<=\w) '(?=(?:s|t|d|m|re|ve|ll)\b)")


def find_releases(data_folder):
    """Find TED-LIUM in a folder.

    Arguments
    ---------
    data_folder : str or os.PathLike
        ``TEDLIUM_release2``, ``TEDLIUM_release-3``, its ``legacy``, or a
        folder that holds them.

    Returns
    -------
    dict of pathlib.Path
        The folder of the splits, by the release's own.

    Example
    -------
    >>> root = getfixture("tmp_path")
    >>> (root / "TEDLIUM_release-3/legacy/test/stm").mkdir(parents=True)
    >>> list(find_releases(root))
    ['TEDLIUM_release-3']
    """
    root = Path(data_folder)
    releases = {}
    for folder in [root, *sorted(root.glob("TEDLIUM_release*"))]:
        for holder in (folder / "legacy", folder):
            if any((holder / split / "stm").is_dir() for split in SPLITS):
                releases[folder.name] = holder
                break
    return releases


def tidy_words(text):
    """Leave the words of a transcript, joined as they are written.

    Arguments
    ---------
    text : str
        As in the corpus.

    Returns
    -------
    str

    Example
    -------
    >>> tidy_words("<unk> we 're glad(2) it 's 'bout {NOISE} time")
    "we're glad it's 'bout time"
    """
    text = " ".join(NO_WORD.sub(" ", text).split())
    return DETACHED.sub("'", text)


def _find_audio(folder, talk):
    """The talk's recording; the SPHERE file if there is none."""
    places = [folder / kind for kind in ("sph", "wav", "flac")]
    paths = [place / f"{talk}{form}" for form in FORMS for place in places]
    return next((path for path in paths if path.is_file()), paths[0])


def _read_splits(folder, splits):
    """Yield (manifest name, `Clip` or `Rejected` or None) of all splits."""
    for split in sum(splits.values(), []):
        if not (folder / split / "stm").is_dir():
            raise BadInput(
                f"{folder}: no {split}/stm; extract TED-LIUM's {split}, or "
                "name another split"
            )
    for name, parts in splits.items():
        for split in parts:
            for file in sorted((folder / split / "stm").glob("*.stm")):
                for item in _read_talk(folder / split, file, name):
                    yield name, item


def _read_talk(folder, file, name):
    for row, line in read_lines(file):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            talk, _, speaker, begin, end, labels, *text = line.split(None, 6)
            begin, end = float(begin), float(end)
            if not labels.startswith("<"):
                raise ValueError
        except ValueError:
            reason = (
                "not an STM line (file channel speaker start end <labels> "
                "words); restore it"
            )
            yield Rejected(line.split()[0], str(file), row, reason)
            continue
        text = " ".join(text).strip()
        words = tidy_words(text)
        # No part of the official test set, which is scored without it.
        if text == IGNORED or (text and not words and name != "test"):
            yield None
            continue
        # As Kaldi names them: hundredths of a second.
        utterance = f"{talk}-{round(begin * 100):07d}-{round(end * 100):07d}"
        columns = {"spk_id": speaker, "wrd": words}
        path = _find_audio(folder, talk)
        clip = (utterance, path, columns, str(file), row)
        yield Clip(*clip, stretch=(begin, end))


def prepare_tedlium(
    data_folder,
    save_folder,
    train_splits=("train",),
    valid_splits=("dev",),
    test_splits=("test",),
    release=None,
    max_rejected=0.01,
):
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of TED-LIUM.

    Columns ``ID, duration, wav, spk_id, wrd, start, stop``: seconds of the
    segment, ``$data_root/...``, the talk's speaker, its words without
    ``<unk>`` and the like, and samples of the recording. Segments that are
    marked not to be scored, and in train and valid those without a word, are
    left out and counted in ``prepared.json``. Done once: a second call with
    the same order returns at once. Lines that cannot be used are listed in
    ``rejected.jsonl``.

    Arguments
    ---------
    data_folder : str or os.PathLike
        A release, as `find_releases` finds it: ``{train,dev,test}/stm`` and
        ``/sph``; WAV or FLAC files of the same names do as well.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Of train, dev and test, those of ``train.csv``. With none the file is
        not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    release : str, optional
        The release's folder. Default: the only one that is there.
    max_rejected : float
        The fraction of segments that may be bad.

    Raises
    ------
    BadInput
        The release or a split is missing, or too many segments are bad.

    Example
    -------
    >>> import soundfile
    >>> root = getfixture("tmp_path")
    >>> for kind in ("stm", "sph"):
    ...     (root / "test" / kind).mkdir(parents=True)
    >>> soundfile.write(root / "test/sph/a.wav", [0.0] * 32000, 16000)
    >>> line = "a 1 Ann 0.50 1.50 <o,f0,female> that 's it"
    >>> _ = (root / "test/stm/a.stm").write_text(line)
    >>> prepare_tedlium(root, root / "csv", [], [])
    >>> (root / "csv/test.csv").read_text().splitlines()[1]
    "a-0000050-0000150,1.0,$data_root/test/sph/a.wav,Ann,that's it,8000,24000"
    """
    there = find_releases(check_folder(data_folder))
    release = pick_one(data_folder, "TED-LIUM", "release", there, release)
    order = make_order(
        "TED-LIUM",
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        release=release,
    )
    prepare_manifests(
        order,
        save_folder,
        _read_splits(there[release], order["splits"]),
        columns=(*COLUMNS, *STRETCH),
        max_rejected=max_rejected,
        published=PUBLISHED,
    )
