"""Where the rows of stage 1 come from, as `OutputFolder.prepare` takes them.

Authors
 * The blsp_plugin team 2026
"""

import dataclasses
import functools
import hashlib
import json
import os

from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.pipeline import Continuation
from blsp_plugin.continuation.plan import ROWS_A_BATCH
from blsp_plugin.continuation.shards import read_records
from blsp_plugin.data.manifest import iter_manifest
from blsp_plugin.data.text import needs_recasing, recase

__all__ = ["Recasing", "manifest_rows", "manifest_source", "recased_source"]


def manifest_rows(
    path,
    text_key="wrd",
    data_root=None,
    keep=(),
    check_audio=True,
    rule_language=None,
    limit=None,
):
    """Read the rows of a manifest.

    Arguments
    ---------
    path, text_key, data_root, keep, check_audio
        As those of `iter_manifest`.
    rule_language : str, optional
        If given, transcripts without case get the rule's (`recase`), for
        this language.
    limit : int, optional
        Good rows to stop after.

    Yields
    ------
    number : int
        Where the row stands.
    row : dict
        With ``transcript`` (as given) and ``text`` (what the LLM is to see).
    reason : str or None
        What is wrong with it.
    """
    rows = iter_manifest(
        path,
        text_key=text_key,
        data_root=None if data_root is None else os.path.abspath(data_root),
        keep=keep,
        check_audio=check_audio,
    )
    n_good = 0
    for number, row, reason in rows:
        if reason is None:
            if n_good == limit:
                return
            n_good += 1
            row["transcript"] = row["text"]
            if not os.path.isabs(row["wav"]):
                row["wav"] = os.path.abspath(row["wav"])
            if rule_language is not None:
                row["text"] = recase(row["text"], rule_language)
        yield number, row, reason


def manifest_source(paths, **options):
    """Manifests as an input of stage 1.

    Arguments
    ---------
    paths : dict of str
        By split.
    **options : dict
        As those of `manifest_rows`.

    Returns
    -------
    splits : dict of callable
        By split: gives its rows.
    source : dict
        The ``files`` with their hashes, the options, and ``text``: how the
        texts come of the transcripts.
    """
    splits = {
        split: functools.partial(manifest_rows, path, **options)
        for split, path in paths.items()
    }
    files = {
        split: {"path": os.path.abspath(path), "content": _hash(path)}
        for split, path in paths.items()
    }
    text = {"rule": options.get("rule_language")}
    return splits, {"files": files, **options, "text": text}


class Recasing(Continuation):
    """The LLM writes transcripts without case anew, in a pass of its own.

    Its output folder is that of any continuation: it survives as much, and is
    the cache of what was written. `recased_source` makes rows of it.

    Arguments
    ---------
    engine : Engine
        Writes.
    prompt : Prompt
        Of the engine's LLM.
    recaser : Recaser
        Says how to ask, and what to make of the answers.

    Example
    -------
    >>> from blsp_plugin.data.recasing import Recaser
    >>> work = Recasing(None, None, Recaser("Write it properly."))
    >>> [work.choose({"transcript": text}) for text in ("SO IT IS", "So it is")]
    [[0], []]
    """

    def __init__(self, engine, prompt, recaser):
        behaviour = Behaviour("recase", recaser.instruction)
        super().__init__(engine, prompt, [behaviour])
        self.recaser = recaser

    def choose(self, row):
        """Only transcripts that have lost their case are written anew."""
        return [0] if needs_recasing(row["transcript"]) else []

    def describe(self):
        """Also the recaser's settings: see `Continuation.describe`."""
        return {**super().describe(), "recaser": self.recaser.describe()}

    def _request(self, n, row, ask):
        row = {**row, "text": self.recaser.given(row["transcript"])}
        request = super()._request(n, row, ask)
        # A rewriting is about as long as the transcript: no need to wait for
        # one that goes on and on. Batches are decoded to their longest row's.
        around = sum(map(len, self.prompt.ids(request.instruction)))
        longest = self.recaser.max_new_tokens(len(request.prompt_ids) - around)
        behaviour = dataclasses.replace(
            request.behaviour, max_new_tokens=longest
        )
        return request._replace(behaviour=behaviour)


def recased_source(output):
    """The rows of a recasing's folder as an input of stage 1.

    Arguments
    ---------
    output : OutputFolder
        Of a `Recasing`, written as far as this job has to.

    Returns
    -------
    splits : dict of callable
        By split: gives its rows; ``text`` is None where another job's part of
        the work is not here.
    source : dict
        The recasing's settings.
    """
    splits = {
        split: functools.partial(_recased_rows, output, split, index)
        for split, index in output.scan().items()
    }
    text = output.settings()
    rows = text.pop("inputs")
    return splits, {"files": output.files(), "rows": rows, "text": text}


def _recased_rows(output, split, index):
    """As `manifest_rows`."""
    with open(output.rejected_input, encoding="utf-8") as stream:
        for line in stream:
            bad = json.loads(line)
            if bad["split"] == split:
                yield bad["row"], {"id": bad["id"]}, bad["reason"]
    plan, recaser = output.plans[split], output.continuation.recaser
    for start in range(0, plan.n_rows, ROWS_A_BATCH):
        stop = min(start + ROWS_A_BATCH, plan.n_rows)
        first = plan.first[start : stop + 1].tolist()
        records = read_records(index, first[0], first[-1])
        written = records["response"].to_pylist()
        rows = plan.rows(start, stop).drop_columns(["asks"]).to_pylist()
        for i, row in enumerate(rows):
            if first[i] < first[i + 1]:
                rewritten = written[first[i] - first[0]]
                row["text"] = None
                if rewritten is not None:
                    row["text"] = recaser.apply(row["transcript"], rewritten)
            yield start + i + 1, row, None


def _hash(path):
    """The file's; a missing one is reported by who reads it."""
    if not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
