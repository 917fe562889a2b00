"""Evaluation folders as they lie on the disk, for reports over many of them.

Answers are read by file and only when asked for, so that the memory of a
report is that of one task of one run.

Authors
 * The blsp_plugin team 2026
"""

import json
import os
from dataclasses import dataclass, field

from speechbrain.utils.logger import get_logger

from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.metrics import ErrorRates

__all__ = ["Run", "TaskFacts", "find_runs"]

logger = get_logger(__name__)

# Figures of every system beside those of the metric.
_NOT_COLUMNS = (
    "rtf",
    "first_token_seconds",
    "tokens_per_second",
    "p_vs_cascade",
    "words",
)

# What a folder without evaluation.json does not say.
_LABELS = {
    "gold": "gold transcript -> LLM",
    "cascade": "Whisper -> LLM (cascade)",
    "speechllm": "speech LLM",
    "untrained": "untrained adapter",
    "whisper": "Whisper alone",
}


@dataclass
class TaskFacts:
    """What a run says about one of its tasks.

    Arguments
    ---------
    kind : str
        "asr", "st", "slu", "chat", ...; "" where it is not known.
    instruction : str
        As the LLM got it.
    metric : str
        The metric, with its normaliser or signature.
    columns : dict
        Figure -> its head in a table.
    main : str
        The figure by which systems are compared.
    higher_is_better : bool
        Of the main figure and of the clips' scores.
    systems : dict
        Name -> label, in the order of the table.
    clips : int, optional
        How many were scored.
    hours : float, optional
        Of audio.
    rejected : int, optional
        Clips that could not be read.
    """

    kind: str = ""
    instruction: str = ""
    metric: str = ""
    columns: dict = field(default_factory=dict)
    main: str = ""
    higher_is_better: bool = False
    systems: dict = field(default_factory=dict)
    clips: int = None
    hours: float = None
    rejected: int = None


@dataclass
class Run:
    """One evaluation folder.

    Arguments
    ---------
    name : str
        For the reader: its path under the folder that was searched.
    folder : str
        Where it is.
    metrics : dict
        ``<task>.<system>.<figure>`` -> number.
    tasks : dict
        Name -> `TaskFacts`.
    """

    name: str
    folder: str
    metrics: dict
    tasks: dict

    def figure(self, task, system, name):
        """A number of ``metrics.json``.

        Arguments
        ---------
        task : str
            Its name.
        system : str
            Its name.
        name : str
            Of the figure.

        Returns
        -------
        float or None
            None where there is none.
        """
        value = self.metrics.get(f"{task}.{system}.{name}")
        number = isinstance(value, int | float)
        return value if number and not isinstance(value, bool) else None

    def records(self, task, system):
        """Read what a system said, clip by clip.

        Arguments
        ---------
        task : str
            Its name.
        system : str
            Its name.

        Yields
        ------
        dict
            A line of the predictions, its texts really texts. Torn lines are
            left out, and so is a whole file that is missing.
        """
        path = os.path.join(
            self.folder, "predictions", f"{task}.{system}.jsonl"
        )
        if not os.path.isfile(path):
            return
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "id" in record:
                    for key in ("id", "reference", "hypothesis"):
                        value = record.get(key)
                        record[key] = "" if value is None else str(value)
                    yield record


def find_runs(folder):
    """All finished evaluations under a folder, in the order of their paths.

    Folders named ``debug`` hold first looks at a few clips and are left out.

    Arguments
    ---------
    folder : str
        Searched with all its subfolders; may be an evaluation's own.

    Returns
    -------
    list of Run
        Not empty.

    Raises
    ------
    BadInput
        No such folder, no finished evaluation in it, or a file of one that is
        damaged.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise BadInput(f"{folder}: no such folder; give one with evaluations")
    runs = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "debug")
        if "predictions" not in folders:
            continue
        folders.remove("predictions")
        if "metrics.json" in files:
            name = os.path.relpath(path, folder)
            if name == ".":
                name = os.path.basename(os.path.abspath(path))
            run = _open(name, path)
            if run.tasks:
                runs.append(run)
        else:
            logger.warning(
                "%s has no metrics.json and is left out; run its evaluation "
                "again to finish it",
                path,
            )
    if not runs:
        raise BadInput(
            f"{folder}: no evaluation in it (predictions/ and metrics.json); "
            "run recipes/asr/evaluate.py first"
        )
    return runs


def _open(name, folder):
    """Read the two small files of a run."""
    metrics = _read_object(os.path.join(folder, "metrics.json"))
    path = os.path.join(folder, "evaluation.json")
    said = _read_object(path) if os.path.isfile(path) else {}
    said = said.get("tasks")
    said = said if isinstance(said, dict) else {}
    found = _answered(folder, metrics)
    tasks = {}
    for task in [*said, *(task for task in found if task not in said)]:
        guess = _guess(task, found.get(task, []), metrics)
        given = said.get(task)
        given = given if isinstance(given, dict) else {}
        tasks[task] = _merge(guess, given)
    return Run(name, folder, metrics, tasks)


def _merge(guess, given):
    """Facts as they were written; those of another type are not believed."""
    numbers = ("clips", "hours", "rejected")
    for key, default in vars(guess).items():
        value = given.get(key)
        kind = (int, float) if key in numbers else type(default)
        if isinstance(value, kind) and value != {}:
            setattr(guess, key, value)
    for key in ("columns", "systems"):
        texts = {str(k): str(v) for k, v in getattr(guess, key).items()}
        setattr(guess, key, texts)
    if guess.main not in guess.columns and guess.columns:
        guess.main = next(iter(guess.columns))
    return guess


def _read_object(path):
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}: not readable as JSON ({error}); run the evaluation again"
        ) from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not a JSON object; run the evaluation again")
    return value


def _answered(folder, metrics):
    """Tasks and their systems, by the files that have figures as well."""
    # The order of metrics.json is that of the table.
    order = {}
    for place, key in enumerate(metrics):
        order.setdefault(key.rpartition(".")[0], place)
    stems = [
        name.removesuffix(".jsonl")
        for name in os.listdir(os.path.join(folder, "predictions"))
        if name.endswith(".jsonl")
    ]
    found = {}
    for stem in sorted((s for s in stems if s in order), key=order.get):
        task, _, system = stem.rpartition(".")
        found.setdefault(task, []).append(system)
    return found


def _guess(task, systems, metrics):
    """Facts of a task that evaluation.json does not tell."""
    figures = []
    for system in systems:
        start = f"{task}.{system}."
        figures += [
            key[len(start) :] for key in metrics if key.startswith(start)
        ]
    figures = dict.fromkeys(figures)
    word_errors = "wer" in figures
    columns = ErrorRates(resamples=0).columns if word_errors else {}
    columns = {name: columns[name] for name in columns if name in figures} or {
        name: name
        for name in figures
        if name not in _NOT_COLUMNS and not name.endswith(("_low", "_high"))
    }
    return TaskFacts(
        kind="asr" if word_errors else "",
        columns=columns,
        main=next(iter(columns), ""),
        systems={name: _LABELS.get(name, name) for name in systems},
        clips=metrics.get(f"{task}.clips"),
        rejected=metrics.get(f"{task}.rejected"),
    )
