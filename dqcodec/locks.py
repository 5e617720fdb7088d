"""Locks of open files that go with the process that holds them, however it ends."""

from __future__ import annotations


def locked(descriptor: int) -> bool | None:
    """Take the lock of an open file or folder: True; False where another process has it; None where there are none."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
