"""Is there a vLLM server, and does it serve the LLM of this adapter?

Its weights cannot be seen from here. But it is asked the same prompts as
token ids and as our embeddings of them, and must answer alike.

Authors
 * The blsp_plugin team 2026
"""

import logging
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import torch

from blsp_plugin.chat import embed_tokens
from blsp_plugin.conversation import conversation_ids
from blsp_plugin.errors import BadInput
from blsp_plugin.serving.vllm import packed, spoken

__all__ = ["Served", "check_same_llm", "find_server"]

logger = logging.getLogger(__name__)

_QUESTIONS = (
    "What is the capital of France?",
    "Please repeat the following words.\nthe old man walked in the garden",
)
_TOKENS = 6
# Of the likelihoods: both ways may round differently in 16 bits.
_NATS = 0.25


class Served(NamedTuple):
    """A vLLM server.

    Arguments
    ---------
    url : str
        Of its API, "http://host:8000/v1".
    name : str
        Under which it serves the LLM.
    room : int or None
        Tokens of a prompt and its answer (``--max-model-len``).
    headers : dict
        Of each request to it.
    """

    url: str
    name: str
    room: int
    headers: dict


def find_server(url, name=None, key=None, seconds=600.0):
    """Wait until a server is there.

    Arguments
    ---------
    url : str
        With or without "/v1".
    name : str, optional
        Of the LLM, where it serves several.
    key : str, optional
        Its API key.
    seconds : float
        That it may take to start.

    Returns
    -------
    Served

    Raises
    ------
    BadInput
        If there is none in this time, it is something else, or it does not
        serve that name.
    """
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"--vllm {url}: give it as http://host:port")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    cards = _cards(url, base, headers, seconds)
    names = [card["id"] for card in cards]
    if name is None and len(names) > 1:
        raise BadInput(
            f"{url}: serves {', '.join(names)}; choose one by --vllm-model"
        )
    if not names or (name is not None and name not in names):
        raise BadInput(
            f"{url}: does not serve {name or 'any LLM'}; it has "
            f"{', '.join(names) or 'none'}"
        )
    card = cards[names.index(name)] if name else cards[0]
    return Served(base, card["id"], card.get("max_model_len"), headers)


def _cards(url, base, headers, seconds):
    """What the server says that it serves."""
    began, told = time.monotonic(), -10.0
    while True:
        waited = time.monotonic() - began
        try:
            response = httpx.get(
                f"{base}/models", headers=headers, timeout=10, trust_env=False
            )
            if response.status_code == 200:
                cards = response.json()["data"]
                if all(isinstance(card["id"], str) for card in cards):
                    return cards
            if response.status_code != 503:
                raise BadInput(
                    f"{url}: is no vLLM server, or refuses this key "
                    f"({response.status_code}: {spoken(response)}); correct "
                    "--vllm or --vllm-key"
                )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"{url}: is no vLLM server; correct --vllm"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = error
            if isinstance(error, httpx.InvalidURL):
                raise BadInput(f"--vllm {url}: {error}") from error
            if waited > seconds:
                raise BadInput(
                    f"{url}: no vLLM server answers ({reason}); start it "
                    "first (recipes/serving/README.md), or correct --vllm"
                ) from error
        else:
            if waited > seconds:
                raise BadInput(f"{url}: vLLM does not get ready; see its log")
        if waited - told >= 10:
            told = waited
            logger.info("waiting for vLLM at %s (%.0f s)", url, waited)
        time.sleep(1.0)


def check_same_llm(served, speech_llm):
    """Refuse a server that serves another LLM than the adapter's.

    Arguments
    ---------
    served : Served
        The server.
    speech_llm : SpeechLLM
        With the embeddings of the adapter's LLM.

    Raises
    ------
    BadInput
        If it answers our embeddings of a prompt in another way than the
        prompt itself, or cannot take them.
    """
    other = (
        f"{served.url}: {served.name} is another LLM than the adapter's "
        f"{speech_llm.model.llm.source}"
    )
    with httpx.Client(
        base_url=served.url,
        headers=served.headers,
        timeout=120.0,
        trust_env=False,
    ) as client:
        for question in _QUESTIONS:
            messages = [("user", [question])]
            ids = conversation_ids(speech_llm.prompt, messages)
            with torch.no_grad():
                embeds = embed_tokens(speech_llm.model, ids)
            read = _ask(client, served, other, prompt=ids)
            felt = _ask(client, served, other, prompt_embeds=packed(embeds))
            if not _alike(read, felt):
                raise BadInput(
                    f"{other}: asked {question!r} as tokens it says "
                    f"{read['text']!r}, as embeddings {felt['text']!r}; start "
                    "vLLM with the adapter's LLM"
                )


def _alike(read, felt):
    """Whether two completions are those of one prompt."""
    likely, felt_likely = (
        choice["logprobs"]["token_logprobs"] for choice in (read, felt)
    )
    near = abs(likely[0] - felt_likely[0]) <= _NATS
    return near and read["text"] == felt["text"]


def _ask(client, served, other, **prompt):
    asked = {
        "model": served.name,
        "max_tokens": _TOKENS,
        "temperature": 0.0,
        "logprobs": 1,
        **prompt,
    }
    try:
        response = client.post("/completions", json=asked)
        if response.status_code == 200:
            choice = response.json()["choices"][0]
            if choice["logprobs"]["token_logprobs"]:
                return choice
    except httpx.HTTPError as error:
        raise BadInput(
            f"{served.url}: broke off ({error or type(error).__name__}); see "
            "the log of vLLM"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BadInput(
            f"{served.url}: answers something else than completions"
        ) from error
    said = spoken(response)
    if "enable-prompt-embeds" in said:
        raise BadInput(
            f"{served.url}: takes no embeddings; start vLLM with "
            "--enable-prompt-embeds"
        )
    raise BadInput(f"{other}: {said}; start vLLM with the adapter's LLM")
