"""The server of `blsp_plugin.serving` as a process, and what to send it."""

import base64
import contextlib
import io
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import soundfile

__all__ = ["Front", "as_file", "front_server", "spoken", "typed"]


class Front:
    """A running server.

    Arguments
    ---------
    process : subprocess.Popen
        Of it.
    port : int
        That it listens to.
    """

    def __init__(self, process, port):
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def rss(self):
        """Its resident memory, MB."""
        with open(f"/proc/{self.process.pid}/status") as stream:
            [kilobytes] = re.findall(r"VmRSS:\s+(\d+)", stream.read())
        return int(kilobytes) / 1024


@contextlib.contextmanager
def front_server(adapter, *options):
    """Run ``blsp serve`` at a free port.

    Arguments
    ---------
    adapter : path
        Its folder.
    *options : tuple of str
        Further ones.
    """
    command = [sys.executable, "-m", "blsp_plugin", "serve", str(adapter)]
    command += ["--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"serving at http://.*:(\d+)/v1", line)
            if found:
                break
        else:
            raise AssertionError("".join(lines))
        reader = threading.Thread(
            target=lambda: lines.extend(process.stderr), daemon=True
        )
        reader.start()
        front = Front(process, int(found[1]))
        front.lines = lines
        yield front
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()


def as_file(wav, kind="WAV", rate=16000, **options):
    """Samples as the bytes of a file."""
    stream = io.BytesIO()
    soundfile.write(stream, np.asarray(wav), rate, format=kind, **options)
    return stream.getvalue()


def spoken(data, kind="wav"):
    """A part of a message: a clip."""
    if isinstance(data, bytes):
        data = base64.b64encode(data).decode()
    return {
        "type": "input_audio",
        "input_audio": {"data": data, "format": kind},
    }


def typed(text):
    """A part of a message: a text."""
    return {"type": "text", "text": text}
