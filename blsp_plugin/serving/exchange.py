"""One request to ``/v1/chat/completions``, from its body to its last byte.

Authors
 * The blsp_plugin team 2026
"""

import asyncio
import contextlib
import json
import logging
import time

from starlette.responses import Response

from blsp_plugin.serving.answers import event
from blsp_plugin.serving.engine import End
from blsp_plugin.serving.refusals import Refusal

__all__ = ["Exchange", "refusal_response"]

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 5.0  # of a body that is too large, so that its sender listens


class _Gone(Exception):
    """The caller is not there any more."""


def refusal_response(refusal):
    """A refusal as a response of HTTP.

    Arguments
    ---------
    refusal : Refusal

    Returns
    -------
    starlette.responses.Response
    """
    return Response(
        json.dumps(refusal.json()),
        refusal.status,
        refusal.headers,
        "application/json",
    )


class Exchange(Response):
    """Reads a request and answers it, as long as its caller is there.

    Arguments
    ---------
    service : Service
        That prepares and writes.
    """

    def __init__(self, service):
        self.service = service
        self.limits = service.limits
        self.background = None
        self._started = False
        self._size = 0  # of what was read of the body

    async def __call__(self, scope, receive, send):
        """Do it all: an ASGI application for one request."""
        requests = self.service.requests
        try:
            _check_headers(scope)
            with self.service.admitted():
                await self._attend(scope, receive, send)
            requests["answered"] += 1
        except _Gone:
            requests["left"] += 1
        except Refusal as refusal:
            requests["refused"] += 1
            await self._refuse(refusal, scope, receive, send)
        except Exception:
            logger.exception("a request failed")
            refusal = Refusal("the server failed; try again", status=500)
            await self._refuse(refusal, scope, receive, send)

    async def _attend(self, scope, receive, send):
        try:
            body = [await self._body(scope, receive)]
            await self._unless_gone(receive, self._answer(body, send))
        except asyncio.TimeoutError as error:
            raise Refusal("no answer in time; try again", status=504) from error
        finally:
            self._forget_size()

    async def _refuse(self, refusal, scope, receive, send):
        if self._started:
            response = _send_body(send, event(refusal.json()), False)
        else:
            response = refusal_response(refusal)(scope, receive, send)
        # Who does not take it is not waited for: uvicorn closes then.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(response, self.limits.read_seconds)

    def _forget_size(self):
        """The body is not in memory any more."""
        self.service.uploading -= self._size
        self._size = 0

    async def _body(self, scope, receive):
        """The whole body, if it comes soon and is not too large."""
        most, uploads = self.limits.body, self.limits.uploads
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", 0)) > most:
            if b"expect" not in headers:  # else it is not sent at all
                await self._drain(receive)
            raise self._too_large()
        pieces, more = [], True
        until = time.monotonic() + self.limits.body_seconds
        while more:
            message = await self._receive(receive, until)
            self._size += len(message["body"])
            self.service.uploading += len(message["body"])
            pieces.append(message["body"])
            if self._size > most:
                pieces.clear()
                self._forget_size()
                await self._drain(receive)
                raise self._too_large()
            if self.service.uploading > uploads:
                raise Refusal(
                    "too much is being sent at once; try again",
                    status=429,
                    headers={"Retry-After": "5", "Connection": "close"},
                )
            more = message["more_body"]
        return b"".join(pieces)

    async def _receive(self, receive, until):
        wait = min(self.limits.read_seconds, until - time.monotonic())
        try:
            message = await asyncio.wait_for(receive(), max(wait, 0.01))
        except asyncio.TimeoutError as error:
            raise Refusal(
                "the request did not come in time; send it at once",
                status=408,
                headers={"Connection": "close"},
            ) from error
        if message["type"] == "http.disconnect":
            raise _Gone
        return message

    def _too_large(self):
        return Refusal(
            f"the request has more than {self.limits.body / 2**20:g} MB; "
            "send a shorter or a compressed clip",
            status=413,
            headers={"Connection": "close"},
        )

    async def _drain(self, receive):
        """Let somebody finish sending, for a while: only then they listen."""
        until, size = time.monotonic() + _DRAIN_SECONDS, 0
        with contextlib.suppress(Refusal):
            while size < 2 * self.limits.body and time.monotonic() < until:
                message = await self._receive(receive, until)
                size += len(message["body"])
                if not message["more_body"]:
                    return

    async def _unless_gone(self, receive, work):
        """Work until it is done, its time is up, or the caller goes."""
        tasks = [asyncio.ensure_future(work)]
        tasks.append(asyncio.ensure_future(_leaving(receive)))
        try:
            done, _ = await asyncio.wait(
                tasks,
                timeout=self.limits.answer_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in tasks:
                task.cancel()
            # What it holds elsewhere is put down before we go on.
            await asyncio.gather(*tasks, return_exceptions=True)
        if tasks[0] in done:
            return tasks[0].result()
        raise _Gone if tasks[1] in done else asyncio.TimeoutError

    async def _answer(self, body, send):
        prepared = await self.service.prepare(body)
        self._forget_size()
        pieces = self.service.write(prepared)
        prepared = prepared._replace(embeds=None)  # the engine's to keep
        async with contextlib.aclosing(pieces):
            if prepared.stream:
                await self._stream(prepared.form, pieces, send)
                return
            text = ""
            async for piece in pieces:
                if isinstance(piece, End):
                    break
                text += piece
        answer = json.dumps(prepared.form.whole(text, piece)).encode()
        await self._start(send, b"application/json", len(answer))
        await _send_body(send, answer, False)

    async def _stream(self, form, pieces, send):
        async for piece in pieces:
            if not self._started:  # from here on errors are events
                await self._start(send, b"text/event-stream; charset=utf-8")
                await _send_body(send, event(form.first()))
            if isinstance(piece, End):
                break
            await _send_body(send, event(form.piece(piece)))
        chunks = [*form.last(piece), "[DONE]"]
        await _send_body(send, b"".join(map(event, chunks)), False)

    async def _start(self, send, kind, length=None):
        headers = [(b"content-type", kind)]
        if length is None:
            headers.append((b"cache-control", b"no-cache"))
        else:
            headers.append((b"content-length", str(length).encode()))
        self._started = True
        await send(
            {"type": "http.response.start", "status": 200, "headers": headers}
        )


def _check_headers(scope):
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refusal("send Content-Type: application/json", status=415)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refusal("send the JSON without Content-Encoding", status=415)


async def _leaving(receive):
    """Returns when the caller goes."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_body(send, body, more=True):
    await send({"type": "http.response.body", "body": body, "more_body": more})
