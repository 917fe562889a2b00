"""Full disks, made at will."""

import contextlib
import resource

__all__ = ["file_size_limit"]


@contextlib.contextmanager
def file_size_limit(size):
    """Files of this process cannot grow beyond ``size``: a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
