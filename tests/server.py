"""Real OpenAI-compatible servers on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

__all__ = ["free_port", "transformers_server"]


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
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream
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
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
