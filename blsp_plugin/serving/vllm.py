"""A stock vLLM server as an engine: prompts travel as embeddings.

Every caller's prompt is a request of its own, and vLLM batches all that are
there, token by token (continuous batching). It needs no model class of ours,
only ``--enable-prompt-embeds``.

Authors
 * The blsp_plugin team 2026
"""

import asyncio
import base64
import io
import json
import logging

import httpx
import torch

from blsp_plugin.serving.engine import Cutter, End, Engine
from blsp_plugin.serving.refusals import Refusal, one_line

__all__ = ["VLLMEngine", "packed", "spoken"]

logger = logging.getLogger(__name__)

_DOWN = "the LLM's server does not answer; try again later"


def packed(embeds):
    """Embeddings as vLLM takes them in JSON.

    Arguments
    ---------
    embeds : torch.Tensor
        Shape (tokens, hidden_size).

    Returns
    -------
    str
        Base64 of what `torch.save` writes.
    """
    stream = io.BytesIO()
    # A clone, or all of a view's storage would be written.
    torch.save(embeds.detach().cpu().contiguous().clone(), stream)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def spoken(response):
    """What a server says went wrong.

    Arguments
    ---------
    response : httpx.Response
        Not a success; read.

    Returns
    -------
    str
        One line.
    """
    try:
        said = response.json()
        said = said.get("error", said)
        said = said["message"] if "message" in said else said["detail"]
    except (ValueError, KeyError, TypeError, AttributeError):
        said = response.text or f"status {response.status_code}"
    return one_line(said)


class VLLMEngine(Engine):
    """Answers with the LLM of a vLLM server.

    Arguments
    ---------
    served : Served
        The server, from `handshake.find_server`.
    stop_ids : list of int
        Tokens that end an answer.
    most : int
        Requests in flight.
    seconds : float
        That it may be silent.
    """

    def __init__(self, served, stop_ids, most=256, seconds=600.0):
        self.served = served
        self.room = served.room
        self.stop_ids = list(stop_ids)
        self._client = httpx.AsyncClient(
            base_url=served.url,
            headers=served.headers,
            timeout=httpx.Timeout(seconds, connect=10.0),
            limits=httpx.Limits(
                max_connections=most + 8, max_keepalive_connections=32
            ),
            trust_env=False,  # a proxy is no way to one's own server
        )

    async def write(self, embeds, wish, stream):
        """Write an answer: see `Engine.write`.

        Closing it closes the connection, and vLLM gives the request up.
        """
        asked = {
            "model": self.served.name,
            "prompt_embeds": await asyncio.to_thread(packed, embeds),
            "max_tokens": wish.max_new_tokens,
            "temperature": wish.temperature,
            "top_p": wish.top_p,
            "stop": list(wish.stop),
            "stop_token_ids": self.stop_ids,
            "stream": stream,
        }
        if wish.seed is not None:
            asked["seed"] = wish.seed
        if stream:
            asked["stream_options"] = {"include_usage": True}
        request = self._client.build_request("POST", "/completions", json=asked)
        del asked, embeds
        try:
            response = await self._client.send(request, stream=True)
            del request
            try:
                if response.status_code != 200:
                    await response.aread()
                    raise self._refusal(response)
                answers = _events(response) if stream else _whole(response)
                cutter, reason, tokens = Cutter(), None, 0
                async for answer in answers:
                    if "error" in answer:
                        logger.warning("vLLM: %s", one_line(answer["error"]))
                        raise Refusal("the LLM's server failed", status=502)
                    for choice in answer["choices"]:
                        reason = choice.get("finish_reason") or reason
                        text = cutter.feed(choice["text"])
                        if text:
                            yield text
                    tokens = (answer.get("usage") or {}).get(
                        "completion_tokens", tokens
                    )
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            logger.warning("vLLM: %s", one_line(repr(error)))
            raise Refusal(_DOWN, status=502) from error
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("vLLM: no completion (%s)", one_line(repr(error)))
            raise Refusal("the LLM's server failed", status=502) from error
        if reason not in ("stop", "length"):
            raise Refusal("the LLM's server broke off", status=502)
        yield End(reason, tokens)

    async def healthy(self):
        """Whether the server answers."""
        try:
            response = await self._client.get("/models", timeout=5.0)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def close(self):
        """Close all connections."""
        await self._client.aclose()

    @staticmethod
    def _refusal(response):
        said = spoken(response)
        if response.status_code in (400, 413, 422):
            return Refusal(f"the LLM's server refuses: {said}")
        logger.warning("vLLM: %s: %s", response.status_code, said)
        if response.status_code in (429, 503):
            return Refusal(
                "the LLM's server is busy; try again",
                status=429,
                headers={"Retry-After": "2"},
            )
        return Refusal("the LLM's server failed", status=502)


async def _events(response):
    """The chunks of a stream."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


async def _whole(response):
    """The one answer that is no stream."""
    await response.aread()
    yield response.json()
