"""The LLM of this process as an engine: one thread, many callers.

Who wants a whole answer, greedily, is answered together with all others who
wait for one. Streams and draws are sequences that take turns, a piece each.

Authors
 * The blsp_plugin team 2026
"""

import asyncio
import logging
import threading

import torch

from blsp_plugin.decoding import can_decode, decode
from blsp_plugin.serving.engine import Cutter, End, Engine
from blsp_plugin.serving.refusals import Refusal
from blsp_plugin.streaming import Choice, Sequence, text_pieces

__all__ = ["LocalEngine"]

logger = logging.getLogger(__name__)


class _Job:
    """One answer to be written."""

    def __init__(self, embeds, wish, alone):
        self.embeds = embeds
        self.wish = wish
        self.alone = alone  # a sequence of its own
        self.loop = asyncio.get_running_loop()
        self.events = asyncio.Queue()
        self.gone = False
        self.pieces = None
        self.tokens = 0

    def tell(self, event):
        """Hand something over to who waits, in another thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits
            self.gone = True


class LocalEngine(Engine):
    """Answers with the LLM of this process.

    Arguments
    ---------
    llm : FrozenLLM
        Any.
    most : int
        Answers that are decoded together, and sequences that take turns.
    """

    def __init__(self, llm, most=16):
        self.llm = llm
        self.room = llm.max_positions
        self.most = most
        self._waiting = []
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(
            target=self._work, name="local-engine", daemon=True
        )
        self._thread.start()

    async def write(self, embeds, wish, stream):
        """Write an answer: see `Engine.write`."""
        job = _Job(embeds, wish, stream or wish.temperature > 0)
        with self._change:
            self._waiting.append(job)
            self._change.notify()
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, Refusal):
                    raise event
                yield event
                if isinstance(event, End):
                    return
        finally:
            job.gone = True

    async def healthy(self):
        """Whether its thread is there."""
        return self._thread.is_alive()

    async def close(self):
        """End the thread, after what it is at."""
        with self._change:
            self._closed = True
            self._change.notify()

    def _work(self):
        active = []
        while True:
            with self._change:
                while not (self._waiting or active or self._closed):
                    self._change.wait()
                if self._closed:
                    return
                batch, begun = self._take(len(active))
            if batch:
                self._guard(batch, self._answer, batch)
            active = self._turns(active + begun)
            del batch, begun  # nothing is kept while nothing is to do

    def _turns(self, active):
        """A piece of each sequence; those that go on."""
        for job in active:
            if not job.gone:
                self._guard([job], self._step, job)
        return [job for job in active if not job.gone]

    def _take(self, n_active):
        """Of those who wait: a batch, and sequences to begin."""
        waiting = [job for job in self._waiting if not job.gone]
        together = [job for job in waiting if not job.alone]
        if together:
            # One who wants ten tokens does not wait for another's thousand.
            limit = together[0].wish.max_new_tokens
            together = [
                job
                for job in together
                if limit <= 2 * job.wish.max_new_tokens <= 4 * limit
            ][: self.most]
        alone = [job for job in waiting if job.alone]
        alone = alone[: max(0, self.most - n_active)]
        taken = set(map(id, together + alone))
        self._waiting = [job for job in waiting if id(job) not in taken]
        return together, alone

    def _guard(self, jobs, work, *args):
        """Work for some; if it fails, they are told and others go on."""
        try:
            with torch.no_grad(), self.llm.running():
                work(*args)
        except Exception as error:
            logger.exception("the LLM failed")
            reason = f"the LLM failed ({type(error).__name__}); try again"
            for job in jobs:
                job.tell(Refusal(reason, status=500))
                job.gone = True

    def _answer(self, batch):
        """Whole answers, decoded together."""
        llm = self.llm
        longest = max(len(job.embeds) for job in batch)
        limits = [job.wish.max_new_tokens for job in batch]
        embeds = torch.zeros(
            len(batch),
            longest,
            llm.hidden_size,
            dtype=llm.dtype,
            device=llm.device,
        )
        mask = torch.zeros(
            len(batch), longest, dtype=torch.int64, device=llm.device
        )
        for row, job in enumerate(batch):
            embeds[row, longest - len(job.embeds) :] = job.embeds
            mask[row, longest - len(job.embeds) :] = 1
        if can_decode(llm, longest + max(limits)):
            answers = decode(llm, embeds, mask, [()] * len(batch), limits)
        else:
            answers = llm.generate(embeds, mask, limits)
        for job, answer in zip(batch, answers, strict=True):
            pieces = text_pieces(llm.tokenizer, _counted(job, iter(answer.ids)))
            cutter = Cutter(job.wish.stop)
            text = ""
            for piece in pieces:
                text += cutter.feed(piece)
                if cutter.ended:
                    break
            self._end(job, cutter, answer.ended, text)

    def _step(self, job):
        """The next piece of a sequence."""
        if job.pieces is None:
            job.pieces = self._sequence(job)
        for text in job.pieces:
            if text:
                job.tell(text)
            return
        job.gone = True

    def _sequence(self, job):
        """Pieces of an answer; "" where others may take their turn."""
        wish = job.wish
        choice = Choice(wish.temperature, wish.top_p, wish.seed)
        sequence = Sequence(self.llm)
        logits = sequence.read(job.embeds)
        job.embeds = None
        yield ""
        ids = sequence.write(logits, wish.max_new_tokens, choice)
        cutter = Cutter(wish.stop)
        for piece in text_pieces(self.llm.tokenizer, _counted(job, ids)):
            yield cutter.feed(piece)
            if cutter.ended:
                break
        self._end(job, cutter, job.tokens < wish.max_new_tokens)

    @staticmethod
    def _end(job, cutter, ended, text=""):
        text += cutter.rest()
        if text:
            job.tell(text)
        if ended and not cutter.ended:
            job.tokens += 1  # the one that ended it
        reason = "stop" if ended or cutter.ended else "length"
        job.tell(End(reason, job.tokens))


def _counted(job, ids):
    for token in ids:
        job.tokens += 1
        yield token
