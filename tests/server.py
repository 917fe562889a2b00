"""Real OpenAI-compatible servers on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from tests.training import ROOT

__all__ = ["VLLM_PYTHON", "free_port", "transformers_server", "vllm_server"]

VLLM_PYTHON = os.path.join(ROOT, ".venv-vllm", "bin", "python")


def free_port():
    """A port that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def transformers_server(model, log, port=None, seconds=120):
    """Run ``transformers serve``; gives the API's base URL.

    Arguments
    ---------
    model : str
        Folder of the LLM.
    log : str
        File for what the server says.
    port : int, optional
        To listen to.
    seconds : float
        That it may take to come up.
    """
    port = port or free_port()
    code = "from transformers.cli.transformers import app; app()"
    command = [sys.executable, "-c", code, "serve", str(model)]
    command += ["--port", str(port), "--host", "127.0.0.1"]
    command += ["--device", "cpu", "--dtype", "float32"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with _running(command, environment, log, port, seconds):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def vllm_server(python, model, log, *options, dtype="float32", seconds=300):
    """Run vLLM's own server on the CPU; gives its address.

    Arguments
    ---------
    python : str
        Of the environment that has vLLM.
    model : str
        Folder of the LLM.
    log : str
        File for what the server says.
    *options : tuple of str
        Further ones of the server.
    dtype : str
        Of the weights.
    seconds : float
        That it may take to come up.
    """
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "llm"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--max-model-len", "512", "--block-size", "32"]
    command += ["--enforce-eager", "--enable-prompt-embeds", *options]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # It has to choose its threads by itself.
    environment.pop("OMP_NUM_THREADS", None)
    with _running(command, environment, log, port, seconds):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command, environment, log, port, seconds):
    """A server that answers, until it is not needed."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        limit = time.time() + seconds
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                assert process.poll() is None, open(log).read()[-3000:]
                assert time.time() < limit, open(log).read()[-3000:]
                time.sleep(0.2)
        yield
    finally:
        # It may have processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
