"""The one entry by which recipes get their manifests.

Authors
 * The blsp_plugin team 2026
"""

import inspect
import os
from typing import NamedTuple

from blsp_plugin.data.common_voice import find_locales, prepare_common_voice
from blsp_plugin.data.covost import find_pairs, prepare_covost
from blsp_plugin.data.fleurs import find_languages, prepare_fleurs
from blsp_plugin.data.fluent_speech import TABLE, prepare_fluent_speech
from blsp_plugin.data.gigaspeech import METADATA, prepare_gigaspeech
from blsp_plugin.data.librispeech import find_splits, prepare_librispeech
from blsp_plugin.data.must_c import find_targets, prepare_must_c
from blsp_plugin.data.slurp import find_slurp, prepare_slurp
from blsp_plugin.data.snips import find_snips, prepare_snips
from blsp_plugin.data.speech_folder import find_tables, prepare_speech_folder
from blsp_plugin.data.tedlium import find_releases, prepare_tedlium
from blsp_plugin.data.toolkit import (
    ToolkitScript,
    prepare_with_toolkit,
    run_common_voice,
    run_covost,
    run_gigaspeech,
    run_librispeech,
)
from blsp_plugin.errors import BadInput

__all__ = ["CORPORA", "Corpus", "CorpusFiles", "prepare_corpus"]


class Corpus(NamedTuple):
    """A corpus that can be prepared.

    Arguments
    ---------
    name : str
        For messages.
    is_there : callable
        Whether a folder holds it.
    prepare : callable
        This package's preparer.
    script : ToolkitScript, optional
        The toolkit's, if it can be called from here.
    own_names : bool
        Whether a recipe's lists name its splits. Otherwise they say only
        whether the preparer's own are wanted.
    """

    name: str
    is_there: callable
    prepare: callable
    script: ToolkitScript = None
    own_names: bool = False


# The first that is there is it: CoVoST is a Common Voice folder with more, and
# looking for LibriSpeech's transcripts goes deep.
CORPORA = (
    Corpus(
        "GigaSpeech",
        lambda folder: os.path.isfile(os.path.join(folder, METADATA)),
        prepare_gigaspeech,
        ToolkitScript(
            "GigaSpeech/gigaspeech_prepare.py",
            "prepare_gigaspeech",
            run_gigaspeech,
        ),
    ),
    Corpus(
        "CoVoST 2",
        find_pairs,
        prepare_covost,
        ToolkitScript("CoVoST/covost_prepare.py", "prepare_covost", run_covost),
    ),
    Corpus(
        "Common Voice",
        find_locales,
        prepare_common_voice,
        ToolkitScript(
            "CommonVoice/common_voice_prepare.py",
            "prepare_common_voice",
            run_common_voice,
        ),
    ),
    Corpus("TED-LIUM", find_releases, prepare_tedlium),
    Corpus("MuST-C", find_targets, prepare_must_c),
    Corpus("SLURP", lambda folder: all(find_slurp(folder)), prepare_slurp),
    Corpus(
        "Fluent Speech Commands",
        lambda folder: any(
            os.path.isfile(os.path.join(folder, TABLE.format(split)))
            for split in ("train", "valid", "test")
        ),
        prepare_fluent_speech,
    ),
    Corpus("Snips", find_snips, prepare_snips),
    Corpus("FLEURS", find_languages, prepare_fleurs),
    Corpus("speech folder", find_tables, prepare_speech_folder),
    Corpus(
        "LibriSpeech",
        find_splits,
        prepare_librispeech,
        ToolkitScript(
            "LibriSpeech/librispeech_prepare.py",
            "prepare_librispeech",
            run_librispeech,
        ),
        own_names=True,
    ),
)


class CorpusFiles(NamedTuple):
    """Where a corpus' manifests are, CSV or Parquet.

    `read_manifest` says if one is missing.

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


def _find_manifests(folder, data_root):
    paths = []
    for name in ("train", "valid", "test"):
        table = os.path.join(folder, f"{name}.csv")
        columnar = os.path.join(folder, f"{name}.parquet")
        only_that = os.path.isfile(columnar) and not os.path.isfile(table)
        paths.append(columnar if only_that else table)
    return CorpusFiles(*paths, os.fspath(data_root))


def _merge_options(corpus, splits, options):
    unwanted = {name: [] for name in splits if not splits[name]}
    if not corpus.own_names:
        taken = inspect.signature(corpus.prepare).parameters
        splits = {name: list(taken[name].default) for name in splits}
    return {**splits, **(options or {}), **unwanted}


def prepare_corpus(
    data_folder=None,
    save_folder=None,
    train_splits=("train-clean-100",),
    valid_splits=("dev-clean",),
    test_splits=("test-clean",),
    skip_prep=False,
    corpus_options=None,
    speechbrain_recipes=None,
):
    """Find or make the train, valid and test manifest of a corpus.

    Arguments
    ---------
    data_folder : str or os.PathLike, optional
        None or "starter": the starter corpus. A folder that holds any of
        ``train``, ``valid`` and ``test``, as ``.csv`` or ``.parquet``: those,
        as they are. Else one of `CORPORA`, as it is distributed.
    save_folder : str or os.PathLike, optional
        Where manifests go that have to be made.
    train_splits : sequence of str
        LibriSpeech splits to train on. Of any other corpus these are its
        train set (what its preparer takes by default), unless the list is
        empty, which means none; other ones can be named in
        ``corpus_options``.
    valid_splits : sequence of str
        Likewise, to validate on: its dev set.
    test_splits : sequence of str
        Likewise, to test on: its test set.
    skip_prep : bool
        If True, manifests that would have to be made are taken to be in
        ``save_folder`` already.
    corpus_options : dict, optional
        Further arguments of the corpus' preparer: see `prepare_common_voice`,
        `prepare_covost`, `prepare_fleurs`, `prepare_fluent_speech`,
        `prepare_gigaspeech`, `prepare_librispeech`, `prepare_must_c`,
        `prepare_slurp`, `prepare_snips`, `prepare_speech_folder`,
        `prepare_tedlium`.
    speechbrain_recipes : str or os.PathLike, optional
        A clone of SpeechBrain's repository: its own script prepares
        LibriSpeech, Common Voice, CoVoST 2 or GigaSpeech, and gets those
        options.

    Returns
    -------
    CorpusFiles
        Paths of the three manifests, and what ``$data_root`` stands for.

    Raises
    ------
    BadInput
        The folder is missing or holds nothing of that kind, an option is
        not the preparer's, or a script is asked that cannot be called.

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
        return _find_manifests(folder, folder)
    if not os.path.isdir(data_folder):
        raise BadInput(f"{data_folder}: no such folder; correct data_folder")
    files = _find_manifests(data_folder, data_folder)
    if any(os.path.isfile(path) for path in files[:3]):
        return files
    corpus = next((c for c in CORPORA if c.is_there(data_folder)), None)
    if corpus is None:
        known = ", ".join(corpus.name for corpus in CORPORA)
        raise BadInput(
            f"{data_folder}: holds neither train.csv, valid.csv, test.csv (or "
            f".parquet) nor one of {known} as distributed; correct data_folder"
        )
    if save_folder is None:
        raise BadInput(
            f"{data_folder}: is {corpus.name}; name a save_folder for its CSV"
        )
    if skip_prep:
        return _find_manifests(save_folder, data_folder)
    splits = {
        "train_splits": train_splits,
        "valid_splits": valid_splits,
        "test_splits": test_splits,
    }
    options = _merge_options(corpus, splits, corpus_options)
    prepare, where = corpus.prepare, (data_folder, save_folder)
    if speechbrain_recipes is not None:
        if corpus.script is None:
            raise BadInput(
                f"speechbrain_recipes: {data_folder} is {corpus.name}, whose "
                "script of the toolkit cannot be called from here; set it to "
                "null"
            )
        prepare = prepare_with_toolkit
        where = (speechbrain_recipes, corpus.script, *where)
    try:
        inspect.signature(prepare).bind(*where, **options)
    except TypeError as error:
        raise BadInput(
            f"corpus_options: {error}; {corpus.name} takes "
            f"{', '.join(list(inspect.signature(prepare).parameters)[2:])}"
        ) from error
    prepare(*where, **options)
    return _find_manifests(save_folder, data_folder)
