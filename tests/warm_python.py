"""A Python whose imports are done: recipes run in forks of it.

Three of the four seconds that a recipe takes on tiny models are imports. Each
command still is a process of its own, with its own folder, environment,
arguments, output and status; what it runs is the same file. Two forks have the
same hash seed: what must not depend on it is run without this.
"""

import atexit
import contextlib
import functools
import importlib
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

IMPORTS = (
    "blsp_plugin.brain",
    "blsp_plugin.dataio",
    "blsp_plugin.evaluation",
    "blsp_plugin.hparams",
    "blsp_plugin.package",
    "datasets",
    "matplotlib.figure",
    "sacrebleu",
    "torchaudio",
)
# It has no imports to do, so that it takes 20 ms. torchrun says -u.
CLIENT = """#!{python} -IS
import array, os, socket, sys
given = [word for word in sys.argv[1:2] if word != "-u"] + sys.argv[2:]
if given and (given[0] == "-c" or given[0].endswith(".py")):
    door = socket.socket(socket.AF_UNIX)
    door.connect({door!r})
    variables = [f"{{name}}={{value}}" for name, value in os.environ.items()]
    call = "\\0".join([os.getcwd(), *variables, "", *given])
    call = call.encode(errors="surrogateescape")
    fds = array.array("i", [0, 1, 2])
    door.sendmsg([len(call).to_bytes(4, "big") + call],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    sys.exit(int(door.recv(16)))
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@contextlib.contextmanager
def warm_python(folder, environment):
    """Start it, and stop it in the end.

    Arguments
    ---------
    folder : pathlib.Path
        Gets a program ``python``, to be put first into the ``PATH``.
    environment : dict
        What the imports see, OpenMP's threads among them.

    Yields
    ------
    pathlib.Path
        The program.
    """
    folder.mkdir()
    program, door = folder / "python", str(folder / "door")
    program.write_text(CLIENT.format(python=sys.executable, door=door))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    server = subprocess.Popen(
        [sys.executable, __file__, door, str(program)], env=environment
    )
    try:
        while not os.path.exists(door):
            assert server.poll() is None, "it does not start"
            time.sleep(0.1)
        yield program
    finally:
        server.terminate()
        server.wait()


@functools.cache
def shared_python():
    """One for all tests of this process, as a path; it ends with them."""
    leaving = contextlib.ExitStack()
    atexit.register(leaving.close)
    folder = leaving.enter_context(tempfile.TemporaryDirectory())
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": root,
    }
    warm = warm_python(Path(folder) / "bin", environment)
    return str(leaving.enter_context(warm))


def serve(door, program):
    """Fork for each call, for ever."""
    for name in IMPORTS:
        importlib.import_module(name)
    sys.executable = program  # recipes that run others
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(door)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        call, _ = listener.accept()
        with call:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                answer(call)
                os._exit(0)


def answer(call):
    """Run a call in a fork, and say how it ended."""
    size, fds, _, _ = socket.recv_fds(call, 4, 3)
    body = b""
    while len(body) < int.from_bytes(size, "big"):
        body += call.recv(1 << 16)
    folder, *words = body.decode(errors="surrogateescape").split("\0")
    split = words.index("")
    variables = dict(word.split("=", 1) for word in words[:split])
    child = os.fork()
    if child == 0:
        call.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os._exit(run(folder, variables, words[split + 1 :]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        call.send(str(status if status >= 0 else 128 - status).encode())


def run(folder, variables, arguments):
    """What Python does with a script or with ``-c``; the exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    status = 0
    try:
        if arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
            exec(arguments[1], {"__name__": "__main__"})  # noqa: S102
        else:
            sys.argv = arguments
            sys.path[0] = os.path.dirname(arguments[0])
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as left:
        if isinstance(left.code, str):
            sys.stderr.write(f"{left.code}\n")
        status = left.code if isinstance(left.code, int) else bool(left.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    return leave(int(status))


def leave(status):
    """What happens at the end of a process: threads, hooks and buffers."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(*sys.argv[1:])
