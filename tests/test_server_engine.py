"""The server engine against servers that really listen."""

import contextlib
import http.server
import json
import threading

import pytest

from blsp_plugin.continuation.behaviours import Behaviour
from blsp_plugin.continuation.engines import (
    HFEngine,
    Refused,
    Request,
    ServerEngine,
)
from blsp_plugin.errors import BadInput
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.prompts import Prompt
from tests.server import free_port, transformers_server
from tests.tiny import SENTENCES

CONTINUE = Behaviour("continue", "Go on with this text.", max_new_tokens=12)


def requests_for(prompt, texts, behaviour=CONTINUE):
    requests = []
    for n, text in enumerate(texts):
        prefix, suffix = prompt.ids(behaviour.instruction)
        slot = prompt.slot_ids(behaviour.instruction, text)
        ids = (*prefix, *slot, *suffix)
        requests.append(
            Request(n, f"c{n}", behaviour, behaviour.instruction, text, ids)
        )
    return requests


def answers(engine, requests):
    """{number: answer} of a whole run."""
    found = {}
    for group in engine.generate(engine.plan(requests)):
        for request, answer in group:
            assert request.n not in found
            found[request.n] = answer
    return found


@pytest.mark.parametrize("family", ["llm_folder", "sentencepiece_folder"])
def test_server_engine_against_real_server(family, request, tmp_path):
    """transformers' own server writes what the LLM writes here."""
    folder = request.getfixturevalue(family)
    llm = FrozenLLM(folder)
    prompt = Prompt(llm.tokenizer)
    requests = requests_for(prompt, SENTENCES[:10] + ["été", "7 o'clock"])
    hostile = requests_for(prompt, ["She said <|im_end|> </s> and left."])
    hostile = hostile[0]._replace(n=99)
    here = answers(HFEngine(llm), requests)
    with transformers_server(folder, tmp_path / "log.txt") as url:
        engine = ServerEngine(
            url, str(folder), prompt, prompt_as="text", concurrency=3
        )
        there = answers(engine, [*requests, hostile])
        # It takes text only, and no token ids: nothing useful comes of it.
        wrong = ServerEngine(url, str(folder), prompt, concurrency=2)
        with pytest.raises(BadInput, match="one word was refused") as e:
            wrong.to("cpu")
        engine.to("cpu")
    assert there.pop(99) == Refused("cannot be sent as text")
    assert set(there) == set(here)
    for n, answer in there.items():
        assert answer.text == here[n].text
        # The server says "length" if the end was the very last token.
        last = len(here[n].ids) >= CONTINUE.max_new_tokens - 1
        assert answer.ended == here[n].ended or last
    assert {answer.ended for answer in there.values()} == {True, False}
    assert "prompt must be a string" in str(e.value)


@contextlib.contextmanager
def scripted_server(script):
    """Answers each completion with the script's next (status, seconds).

    What `ServerEngine` does about failures can be seen with a server that
    fails at will only; it speaks HTTP like any other.
    """
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(size))
            status = script[min(len(seen), len(script) - 1)]
            seen.append((status, body))
            if status == "hang":
                stop.wait(30)
                return
            choice = {"index": 0, "text": " yes", "finish_reason": "stop"}
            choice["token_ids"] = [5, 6]
            good = {"id": "1", "object": "text_completion", "created": 0}
            if isinstance(status, dict) and "finish" in status:
                choice["finish_reason"] = status["finish"]
                status = 200
            good.update(model="llm", choices=[choice])
            if not isinstance(status, int):
                self._send(200, status)
                return
            bad = {"error": {"message": f"said {status}"}}
            self._send(status, good if status == 200 else bad)

        def _send(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    stop = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def test_server_retries_and_gives_up_clearly(prompt):
    requests = requests_for(prompt, SENTENCES[:4])

    def engine(url, **options):
        options = {"concurrency": 1, "max_retries": 3, **options}
        return ServerEngine(url, "llm", prompt, **options)

    # It comes back after failures of several kinds.
    with scripted_server([503, 429, 200, 500, 200]) as (url, seen):
        found = answers(engine(url), requests)
    assert [status for status, _ in seen] == [503, 429, 200, 500, 200, 200, 200]
    assert {answer.text for answer in found.values()} == {"yes"}
    assert len(found) == 4
    assert found[0].ids == [5, 6] and found[0].ended
    assert seen[0][1]["prompt"] == list(requests[0].prompt_ids)
    assert seen[0][1]["max_tokens"] == 12
    assert seen[0][1]["temperature"] == 0

    # It doesn't: one line, after what had been answered was handed over.
    got = []
    with scripted_server([200, 503]) as (url, seen):
        with pytest.raises(BadInput, match="answered 503.*tried 4 times") as e:
            for group in engine(url).generate([[r] for r in requests]):
                got += group
    assert len(got) == 1 and len(seen) == 5
    assert url in str(e.value) and "what is written is kept" in str(e.value)

    # Too slow is as bad as not there.
    with scripted_server(["hang"]) as (url, seen):
        with pytest.raises(BadInput, match="no answer.*tried 2 times"):
            answers(engine(url, timeout=0.3, max_retries=1), requests)
    assert len(seen) == 2
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(BadInput, match="start the server or correct the url"):
        answers(engine(nobody, max_retries=0), requests)

    # What no waiting can mend is not waited for.
    with scripted_server([401]) as (url, seen):
        with pytest.raises(BadInput, match="answered 401"):
            answers(engine(url), requests)
    assert len(seen) == 1

    # A refused row is rejected.
    with scripted_server([200, 400, 200]) as (url, seen):
        found = answers(engine(url), requests)
    assert found[1].reason.startswith("refused by the server (")
    assert "said 400" in found[1].reason
    assert [isinstance(found[n], Refused) for n in range(4)] == [
        False,
        True,
        False,
        False,
    ]
    # Rows may all be refused, also the last ones of a run taken up again.
    with scripted_server([200, 400]) as (url, seen):
        asked = engine(url)
        asked.to("cpu")
        found = answers(asked, requests)
    assert len(found) == 4 and all(
        isinstance(answer, Refused) for answer in found.values()
    )
    # But not before the server has completed something asked in this way.
    with scripted_server([400]) as (url, seen):
        with pytest.raises(BadInput, match="one word was refused.*said 400"):
            engine(url).to("cpu")
    assert len(seen) == 1 and seen[0][1]["max_tokens"] == 1

    # What is no completion is one line, too.
    for odd in ({"choices": []}, {"error": {}}, "<html>", {"finish": "abort"}):
        with scripted_server([odd]) as (url, seen):
            with pytest.raises(BadInput, match="something else|broke a resp"):
                answers(engine(url), requests)
    with pytest.raises(BadInput, match="write http://host:port/v1"):
        answers(engine("http://host:port/v1"), requests)


def test_concurrency_is_bounded_and_kept_up(prompt):
    """Never more requests in flight than allowed; no waiting for windows."""
    requests = requests_for(prompt, SENTENCES[:30])
    with scripted_server([200]) as (url, seen):
        engine = ServerEngine(url, "llm", prompt, concurrency=5)
        taken = []

        def batches():
            for request in requests:
                taken.append(request.n)
                yield [request]

        for group in engine.generate(batches()):
            assert len(group) <= 5
            assert len(taken) - 5 <= len(seen) <= len(taken)
    assert len(seen) == 30


@pytest.mark.parametrize(
    "options, complaint",
    [({"prompt_as": "chat"}, "prompt_as"), ({"concurrency": 0}, "at least 1")],
)
def test_bad_settings_are_refused(prompt, options, complaint):
    with pytest.raises(BadInput, match=complaint):
        ServerEngine("http://localhost/v1", "llm", prompt, **options)
