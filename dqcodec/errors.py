"""The error classes: fields for programs, one sentence for people."""

from __future__ import annotations

from pathlib import Path


class DQZError(Exception):
    """Base of all errors of this package.

    Constructible from one string, so that a data loader can rebuild it in another process; the place is in the text
    as well as in the attributes.

        path     the file concerned, or None
        member   the member of the container (a column, the payload), or None
        sample   the index of the sample, or None
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, member: str | None = None, sample: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = None if path is None else str(path)
        self.member = member
        self.sample = sample


class FormatError(DQZError, ValueError):
    """Not a valid .dqz file: what was found, where, and what is allowed."""


class TruncatedError(FormatError):
    """The file ends before its data do."""


class ChecksumError(FormatError):
    """Stored bytes do not have the checksum that the file states."""


class UnsupportedFeatureError(FormatError):
    """The file needs a feature that this version does not know."""


class SourceError(DQZError, ValueError):
    """An input image or folder that cannot be used: its name and the reason."""


class OptionError(DQZError, ValueError):
    """An argument outside its range: its name, the value, what is allowed."""


class OutputError(DQZError):
    """The output cannot be written: it exists, the folder is missing, the disk is full."""
