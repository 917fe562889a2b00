"""Stage 1 as one object: rows in, durable records out.

Authors
 * The blsp_plugin team 2026
"""

import itertools

from speechbrain.utils.logger import get_logger

from blsp_plugin.continuation.behaviours import assign, row_key
from blsp_plugin.continuation.engines import Request
from blsp_plugin.continuation.filters import first_reason
from blsp_plugin.errors import BadInput

__all__ = ["Continuation"]

logger = get_logger(__name__)


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

    def items(self, rows):
        """Every (row, behaviour), in the order of the table to be made.

        Arguments
        ---------
        rows : iterable of dict
            With ``id`` and ``text``.

        Returns
        -------
        iterator of (dict, Behaviour)
        """
        return assign(rows, self.behaviours, self.seed)

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

    def write(self, rows, shard, done, rank=0, world=1):
        """Write every response that is not there yet.

        Work is shared by batches, whose contents don't depend on the number
        of processes or on what is done already.

        Arguments
        ---------
        rows : list of dict
            With ``id`` and ``text``; the same in every process.
        shard : Shard
            This process' own.
        done : container of str
            IDs that need not be written.
        rank : int
            Of this process.
        world : int
            Number of processes.

        Yields
        ------
        list of dict
            Records that have just reached the disk.
        """
        windows = _chunks(self.items(rows), self.engine.window)
        for number, window in enumerate(windows):
            if all(row_key(*item) in done for item in window):
                continue
            requests, rejected = [], []
            for row, behaviour in window:
                request = self._request(row, behaviour)
                reason = first_reason(self.filters, request)
                if reason is None:
                    requests.append(request)
                elif request.key not in done:
                    rejected.append(_record(request, None, reason))
            if rejected and number % world == rank:
                shard.append(rejected)
                yield rejected
            batches = [
                batch
                for i, batch in enumerate(self.engine.plan(requests))
                if (number + i) % world == rank
                and any(request.key not in done for request in batch)
            ]
            for answers in self.engine.generate(batches):
                records = [
                    _record(
                        request,
                        generation,
                        first_reason(self.filters, request, generation),
                    )
                    for request, generation in answers
                    if request.key not in done
                ]
                shard.append(records)
                yield records

    def _request(self, row, behaviour):
        text, instruction = row["text"], behaviour.instruction
        prefix, suffix = self.prompt.ids(instruction)
        slot = self.prompt.slot_ids(instruction, text)
        prompt_ids = (*prefix, *slot, *suffix)
        return Request(row_key(row, behaviour), behaviour, text, prompt_ids)


def _record(request, generation, reason):
    """One line of a shard."""
    return {
        "ID": request.key,
        "behaviour": request.behaviour.name,
        "text": request.text,
        "response": generation.text if generation else "",
        "response_ids": generation.ids if generation else [],
        "ended": bool(generation and generation.ended),
        "reason": reason,
    }


def _chunks(items, size):
    """Lists of at most ``size`` items."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk
