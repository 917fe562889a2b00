"""The output folder of stage 1: whose it is, what is there, when it is done.

``settings.json`` (what decides the texts) and ``shards/`` while it is being
filled; ``<split>.parquet``, ``rejected.jsonl``, ``metrics.json`` and, last of
all, ``provenance.json`` when it is done.

Authors
 * The blsp_plugin team 2026
"""

import collections
import json
import os

import speechbrain
import torch
import transformers

import blsp_plugin
from blsp_plugin.continuation.writer import (
    check_settings,
    hash_rows,
    scan_shards,
    write_table,
)
from blsp_plugin.data.manifest import check_rejected
from blsp_plugin.files import write_json, write_jsonl

__all__ = ["OutputFolder"]

_FORMAT = 1  # of the shards and tables; another one is another setting
_TEXT = ("id", "text")  # what of a row the LLM gets to see


class OutputFolder:
    """Where the responses to some rows are kept.

    Arguments
    ---------
    folder : str
        The folder; need not exist.
    continuation : Continuation
        What makes the responses.
    splits : dict of list of dict
        Rows by split, with ``id``, ``wav``, ``duration``, ``transcript``,
        ``text`` and the ``keep`` columns.
    keep : sequence of str
        Further columns for the tables.
    """

    def __init__(self, folder, continuation, splits, keep=()):
        self.folder = os.fspath(folder)
        self.continuation = continuation
        self.splits = splits
        self.keep = list(keep)
        self.shards = self.path("shards")

    def path(self, name):
        """Path of a file in it."""
        return os.path.join(self.folder, name)

    def settings(self):
        """Everything that decides the texts.

        Returns
        -------
        dict
            For JSON.
        """
        inputs = {
            split: {"rows": len(rows), "content": hash_rows(rows, _TEXT)}
            for split, rows in self.splits.items()
        }
        settings = self.continuation.describe()
        return {"format": _FORMAT, **settings, "inputs": inputs}

    def check(self):
        """Check that the folder was not begun with other settings.

        Raises
        ------
        BadInput
            Naming what differs.
        """
        check_settings(self.path("settings.json"), self.settings())

    def begin(self, rejected_input, max_rejected=0.01):
        """Claim the folder for these settings, unless its input is bad.

        Arguments
        ---------
        rejected_input : sequence of dict
            Input rows that cannot be used, with their reasons.
        max_rejected : float
            Fraction of the input that may be so.

        Raises
        ------
        BadInput
            If more is; nothing but ``rejected.jsonl`` is written then.
        """
        path = self.path("rejected.jsonl")
        write_jsonl(rejected_input, path)
        bad = len(rejected_input)
        n_all = bad + sum(len(rows) for rows in self.splits.values())
        check_rejected(bad, n_all, max_rejected, "input rows", path)
        os.makedirs(self.shards, exist_ok=True)
        if not os.path.exists(self.path("settings.json")):
            write_json(self.settings(), self.path("settings.json"))

    def scan(self):
        """What is written already.

        Returns
        -------
        dict of dict
            By split: from the ID to the place of its record.
        """
        return {split: scan_shards(self.shards, split) for split in self.splits}

    def is_finished(self):
        """Whether the tables are there, of just these rows.

        Returns
        -------
        bool
        """
        try:
            with open(self.path("provenance.json"), encoding="utf-8") as file:
                tables = json.load(file)["tables"]
        except (OSError, ValueError, KeyError):
            return False
        names = (f"{split}.parquet" for split in self.splits)
        there = all(os.path.isfile(self.path(name)) for name in names)
        return there and tables == self._tables()

    def finish(self, rejected_input=(), **metrics):
        """Make the tables and their papers of what the shards hold.

        Arguments
        ---------
        rejected_input : sequence of dict
            Input rows that nothing was asked about, with their reasons.
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
        rejected, counts = list(rejected_input), collections.Counter()
        reasons = {check.reason: 0 for check in self.continuation.filters}
        reasons = collections.Counter(reasons, input=len(rejected))
        for split, rows in self.splits.items():
            bad, found = write_table(
                self.path(f"{split}.parquet"),
                self.continuation.items(rows),
                scan_shards(self.shards, split),
                self.keep,
            )
            rejected += [
                {"id": record.pop("ID"), "split": split, **record}
                for record in bad
            ]
            reasons.update(record["reason"] for record in bad)
            counts.update(found)
            counts[f"written_{split}"] = found["written"]
        write_jsonl(rejected, self.path("rejected.jsonl"))
        truncated = counts.pop("truncated")
        metrics = {
            **counts,
            "rejected": counts["rows"] - counts["written"],
            **{f"rejected_{k.replace(' ', '_')}": reasons[k] for k in reasons},
            "truncated_fraction": truncated / max(1, counts["written"]),
            **metrics,
        }
        write_json(metrics, self.path("metrics.json"))
        provenance = {
            "settings": self.settings(),
            "engine": self.continuation.engine.describe(),
            "versions": {
                module.__name__: module.__version__
                for module in (blsp_plugin, speechbrain, torch, transformers)
            },
            "counts": counts,
            "tables": self._tables(),
        }
        # Last, because its being there says that all is done.
        write_json(provenance, self.path("provenance.json"))
        return metrics

    def _tables(self):
        keys = (*_TEXT, "transcript", "wav", "duration", *self.keep)
        return {
            split: hash_rows(rows, keys) for split, rows in self.splits.items()
        }
