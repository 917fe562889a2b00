"""Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, transformers, ...

This is how stage 1 uses a cluster: it serves the LLM however it likes, and
this engine keeps many requests in flight, whatever the number of its machines.

Authors
 * The blsp_plugin team 2026
"""

import asyncio
import itertools
import logging

from blsp_plugin.continuation.engines.base import Engine, Refused, own_ids
from blsp_plugin.decoding import Generation
from blsp_plugin.errors import BadInput

__all__ = ["ServerEngine"]

PROMPT_KINDS = ("ids", "text")


class ServerEngine(Engine):
    """Asks a server for completions.

    Prompts travel as token ids, so that the server reads the very prompt that
    training will see, control strings in transcripts included. Servers that
    take text only get text, and rows whose text they would tokenise otherwise
    are rejected.

    Arguments
    ---------
    url : str
        The API's base, "http://host:8000/v1", say.
    model : str
        Name under which the server knows the LLM.
    prompt : Prompt
        Of the same LLM.
    prompt_as : str
        "ids" (vLLM, SGLang, llama.cpp) or "text".
    concurrency : int
        Requests in flight.
    timeout : float
        Seconds that one request may take.
    max_retries : int
        How often a request is repeated when the server is down, overloaded or
        too slow; the waits between double from 0.5 s to 8 s (ten retries of a
        server that is down: a minute).
    api_key : str
        If the server wants one.
    extra_body : dict, optional
        Further fields of each request. ``{"return_token_ids": True}`` makes
        vLLM send its tokens; from other servers the response is tokenised.
    window : int
        Rows planned together.

    Raises
    ------
    BadInput
        If an argument makes no sense, or `openai` is not installed.
    """

    def __init__(
        self,
        url,
        model,
        prompt,
        prompt_as="ids",
        concurrency=64,
        timeout=600.0,
        max_retries=10,
        api_key="none",
        extra_body=None,
        window=512,
    ):
        if prompt_as not in PROMPT_KINDS:
            raise BadInput(
                f"prompt_as {prompt_as!r}: is none of {PROMPT_KINDS}"
            )
        if concurrency < 1:
            raise BadInput(f"concurrency {concurrency}: must be at least 1")
        self.url = url
        self.model = model
        self.prompt = prompt
        self.tokenizer = prompt.tokenizer
        self.prompt_as = prompt_as
        self.concurrency = concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.api_key = api_key
        self.extra_body = dict(extra_body or {})
        self.window = window

    def plan(self, requests):
        """One request a batch: the server makes its own."""
        return [[request] for request in requests]

    def to(self, device):
        """See that the server completes a prompt asked in this way.

        A row that it refuses later on is rejected for good, so it must be
        the row's fault.
        """
        answer = self._run(self._try_out())
        if isinstance(answer, Refused):
            raise BadInput(
                f"{self.url}: a prompt of one word was {answer.reason}; "
                "correct the engine's settings"
            )

    def generate(self, batches):
        """Groups of what has come back: see `Engine.generate`."""
        requests = itertools.chain.from_iterable(batches)
        client = self._client()
        loop = asyncio.new_event_loop()
        pending = set()
        try:
            while True:
                for request in itertools.islice(
                    requests, self.concurrency - len(pending)
                ):
                    pending.add(loop.create_task(self._ask(client, request)))
                if not pending:
                    return
                done, pending = loop.run_until_complete(
                    asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                )
                good = [task for task in done if task.exception() is None]
                if good:
                    yield [task.result() for task in good]
                # What has come back is on the disk now.
                for task in done:
                    task.result()
        finally:
            loop.run_until_complete(_leave(client, pending))
            loop.close()

    def fingerprint(self):
        """The served name: nobody here gets to see the weights."""
        return f"unknown weights served as {self.model}"

    def describe(self):
        """The server and how it was asked: see `Engine.describe`."""
        return {
            "engine": type(self).__name__,
            "llm": self.fingerprint(),
            "url": self.url,
            "prompt_as": self.prompt_as,
            "concurrency": self.concurrency,
            "extra_body": self.extra_body,
        }

    def _client(self):
        try:
            # Only this engine needs it.
            import openai
        except ImportError as error:
            raise BadInput(
                "the server engine needs the package openai: pip install openai"
            ) from error
        # It would tell of every request.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        try:
            return openai.AsyncOpenAI(
                base_url=self.url,
                api_key=self.api_key,
                timeout=self.timeout,
                max_retries=self.max_retries,
            )
        except Exception as error:  # of the HTTP library that it uses
            raise BadInput(
                f"url {self.url!r}: {error}; write http://host:port/v1"
            ) from error

    @staticmethod
    def _run(coroutine):
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    async def _try_out(self):
        prompt = "Hello"
        if self.prompt_as == "ids":
            prompt = self.tokenizer(prompt)["input_ids"]
        async with self._client() as client:
            return await self._complete(client, prompt, max_tokens=1)

    async def _ask(self, client, request):
        """One request and its answer."""
        if self.prompt_as == "ids":
            prompt = list(request.prompt_ids)
        else:
            prompt = self._as_text(request)
            if prompt is None:
                return request, Refused("cannot be sent as text")
        behaviour = request.behaviour
        stop = {"stop": [behaviour.stop]} if behaviour.stop else {}
        choice = await self._complete(
            client, prompt, max_tokens=behaviour.max_new_tokens, **stop
        )
        if isinstance(choice, Refused):
            return request, choice
        return request, self._generation(choice, behaviour.stop)

    async def _complete(self, client, prompt, **options):
        """The server's choice, or `Refused`; else nothing mends it but a user.

        Waiting and asking again is the client's work.
        """
        import openai

        try:
            completion = await client.completions.create(
                model=self.model,
                prompt=prompt,
                temperature=0.0,
                extra_body=self.extra_body,
                **options,
            )
            choice = completion.choices[0]
            choice.text.strip()
            return choice
        except (
            openai.BadRequestError,
            openai.UnprocessableEntityError,
        ) as error:
            return Refused(f"refused by the server ({_short(error)})")
        except openai.APIStatusError as error:
            raise BadInput(
                f"{self.url}: answered {error.status_code} "
                f"({_short(error)}){self._tried(error.status_code)}; look at "
                "the server's log, then run the same command again: what is "
                "written is kept"
            ) from error
        except openai.APIConnectionError as error:
            raise BadInput(
                f"{self.url}: no answer ({_short(error)}), tried "
                f"{self.max_retries + 1} times; start the server or correct "
                "the url, then run the same command again: what is written "
                "is kept"
            ) from error
        except (
            openai.OpenAIError,
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
        ) as error:
            raise BadInput(
                f"{self.url}: answered something else than a completion "
                f"({_short(error)}); correct the url"
            ) from error

    def _tried(self, status):
        again = status in (408, 409, 429) or status >= 500
        return f", tried {self.max_retries + 1} times" if again else ""

    def _as_text(self, request):
        """The text that the server's tokenizer reads as the ids, or None."""
        before, after = self.prompt.render(request.instruction)
        whole = before + request.text.strip() + after
        # Most tokenizers begin a text with this by themselves.
        bos = self.tokenizer.bos_token or ""
        for text in (whole.removeprefix(bos), whole):
            if self.tokenizer(text)["input_ids"] == list(request.prompt_ids):
                return text

    def _generation(self, choice, stop):
        ids = getattr(choice, "token_ids", None)
        if ids is None:
            ids = self.tokenizer(choice.text, add_special_tokens=False)
            ids = ids["input_ids"]
        text = choice.text.split(stop, 1)[0] if stop else choice.text
        if choice.finish_reason not in ("stop", "length"):
            raise BadInput(
                f"{self.url}: broke a response off ({choice.finish_reason}); "
                "run the same command again"
            )
        return Generation(
            own_ids(self.tokenizer, ids, stop),
            text.strip(),
            choice.finish_reason == "stop",
        )


async def _leave(client, tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


def _short(error):
    """What went wrong, in the server's own words if it said any."""
    response = getattr(error, "response", None)
    text = (response.text if response is not None else "") or str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
