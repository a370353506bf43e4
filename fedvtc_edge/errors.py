"""Every error that fedvtc-edge raises on purpose.

    FedVTCError
    ├── UsageError            the user's input is wrong             exit 2
    │   ├── ConfigError       a key, type or range in the settings
    │   ├── DataError         a data set that cannot be used
    │   ├── RunError          a run directory that cannot be written, read or resumed
    │   └── ScoreError        attack scores that nothing can be concluded from
    ├── MissingExtra          a part that this installation leaves out   exit 2
    └── GateError             a verification or gate said no        exit 1

An error names what it got and what it expected; its ``hint`` is one line that
says what to do next. The command line prints both and never a traceback.
"""

from __future__ import annotations


class FedVTCError(Exception):
    """Root of every error raised on purpose.

    Args:
        message: One sentence: what was got, what was expected.
        hint: One line: what to do next.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(FedVTCError):
    """The user's input is wrong."""


class ConfigError(UsageError):
    """A setting has an unknown name, a wrong type or a value out of range."""


class DataError(UsageError):
    """A data set is missing, damaged or too small for what is asked of it."""


class RunError(UsageError):
    """A run directory cannot be written, read or resumed."""


class ScoreError(UsageError):
    """Attack scores, or a rate asked of them, from which nothing can be concluded."""


class MissingExtra(FedVTCError):  # noqa: N818  (what is missing is an extra)
    """A feature needs an optional part of the installation."""


class GateError(FedVTCError):
    """A verification or a gate failed."""

    exit_code = 1
