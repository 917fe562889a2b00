"""The output folder of stage 1: whose it is, what is there, when it is done.

``inputs/`` (the checked rows), ``settings.json`` (what decides the texts) and
``shards/`` while it is being filled; ``<split>.parquet``, ``rejected.jsonl``,
``metrics.json``, ``sheet.html`` and, last of all, ``provenance.json`` when it
is done.

Authors
 * The blsp_plugin team 2026
"""

import collections
import contextlib
import functools
import json
import os
import shutil
import zlib

import speechbrain
import torch
import transformers

import blsp_plugin
from blsp_plugin.continuation.plan import COLUMNS as PLAN_COLUMNS
from blsp_plugin.continuation.plan import Plan, write_plan
from blsp_plugin.continuation.settings import check_settings
from blsp_plugin.continuation.shards import (
    find_shards,
    scan_shards,
    shard_path,
)
from blsp_plugin.continuation.sheet import write_sheet
from blsp_plugin.continuation.table import COLUMNS, write_table
from blsp_plugin.data.manifest import check_rejected
from blsp_plugin.errors import BadInput
from blsp_plugin.files import (
    atomic_write,
    disk_errors,
    write_json,
    write_jsonl,
)

__all__ = ["OutputFolder", "parse_shard"]

RESERVED = {*COLUMNS.names, *(name for name, _ in PLAN_COLUMNS), "reason"}
_FORMAT = 2  # of the shards and tables; another one is another setting


def parse_shard(text):
    """Read "i/N", a job's part of a cluster's work.

    Arguments
    ---------
    text : str
        The first part is 0/N, the last one is N-1/N.

    Returns
    -------
    part : int
    parts : int

    Raises
    ------
    BadInput
        If it is none.

    Example
    -------
    >>> parse_shard("3/16")
    (3, 16)
    """
    try:
        part, parts = map(int, str(text).split("/"))
    except ValueError:
        part, parts = 0, 0
    if not 0 <= part < parts:
        raise BadInput(
            f"shard {text!r}: is not i/N with i from 0 to N-1; 0/1 is all"
        )
    return part, parts


class OutputFolder:
    """Where the responses to some rows are kept.

    Arguments
    ---------
    folder : str
        The folder; need not exist.
    continuation : Continuation
        What makes the responses.
    keep : sequence of str
        Further columns of the input for the tables.
    shard : str
        "i/N": the part of the work that is done here.
    """

    def __init__(self, folder, continuation, keep=(), shard="0/1"):
        self.folder = os.fspath(folder)
        self.continuation = continuation
        self.keep = list(keep)
        for name in self.keep:
            if name in RESERVED or self.keep.count(name) > 1:
                raise BadInput(
                    f"keep_columns: {name} is a column of the tables anyway, "
                    "or named twice; leave it out"
                )
        self.part, self.parts = parse_shard(shard)
        self.shards = self.path("shards")
        # Parts may share the folder, and their recased texts differ.
        one = self.parts == 1
        name = "inputs" if one else f"inputs-{self.part}-of-{self.parts}"
        self.inputs = self.path(name)

    @property
    def rejected_input(self):
        """File of the input rows that cannot be used."""
        return self._input("rejected.jsonl")

    def path(self, name):
        """Path of a file in it."""
        return os.path.join(self.folder, name)

    @functools.cached_property
    def plans(self):
        """The plan of each split, once `prepare` has made them."""
        return {split: Plan(self._plan_path(split)) for split in self._facts()}

    def prepare(self, splits, source, max_rejected=0.01):
        """Check the input and claim the folder for it; on one process.

        Arguments
        ---------
        splits : dict of callable
            By split, in order: its rows as `write_plan` takes them.
        source : dict
            For JSON; names what decides the rows: with an equal one they are
            not read again. Has ``files`` (by split: ``path``) and ``text``:
            how transcripts became texts.
        max_rejected : float
            Fraction of the rows that may be bad.

        Raises
        ------
        BadInput
            If more are, or the folder was begun with other settings.
        """
        source = {**source, "columns": self.keep}
        source["continuation"] = self.continuation.describe()
        source = json.loads(json.dumps(source))
        known = _read(self._input("inputs.json"))
        if known is None or known["source"] != source:
            self._write_inputs(splits, source, max_rejected)
        check_settings(self.path("settings.json"), self.settings())
        os.makedirs(self.shards, exist_ok=True)
        if not os.path.exists(self.path("settings.json")):
            write_json(self.settings(), self.path("settings.json"))

    def settings(self):
        """Everything that decides the texts.

        Returns
        -------
        dict
            For JSON.
        """
        return self._settings(_read(self._input("inputs.json")))

    def files(self):
        """The files that the rows came from: see `prepare`."""
        return _read(self._input("inputs.json"))["source"]["files"]

    def scan(self):
        """What is written already.

        Returns
        -------
        dict of Index
            By split.
        """
        return {
            split: scan_shards(self.shards, split, plan.n_requests)
            for split, plan in self.plans.items()
        }

    def shard(self, split, rank=0):
        """Path of a process' own shard."""
        return shard_path(self.shards, split, rank, self.part)

    def adopt(self, folders):
        """Bring the shards of other folders here; on one process.

        Arguments
        ---------
        folders : sequence of str
            Output folders of jobs with a ``shard`` of the same work.

        Raises
        ------
        BadInput
            If one is not of the same work, or something is still missing.
        """
        if all(index.done.all() for index in self.scan().values()):
            return
        for folder in folders:
            path = os.path.join(folder, "settings.json")
            if not os.path.exists(path):
                raise BadInput(
                    f"{folder}: no settings.json there; name output folders "
                    "of jobs that were begun with --shard"
                )
            check_settings(path, self.settings())
            if os.path.realpath(folder) == os.path.realpath(self.folder):
                continue
            for split in self.plans:
                shards = find_shards(os.path.join(folder, "shards"), split)
                for i, shard in enumerate(shards):
                    # A number that no job has, the folder's own: naming
                    # folders in another order must not mix them up.
                    part = 10**5 + zlib.crc32(os.path.realpath(folder).encode())
                    here = shard_path(self.shards, split, i, part)
                    with disk_errors(here):
                        shutil.copyfile(shard, f"{here}.tmp")
                        os.replace(f"{here}.tmp", here)
        for split, index in self.scan().items():
            missing = int((~index.done).sum())
            if missing:
                raise BadInput(
                    f"{self.folder}: {missing} of {len(index.done)} responses "
                    f"of {split} are in none of the folders; run the jobs "
                    "that lack them to their ends and name all folders"
                )

    def is_finished(self):
        """Whether the tables are there, of just these rows.

        Returns
        -------
        bool
        """
        provenance = _read(self.path("provenance.json"))
        there = all(
            os.path.isfile(self.path(f"{split}.parquet"))
            for split in self._facts()
        )
        return (
            there
            and provenance is not None
            and provenance.get("tables") == self._tables()
        )

    def finish(self, **metrics):
        """Make the tables and their papers of what the shards hold.

        Arguments
        ---------
        **metrics : dict of float
            Speeds of this run, for ``metrics.json``.

        Returns
        -------
        dict
            All metrics.

        Raises
        ------
        BadInput
            If a response is missing.
        """
        # What is being replaced must not look finished.
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path("provenance.json"))
        asks = [
            (behaviour.name, instruction)
            for behaviour, instruction in self.continuation.asks
        ]
        counts, n_input = collections.Counter(), 0
        path = self.path("rejected.jsonl")
        with disk_errors(path), atomic_write(path) as stream:
            with open(self.rejected_input, encoding="utf-8") as file:
                for line in file:
                    stream.write(line)
                    n_input += 1
            for split, index in self.scan().items():

                def reject(rows, split=split):
                    for row in rows:
                        row = {"id": row.pop("id"), "split": split, **row}
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")

                found = write_table(
                    self.path(f"{split}.parquet"),
                    self.plans[split],
                    index,
                    asks,
                    reject,
                )
                counts.update(found)
                counts[f"written_{split}"] = found["written"]
        with open(path, encoding="utf-8") as lines:
            write_sheet(
                self.path("sheet.html"),
                self.path(f"{next(iter(self.plans))}.parquet"),
                map(json.loads, lines),
                seed=self.continuation.seed,
            )
        metrics = {**self._metrics(counts, n_input), **metrics}
        write_json(metrics, self.path("metrics.json"))
        provenance = {
            "settings": self.settings(),
            "engine": self.continuation.engine.describe(),
            "versions": {
                module.__name__: module.__version__
                for module in (blsp_plugin, speechbrain, torch, transformers)
            },
            "counts": {k: v for k, v in counts.items() if isinstance(k, str)},
            "tables": self._tables(),
        }
        # Last, because its being there says that all is done.
        write_json(provenance, self.path("provenance.json"))
        return metrics

    def _metrics(self, counts, n_input):
        reasons = {check.reason: 0 for check in self.continuation.filters}
        reasons = collections.Counter(reasons, input=n_input)
        for key in counts:
            if isinstance(key, tuple):
                # "refused by the server (prompt too long)" is one reason.
                reasons[key[1].split(" (")[0]] += counts[key]
        numbers = {k: v for k, v in counts.items() if isinstance(k, str)}
        truncated = numbers.pop("truncated", 0)
        return {
            **numbers,
            "rejected": counts["rows"] - counts["written"],
            **{f"rejected_{k.replace(' ', '_')}": reasons[k] for k in reasons},
            "truncated_fraction": truncated / max(1, counts["written"]),
        }

    def _write_inputs(self, splits, source, max_rejected):
        os.makedirs(self.inputs, exist_ok=True)
        facts, rejected = {}, []
        for split, rows in splits.items():
            facts[split], bad = write_plan(
                self._plan_path(split) + ".tmp",
                rows(),
                self.continuation.choose,
                self.keep,
            )
            rejected += [
                {
                    "id": row_id,
                    "split": split,
                    "file": source["files"][split]["path"],
                    "row": number,
                    "reason": reason,
                }
                for row_id, number, reason in bad
            ]
        inputs = {"source": source, "facts": facts}
        check_settings(self.path("settings.json"), self._settings(inputs))
        # From here on this folder's: until all is replaced it has no input.
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._input("inputs.json"))
        path = self.rejected_input
        write_jsonl(rejected, path)
        n_all = len(rejected) + sum(fact["rows"] for fact in facts.values())
        check_rejected(len(rejected), n_all, max_rejected, "input rows", path)
        for split in facts:
            os.replace(self._plan_path(split) + ".tmp", self._plan_path(split))
        # Last, because it says that the plans are there.
        write_json(inputs, self._input("inputs.json"))

    def _settings(self, inputs):
        rows = {
            split: {"rows": fact["rows"], "content": fact["content"]}
            for split, fact in inputs["facts"].items()
        }
        return {
            "format": _FORMAT,
            **self.continuation.describe(),
            "text": inputs["source"]["text"],
            "inputs": rows,
        }

    def _input(self, name):
        return os.path.join(self.inputs, name)

    def _plan_path(self, split):
        return self._input(f"{split}.arrow")

    def _facts(self):
        return _read(self._input("inputs.json"))["facts"]

    def _tables(self):
        return {split: fact["table"] for split, fact in self._facts().items()}


def _read(path):
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None
