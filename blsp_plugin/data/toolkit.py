"""The toolkit's own preparation scripts, run from a clone of its repository.

SpeechBrain's wheel has no ``recipes/``; who has a clone may have a corpus
prepared by the toolkit's script for it. The scripts' files are brought to one
schema: their columns get the names of `COLUMNS`, and nothing else is changed.

Authors
 * The blsp_plugin team 2026
"""

import csv
import importlib.util
import os
import shutil
import sys
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from blsp_plugin.data.common_voice import pick_locale
from blsp_plugin.data.covost import pick_pair, read_pair
from blsp_plugin.data.gigaspeech import METADATA
from blsp_plugin.data.manifest import ALIASES, write_csv
from blsp_plugin.data.preparation import (
    COLUMNS,
    check_folder,
    forget_prepared,
    is_prepared,
    make_order,
    mark_prepared,
)
from blsp_plugin.errors import BadInput

__all__ = [
    "ToolkitScript",
    "prepare_with_toolkit",
    "run_common_voice",
    "run_covost",
    "run_gigaspeech",
    "run_librispeech",
]

logger = get_logger(__name__)

# What the scripts call the files, by manifest.
OUTPUTS = {"train": "train", "valid": "dev", "test": "test"}


class ToolkitScript(NamedTuple):
    """A preparation script of the toolkit.

    Arguments
    ---------
    file : str
        Under ``recipes/`` of a clone.
    function : str
        What to call in it.
    run : callable
        Knows its arguments: takes the function, the data folder, a folder for
        the script's files, the splits by manifest, and options; returns the
        script's files by manifest.
    """

    file: str
    function: str
    run: callable


def prepare_with_toolkit(
    clone,
    script,
    data_folder,
    save_folder,
    train_splits,
    valid_splits,
    test_splits,
    **options,
):
    """Have the toolkit's own script prepare a corpus.

    Writes ``train.csv``, ``valid.csv`` and ``test.csv`` as the preparers of
    this package do, of the script's rows; the script's own files stay in
    ``<save_folder>/toolkit``. Done once: a second call with the same order
    returns at once.

    Arguments
    ---------
    clone : str or os.PathLike
        Of github.com/speechbrain/speechbrain.
    script : ToolkitScript
        The corpus' own.
    data_folder : str or os.PathLike
        The corpus.
    save_folder : str or os.PathLike
        Where the CSV files go.
    train_splits : sequence of str
        Splits of ``train.csv``; with none the file is not written.
    valid_splits : sequence of str
        Those of ``valid.csv``.
    test_splits : sequence of str
        Those of ``test.csv``.
    **options
        For ``script.run``, which passes on what is the script's.

    Raises
    ------
    BadInput
        The script is missing, lacks a package, or fails.
    """
    data_folder = os.path.abspath(check_folder(data_folder))
    order = make_order(
        script.function,
        data_folder,
        train_splits,
        valid_splits,
        test_splits,
        clone=os.path.abspath(clone),
        options=options,
    )
    if is_prepared(order, save_folder):
        return
    work = os.path.join(os.path.abspath(save_folder), "toolkit")
    # Of another order: the scripts would take its files for theirs.
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    path = os.path.join(clone, "recipes", script.file)
    # The script's worker processes import it by its name.
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        prepare = _load_function(path, script.function)
        made = script.run(
            prepare, data_folder, work, order["splits"], **options
        )
    except BadInput:
        raise
    except Exception as error:  # whatever a script of somebody else raises
        raise BadInput(
            f"{path}: failed on {data_folder} with {error!r}; mend what it "
            "names, or set speechbrain_recipes to null"
        ) from error
    finally:
        sys.path.pop(0)
    forget_prepared(save_folder)
    for name, files in made.items():
        path = os.path.join(save_folder, f"{name}.csv")
        write_csv(_merged(files), path, _columns(files))
    mark_prepared(order, save_folder, [f"{name}.csv" for name in made])


def _load_function(path, function):
    name = os.path.splitext(os.path.basename(path))[0]
    if not os.path.isfile(path):
        raise BadInput(
            f"{path}: no such script; speechbrain_recipes must be a clone of "
            "github.com/speechbrain/speechbrain"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)
    except ImportError as error:
        raise BadInput(
            f"{path}: needs {error.name}, which is not installed; run pip "
            f"install {error.name}"
        ) from error
    except AttributeError as error:
        raise BadInput(
            f"{path}: has no {function}; take a newer clone"
        ) from error


def _renamed(column):
    """What this package calls a column of the toolkit's."""
    for name, others in ALIASES.items():
        if column in others:
            return name
    return column


def _columns(files):
    """The schema's columns, and the further ones of the script."""
    with open(files[0], encoding="utf-8", newline="") as stream:
        there = [_renamed(column) for column in next(csv.reader(stream))]
    return [*COLUMNS, *[name for name in there if name not in COLUMNS]]


def _merged(files):
    for file in files:
        with open(file, encoding="utf-8", newline="") as stream:
            for record in csv.DictReader(stream):
                # What a script doesn't write, such as a speaker, is empty.
                row = dict.fromkeys(COLUMNS, "")
                row.update({_renamed(k): v for k, v in record.items()})
                yield row


def run_librispeech(prepare, data_folder, work, splits, **options):
    """Run ``librispeech_prepare.py``: one CSV file a split.

    Arguments
    ---------
    prepare : callable
        Its function.
    data_folder : str
        The corpus.
    work : str
        Where the script's files go.
    splits : dict of list of str
        By manifest.
    **options
        For the script.

    Returns
    -------
    dict of list of str
        Files by manifest.
    """
    # It cuts the folder's name off the paths, and not the slash behind it.
    prepare(os.path.join(data_folder, ""), work, *splits.values(), **options)
    return {
        name: [os.path.join(work, f"{part}.csv") for part in parts]
        for name, parts in splits.items()
        if parts
    }


def run_common_voice(prepare, data_folder, work, splits, language=None, **more):
    """Run ``common_voice_prepare.py``; see `run_librispeech`.

    Arguments
    ---------
    prepare, data_folder, work, splits, **more
        As there.
    language : str, optional
        The locale. Default: the only one.

    Returns
    -------
    dict of list of str
        Files by manifest.
    """
    folder = pick_locale(data_folder, language)
    tables = []
    for name, part in _only(splits).items():
        # The script wants three tables: one that is not asked for is empty.
        none = _table(work, name, "client_id\tpath\tsentence\n")
        tables.append(str(folder / f"{part}.tsv") if part else none)
    options = {"language": folder.name, **more}
    prepare(str(folder), work, *tables, **options)
    return _made(work, splits)


def run_covost(
    prepare, data_folder, work, splits, source=None, target=None, **more
):
    """Run ``covost_prepare.py``; see `run_librispeech`.

    The script takes one table a split and finds the columns by their place:
    tables of that form are made of whichever there are.

    Arguments
    ---------
    prepare, data_folder, work, splits, **more
        As there; ``convert_to_wav`` is False if it is not given.
    source : str, optional
        Spoken language. Default: the only one.
    target : str, optional
        Language of the translations. Default: the only one.

    Returns
    -------
    dict of list of str
        Files by manifest.
    """
    pair = pick_pair(data_folder, source, target)
    columns = ("path", "sentence", "translation", "client_id")
    tables = []
    for name, part in _only(splits).items():
        lines = ["\t".join(columns)]
        for *_, record, reason in read_pair(pair, [part] if part else []):
            if reason:
                logger.warning("%s: %s, left out", record.get("path"), reason)
            else:
                lines.append("\t".join(record[column] for column in columns))
        tables.append(_table(work, name, "\n".join(lines) + "\n"))
    options = {
        "src_language": pair.source,
        "tgt_language": pair.target,
        "convert_to_wav": False,
        **more,
    }
    prepare(str(pair.folder), work, *tables, **options)
    return _made(work, splits)


def run_gigaspeech(prepare, data_folder, work, splits, subset="XL", **more):
    """Run ``gigaspeech_prepare.py``; see `run_librispeech`.

    Arguments
    ---------
    prepare, data_folder, work, splits, **more
        As there. If they are not given, ``convert_opus_to_wav`` is False, and
        ``punctuation`` True: without it the script leaves ``<COMMA>`` and the
        other tags in the text.
    subset : str
        What to train on.

    Returns
    -------
    dict of list of str
        Files by manifest.
    """
    its_own = {"train": subset, "valid": "DEV", "test": "TEST"}
    chosen = [its_own[name] for name, part in _only(splits).items() if part]
    outputs = [os.path.join(work, f"{name}.csv") for name in OUTPUTS.values()]
    options = {
        "json_file": os.path.join(data_folder, METADATA),
        "convert_opus_to_wav": False,
        "punctuation": True,
        **more,
    }
    prepare(data_folder, work, chosen, *outputs, **options)
    return _made(work, splits)


def _only(splits):
    """The one split of each manifest, or None."""
    for name, parts in splits.items():
        if len(parts) > 1:
            raise BadInput(
                f"{name}_splits: the toolkit's script takes one split, not "
                f"{', '.join(parts)}; name one"
            )
    return {name: parts[0] if parts else None for name, parts in splits.items()}


def _table(work, name, text):
    path = os.path.join(work, f"{name}.tsv")
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
    return path


def _made(work, splits):
    return {
        name: [os.path.join(work, f"{OUTPUTS[name]}.csv")]
        for name, parts in splits.items()
        if parts
    }
