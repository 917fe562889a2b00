"""Speech embeddings of clips that wait: encoded together, and kept.

Clients of a chat send the whole conversation each time. A clip is known by
the digest of its bytes, and what it sounded like is not computed again.

Authors
 * The blsp_plugin team 2026
"""

import asyncio
import logging
import queue
import threading
from collections import OrderedDict
from typing import NamedTuple

from blsp_plugin.data.audio import SAMPLE_RATE
from blsp_plugin.serving.refusals import Refusal

__all__ = ["Ears"]

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    digest: bytes
    wav: object
    future: asyncio.Future


class Ears:
    """Encodes clips in a thread of its own, those that wait at once.

    Arguments
    ---------
    hear : callable
        List of waveforms -> list of Clip; `SpeechLLM.hear`.
    megabytes : float
        Of embeddings that are kept; those not used for longest go first.
    most_clips : int
        Encoded together.
    most_seconds : float
        Encoded together, of speech.

    Attributes
    ----------
    figures : dict of int
        ``calls`` of the encoder, ``clips`` that it has encoded, and ``kept``:
        how often it was spared.
    """

    def __init__(self, hear, megabytes=256, most_clips=16, most_seconds=240.0):
        self._hear = hear
        self._most_bytes = megabytes * 2**20
        self._most_clips = most_clips
        self._most_samples = most_seconds * SAMPLE_RATE
        self._kept = OrderedDict()
        self._bytes = 0
        self._coming = {}
        self._queue = queue.SimpleQueue()
        self._loop = None
        self.figures = {"calls": 0, "clips": 0, "kept": 0}
        self._thread = threading.Thread(
            target=self._work, name="ears", daemon=True
        )
        self._thread.start()

    @property
    def megabytes(self):
        """What is kept now, a float."""
        return self._bytes / 2**20

    def known(self, digest):
        """A clip that was heard before, or None.

        Arguments
        ---------
        digest : bytes
            Of its file.

        Returns
        -------
        Clip
        """
        clip = self._kept.get(digest)
        if clip is not None:
            self._kept.move_to_end(digest)
            self.figures["kept"] += 1
        return clip

    async def hear(self, digest, wav):
        """Encode a clip, with others that wait.

        Arguments
        ---------
        digest : bytes
            Of its file.
        wav : torch.Tensor
            Shape (samples,), 16 kHz.

        Returns
        -------
        Clip

        Raises
        ------
        Refusal
            If the encoder fails on it.
        """
        if digest in self._kept:  # it came while this one was decoded
            return self.known(digest)
        if digest in self._coming:  # somebody else has just sent the same
            self.figures["kept"] += 1
        else:
            self._loop = asyncio.get_running_loop()
            future = self._loop.create_future()
            self._coming[digest] = future
            self._queue.put(_Waiting(digest, wav, future))
        # Who goes away does not take it from the others.
        return await asyncio.shield(self._coming[digest])

    def close(self):
        """End the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self):
        left = None
        while True:
            first = left or self._queue.get()
            batch, left = [first], None
            while None not in batch and len(batch) < self._most_clips:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                samples = sum(len(item.wav) for item in batch)
                if more and samples + len(more.wav) > self._most_samples:
                    left = more
                    break
                batch.append(more)
            waiting = [item for item in batch if item is not None]
            if waiting:
                self._tell(self._encode(waiting))
            if None in batch:
                return
            del first, batch, waiting

    def _encode(self, waiting):
        """Pairs of what waited, and its clip or the error."""
        self.figures["calls"] += 1
        try:
            clips = self._hear([item.wav for item in waiting])
        except Exception as error:
            if len(waiting) > 1:  # one must not spoil it for the others
                return [pair for one in waiting for pair in self._encode([one])]
            logger.warning("a clip could not be encoded: %s", error)
            failed = Refusal("this clip cannot be encoded; send another one")
            return [(waiting[0], failed)]
        self.figures["clips"] += len(waiting)
        # Copies: a clip is a view of what holds the whole batch.
        clips = [clip._replace(embeds=clip.embeds.clone()) for clip in clips]
        return list(zip(waiting, clips, strict=True))

    def _tell(self, pairs):
        try:
            self._loop.call_soon_threadsafe(self._keep, pairs)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    def _keep(self, pairs):
        for item, clip in pairs:
            del self._coming[item.digest]
            if isinstance(clip, Refusal):
                item.future.set_exception(clip)
                item.future.exception()  # all who waited may have gone
                continue
            item.future.set_result(clip)
            self._kept[item.digest] = clip
            self._bytes += clip.embeds.nbytes
        while self._bytes > self._most_bytes:
            _, clip = self._kept.popitem(last=False)
            self._bytes -= clip.embeds.nbytes
