"""Exceptions. A `UserError` becomes one message without a traceback on the command line.

Library code raises these and never exits the process. Wrong arguments of a function, such as a
tensor of the wrong shape, are plain ValueErrors.
"""

from __future__ import annotations

from fastunit.common.text import printable


class UserError(ValueError):
    """Bad input. The message names the wrong value and the remedy; command lines exit with 2.

    Characters that a terminal would obey or that cannot be encoded are escaped in the message.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A folder, list file or image is missing, empty or unreadable."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class StorageError(UserError):
    """A file cannot be written: disk full, quota, read-only; command lines exit with 3."""


class ResourceError(UserError):
    """The system refuses a process or an open file; command lines exit with 3."""


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite; the message says which one and at which iteration."""
