"""Stage 1 as one object: rows in, durable records out.

Authors
 * The blsp_plugin team 2026
"""

import itertools

from speechbrain.utils.logger import get_logger

from blsp_plugin.continuation.behaviours import row_key
from blsp_plugin.continuation.engines import Refused, Request
from blsp_plugin.continuation.filters import first_reason
from blsp_plugin.errors import BadInput

__all__ = ["Continuation"]

logger = get_logger(__name__)
ROWS_OF_A_PART = 512  # that a job of a cluster takes at a time


class Continuation:
    """Asks an engine for every row's behaviours, and judges what it writes.

    Arguments
    ---------
    engine : Engine
        Writes the responses.
    prompt : Prompt
        Of the engine's LLM: gives the ids that training will see.
    behaviours : sequence of Behaviour
        What is asked for.
    filters : sequence of Filter
        What is rejected.
    seed : int
        Chooses the clips of behaviours with a share below 1.

    Attributes
    ----------
    asks : list of (Behaviour, str)
        Every behaviour with each of its instructions.

    Raises
    ------
    BadInput
        If there is no behaviour, or two have one name.
    """

    def __init__(self, engine, prompt, behaviours, filters=(), seed=0):
        self.engine = engine
        self.prompt = prompt
        self.behaviours = list(behaviours)
        self.filters = list(filters)
        self.seed = seed
        self.asks, self._first = [], []
        for behaviour in self.behaviours:
            self._first.append((behaviour, len(self.asks)))
            self.asks += [(behaviour, i) for i in behaviour.instructions]
        names = [behaviour.name for behaviour in self.behaviours]
        if not names or len(names) != len(set(names)):
            raise BadInput(
                f"behaviours {names}: name at least one, each of them once"
            )
        for check in self.filters:
            for name in set(check.behaviours or ()) - set(names):
                logger.warning(
                    "%s is for behaviour %r, which is not asked for",
                    type(check).__name__,
                    name,
                )

    def choose(self, row):
        """What is asked about a row.

        Arguments
        ---------
        row : dict
            With ``id``, ``transcript`` and ``text``.

        Returns
        -------
        list of int
            Numbers of `asks`, at most one of each behaviour.
        """
        chosen = []
        for behaviour, first in self._first:
            which = behaviour.draw(row["id"], self.seed)
            if which is not None:
                chosen.append(first + which)
        return chosen

    def describe(self):
        """Everything but the rows that decides the texts.

        Returns
        -------
        dict
            For JSON.
        """
        filters = {}
        for check in self.filters:
            facts = check.describe()
            name = facts.pop("filter")
            # The same filter may stand there twice, for other behaviours.
            same = sum(key.split(".")[0] == name for key in filters)
            filters[f"{name}.{same + 1}" if same else name] = facts
        return {
            "llm": self.engine.fingerprint(),
            "prompt": self.prompt.fingerprint(),
            "seed": self.seed,
            "behaviours": {
                behaviour.name: dict(vars(behaviour))
                for behaviour in self.behaviours
            },
            "filters": filters,
        }

    def write(self, plan, shard, done, rank=0, world=1, part=0, parts=1):
        """Write every response that is not there yet.

        Jobs of a cluster share blocks of rows, processes of a job share the
        batches; what is in a batch depends neither on the number of processes
        nor on what is done already.

        Arguments
        ---------
        plan : Plan
            The rows and what is asked about them.
        shard : Shard
            This process' own.
        done : numpy.ndarray
            Shape (requests,), bool: those that need not be written.
        rank : int
            Of this process.
        world : int
            Number of processes.
        part : int
            Of this job.
        parts : int
            Number of jobs.

        Yields
        ------
        list of dict
            Records that have just reached the disk.
        """
        unasked = []  # rejected without being asked
        batches = self._batches(plan, done, rank, world, part, parts, unasked)
        for answers in self.engine.generate(batches):
            records = [
                self._record(request, answer)
                for request, answer in answers
                if not done[request.n]
            ]
            records, unasked[:] = unasked + records, []
            shard.append(records)
            yield records
        if unasked:
            shard.append(unasked)
            yield unasked

    def missing(self, plan, done, part=0, parts=1):
        """Count what a job has to write.

        Arguments
        ---------
        plan, done, part, parts
            As those of `write`.

        Returns
        -------
        total : int
            The job's requests.
        missing : int
            Those that are not done.
        """
        total = missing = 0
        for _, start, stop in self._windows(plan, part, parts):
            here = done[plan.first[start] : plan.first[stop]]
            total += len(here)
            missing += len(here) - int(here.sum())
        return total, missing

    def _windows(self, plan, part, parts):
        """Number, start and stop of the windows of a part of the rows.

        Parts are dealt out in blocks that know nothing of the engine: the
        recasing's may have other windows, and a later run too.
        """
        block = ROWS_OF_A_PART if parts > 1 else max(1, plan.n_rows)
        numbers = itertools.count()
        for begin in range(part * block, plan.n_rows, parts * block):
            end = min(begin + block, plan.n_rows)
            for start in range(begin, end, self.engine.window):
                stop = min(start + self.engine.window, end)
                yield next(numbers), start, stop

    def _batches(self, plan, done, rank, world, part, parts, unasked):
        """Batches with something to do; adds to ``unasked`` as it goes."""
        for number, start, stop in self._windows(plan, part, parts):
            if done[plan.first[start] : plan.first[stop]].all():
                continue
            requests = []
            for n, row, ask in plan.window(start, stop):
                request = self._request(n, row, ask)
                reason = first_reason(self.filters, request)
                if reason is None:
                    requests.append(request)
                elif not done[n] and number % world == rank:
                    unasked.append(_line(request, reason=reason))
            for i, batch in enumerate(self.engine.plan(requests)):
                mine = (number + i) % world == rank
                if mine and not all(done[request.n] for request in batch):
                    yield batch

    def _request(self, n, row, ask):
        behaviour, instruction = self.asks[ask]
        prefix, suffix = self.prompt.ids(instruction)
        slot = self.prompt.slot_ids(instruction, row["text"])
        return Request(
            n,
            row_key(row, behaviour),
            behaviour,
            instruction,
            row["text"],
            (*prefix, *slot, *suffix),
        )

    def _record(self, request, answer):
        if isinstance(answer, Refused):
            return _line(request, reason=answer.reason)
        reason = first_reason(self.filters, request, answer)
        return _line(request, answer, reason)


def _line(request, generation=None, reason=None):
    """One line of a shard; see `shards.RECORD`."""
    return {
        "n": request.n,
        "ID": request.key,
        "response": generation.text if generation else "",
        "response_ids": generation.ids if generation else [],
        "ended": bool(generation and generation.ended),
        "reason": reason,
    }
