"""Processes that read data while the model runs.

Authors
 * The blsp_plugin team 2026
"""

import multiprocessing
import os
import sys
import threading

__all__ = ["worker_options"]


def worker_options(workers):
    """Options of a `torch.utils.data.DataLoader` with worker processes.

    The workers are not forked from this process, where a thread (of gloo, of
    OpenMP, of a progress bar) may hold a lock at that moment: the worker would
    wait for it, and the training for the worker, for ever. Another process,
    which has no threads and is started once, forks them. So what they work on
    is pickled, and should be small. They end when this process does, killed or
    not.

    Arguments
    ---------
    workers : int
        Processes; 0: none, it is read here.

    Returns
    -------
    dict

    Example
    -------
    >>> worker_options(0)
    {'num_workers': 0}
    >>> worker_options(2)["multiprocessing_context"]
    'forkserver'
    """
    if not workers:
        return {"num_workers": 0}
    # A worker imports what the script imports: once there, for all of them.
    package = __name__.partition(".")[0]
    multiprocessing.set_forkserver_preload(
        [name for name in sys.modules if name.partition(".")[0] == package]
    )
    return {
        "num_workers": workers,
        "multiprocessing_context": "forkserver",
        "worker_init_fn": _end_with_parent,
    }


def _end_with_parent(worker):
    """Let a worker not outlive whom it works for.

    torch's own watchdog looks at the process that forked it: the other one,
    which in its turn waits for the workers' end.
    """

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
