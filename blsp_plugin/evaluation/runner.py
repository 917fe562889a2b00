"""Runs systems on a task: resumable, sharded over processes, same clips.

Authors
 * The blsp_plugin team 2026
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.manifest import Rejected
from blsp_plugin.distributed import ranks
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.metrics import paired_p_value
from blsp_plugin.evaluation.records import Records
from blsp_plugin.evaluation.systems import Clip
from blsp_plugin.files import atomic_write, write_json
from blsp_plugin.pretrained import fingerprint_text

__all__ = ["Evaluation", "Results"]

logger = get_logger(__name__)


class Results(NamedTuple):
    """What an evaluation found.

    Arguments
    ---------
    figures : dict
        System's name -> {figure: number}, as the metric summarizes, and
        ``rtf``, the seconds of computing per second of audio; where the LLM
        writes, ``tokens_per_second`` and ``first_token_seconds`` (mean over
        clips, from the start of a clip's batch); ``p_vs_<system>`` (paired
        bootstrap) where a system is compared with another.
    clips : list of dict
        ``id``, ``duration``, ``reference``, ``answers`` and ``scores`` (both
        system's name -> value); in the order of the rows.
    rejected : list of Rejected
        Clips that could not be read.
    """

    figures: dict
    clips: list
    rejected: list


class Evaluation:
    """A task, the systems that do it, and where their answers are kept.

    Writes ``<folder>/predictions/<task>.<system>.jsonl``, one line a clip
    (id, wav, duration, text, reference, hypothesis, seconds, tokens, score),
    appended while the work runs: a killed evaluation goes on where it was.
    Beside it stand the metric's own statistics, in ``<folder>/metrics.json``
    all figures as ``<task>.<system>.<figure>``, and in
    ``<folder>/evaluation.json`` what the report has to know of the task.
    Several tasks may share a folder.

    Arguments
    ---------
    task : Task
        What to do.
    systems : list of System
        Rows of the table; their answers do not depend on each other.
    folder : str
        For all that is written.
    batch_size : int
        Clips at a time; changes no answer.
    precision : str
        "fp32", "bf16" or "fp16" (autocast).
    progressbar : bool
        Whether to show one, on the main process.

    Raises
    ------
    BadInput
        If there is no such precision.
    """

    def __init__(
        self,
        task,
        systems,
        folder,
        batch_size=8,
        precision="fp32",
        progressbar=True,
    ):
        if precision not in ("fp32", "bf16", "fp16"):
            raise BadInput(
                f"eval_precision {precision!r}: give fp32, bf16 or fp16"
            )
        self.task = task
        self.systems = {system.name: system for system in systems}
        self.folder = folder
        self.predictions = os.path.join(folder, "predictions")
        self.batch_size = batch_size
        self.precision = precision
        self.rank, self.size = ranks()
        self.quiet = not progressbar or self.rank > 0

    def run(self, rows):
        """Answer, score and write; in a distributed run all call it.

        Arguments
        ---------
        rows : list of dict
            From `read_manifest` (with the task's columns).

        Returns
        -------
        Results

        Raises
        ------
        BadInput
            If no clip is left.
        """
        self.task.prepare(rows)
        keys = {row["id"]: self._key(row) for row in rows}
        records = {name: self._open(name) for name in self.systems}
        todo = {
            name: [
                row
                for row in rows
                if kept.known.get(row["id"], {}).get("clip") != keys[row["id"]]
            ]
            for name, kept in records.items()
        }
        # All systems get the same clips, so a bad one is found before.
        unsure = {row["id"]: row for new in todo.values() for row in new}
        rejected = self._unreadable(list(unsure.values()))
        bad = {clip.id for clip in rejected}
        rows = [row for row in rows if row["id"] not in bad]
        if not rows:
            why = f"; the first: {rejected[0].reason}" if rejected else ""
            raise BadInput(
                f"{self.task.name}: no clip is left to evaluate, all were "
                f"rejected{why}"
            )
        for name, new in todo.items():
            new = [row for row in new if row["id"] not in bad]
            if new:  # the same on all processes
                self._answer(self.systems[name], new, keys, records[name])
                records[name].gather()
        return run_on_main(self._score, [rows, records, rejected])

    def _open(self, name):
        """What a system answered in an earlier run with the same settings."""
        path = os.path.join(self.predictions, f"{self.task.name}.{name}.jsonl")
        settings = {
            **self.task.settings(),
            **self.systems[name].settings(),
            "precision": self.precision,
        }
        return Records(path, settings)

    def _key(self, row):
        """Changes with everything of a row that an answer depends on."""
        return fingerprint_text(
            row["text"],
            self.task.reference(row),
            f"{row['duration']:.3f}",
            # A stretch of a recording may move and keep its length.
            f"{row.get('start')} {row.get('stop')}",
        )

    def _unreadable(self, rows):
        """Decode every clip once; those that cannot be, and why."""

        def reason(row):
            try:
                _read(row)
            except BadInput as error:
                return str(error)

        mine = rows[self.rank :: self.size]
        with ThreadPoolExecutor(4) as pool:
            reasons = list(
                tqdm(
                    pool.map(reason, mine),
                    desc="checking clips",
                    total=len(mine),
                    disable=self.quiet or not mine,
                )
            )
        bad = [
            Rejected(row["id"], row["wav"], 0, why)
            for row, why in zip(mine, reasons, strict=True)
            if why
        ]
        if self.size > 1:
            parts = [None] * self.size
            torch.distributed.all_gather_object(parts, bad)
            bad = [clip for part in parts for clip in part]
        return bad

    def _answer(self, system, rows, keys, records):
        """One system on the clips that it has not answered yet."""
        system.open(self.predictions, precision=self.precision)
        # Longest first: memory runs out at once or never, and the strides of
        # the processes take about the same time.
        rows = sorted(rows, key=lambda row: (-row["duration"], row["id"]))
        mine = rows[self.rank :: self.size]
        device = next(system.parameters()).device.type
        dtype = AMPConfig.from_name(self.precision).dtype
        name = f"{self.task.name}.{system.name}"
        with tqdm(total=len(mine), desc=name, disable=self.quiet) as bar:
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                clips = [
                    Clip(
                        row["id"],
                        keys[row["id"]],
                        row["text"],
                        _read(row) if system.hears else None,
                    )
                    for row in batch
                ]
                with TorchAutocast(device, dtype=dtype):
                    answers = system.answer(clips, self.task)
                records.append(
                    [
                        {
                            **_about(row),
                            "reference": self.task.reference(row),
                            "hypothesis": answer.text,
                            "seconds": round(answer.seconds, 4),
                            "tokens": answer.tokens,
                            "first_token": answer.first_token,
                            "clip": keys[row["id"]],
                        }
                        for row, answer in zip(batch, answers, strict=True)
                    ]
                )
                bar.update(len(batch))

    def _score(self, rows, records, rejected):
        """Figures of every system, and the files that hold them."""
        figures, statistics = {}, {}
        clips = [
            {
                "id": row["id"],
                "duration": row["duration"],
                "reference": self.task.reference(row),
                "answers": {},
                "scores": {},
            }
            for row in rows
        ]
        if self.task.reference_system is not None:
            wanted = records[self.task.reference_system].known
            for clip in clips:
                clip["reference"] = wanted[clip["id"]]["hypothesis"]
        for name, kept in records.items():
            # A clip may have moved since; its answer has not changed.
            answers = [
                {
                    **kept.known[clip["id"]],
                    **_about(row),
                    "reference": clip["reference"],
                }
                for clip, row in zip(clips, rows, strict=True)
            ]
            figures[name], scores = self._figures(name, answers)
            statistics[name] = self.task.metric.statistics()
            for clip, answer in zip(clips, answers, strict=True):
                clip["answers"][name] = answer["hypothesis"]
                clip["scores"][name] = scores[clip["id"]]
            kept.rewrite(
                [{**a, "score": round(scores[a["id"]], 4)} for a in answers]
            )
        for name, system in self.systems.items():
            other = system.compared_with
            if other in statistics and self.task.metric.resamples:
                figures[name][f"p_vs_{other}"] = paired_p_value(
                    self.task.metric, statistics[name], statistics[other]
                )
        results = Results(figures, clips, rejected)
        self._write_figures(results)
        return results

    def _write_figures(self, results):
        """Put this task's figures beside those of other tasks."""
        mine = f"{self.task.name}."
        flat = {
            f"{mine}{name}.{figure}": value
            for name, numbers in results.figures.items()
            for figure, value in numbers.items()
        }
        flat[f"{mine}clips"] = len(results.clips)
        flat[f"{mine}rejected"] = len(results.rejected)
        path = os.path.join(self.folder, "metrics.json")
        others = _read_json(path)
        others = {k: v for k, v in others.items() if not k.startswith(mine)}
        write_json({**others, **flat}, path)
        metric = self.task.metric
        path = os.path.join(self.folder, "evaluation.json")
        tasks = _read_json(path).get("tasks", {})
        tasks[self.task.name] = {
            "kind": metric.kind,
            "instruction": self.task.instruction,
            "metric": str(metric),
            "columns": metric.columns,
            "main": metric.main,
            "higher_is_better": metric.higher_is_better,
            "systems": {n: s.label for n, s in self.systems.items()},
            "clips": len(results.clips),
            "hours": sum(clip["duration"] for clip in results.clips) / 3600,
            "rejected": len(results.rejected),
        }
        write_json({"tasks": tasks}, path)

    def _figures(self, name, answers):
        """Figures of a system, and the score of each clip."""
        metric = self.task.metric
        metric.clear()
        metric.append(
            [answer["id"] for answer in answers],
            [answer["hypothesis"] for answer in answers],
            [answer["reference"] for answer in answers],
            [answer["text"] for answer in answers],
        )
        path = os.path.join(self.predictions, f"{self.task.name}.{name}.txt")
        with atomic_write(path) as stream:
            metric.write_stats(stream)
        figures = dict(metric.summarize())
        audio = sum(answer["duration"] for answer in answers)
        seconds = sum(answer["seconds"] for answer in answers)
        figures["rtf"] = seconds / audio
        tokens = sum(answer.get("tokens", 0) for answer in answers)
        if tokens:
            figures["tokens_per_second"] = tokens / seconds
        waits = [answer.get("first_token") for answer in answers]
        waits = [wait for wait in waits if wait is not None]
        if waits:
            figures["first_token_seconds"] = sum(waits) / len(waits)
        return figures, metric.scores()


def _read(row):
    return read_speech(row["wav"], row.get("start"), row.get("stop"))


def _about(row):
    """What a record says of a clip."""
    names = ("id", "wav", "start", "stop", "duration", "text")
    return {name: row[name] for name in names if name in row}


def _read_json(path):
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)
