"""Memory that a training gives back a thousand times a step, it keeps.

Authors
 * The blsp_plugin team 2026
"""

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory():
    """Tell the C library not to return freed memory to the system.

    glibc gives blocks of some megabytes, which a batch's tensors are, back at
    once and asks for them again, and the system fills every page with zeros:
    on a CPU a third of a training step by CTC. For the whole process, as long
    as it lives; where there is no glibc nothing happens.

    Returns
    -------
    bool
        Whether the C library does so now.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False  # another C library
    kept = mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept and mallopt(_MMAP_THRESHOLD, 2**30))
