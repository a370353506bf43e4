"""Every error that fedvtc-edge raises on purpose.

    FedVTCError
    ├── UsageError            the user's input is wrong             exit 2
    │   ├── ConfigError       a key, type or range in the settings
    │   ├── DataError         a data set that cannot be used
    │   ├── RunError          a run directory that cannot be written, read or resumed
    │   │   └── Busy          one in which another process works     (locking)
    │   ├── ScoreError        attack scores that nothing can be concluded from
    │   ├── PrivacyError      a privacy claim that cannot be made
    │   ├── KeyFileError      a signing, verifying or sealing key that cannot be used
    │   ├── TrustError        a trust list that cannot be used, or whom it does not trust
    │   ├── ContextError      names that an upload cannot belong to      (context)
    │   ├── BundleError       what a bundle is given, or asked for and does not hold
    │   ├── PluginError       a plug-in that is not there or fails       (plugins)
    │   └── DeploymentError   a server or node that cannot be reached, or whose keys are wrong
    ├── MissingExtra          a part that this installation leaves out   exit 2
    ├── StatisticsError       numbers that are no statistics             (statistics)
    ├── WireError             bytes that are no upload                   (wire)
    ├── MaskingError          a masked sum that cannot be had            (masking)
    ├── ServerError           a round that cannot be closed
    ├── CheckError            statistics that no honest client has       (robustness)
    └── GateError             a verification or gate said no        exit 1
        ├── VerificationError a bundle is not, byte for byte, what was exported
        ├── ParityError       the exported graph does not compute what torch computes
        └── EnvelopeError     an upload that nobody vouches for, or that is not for us
            └── ReplayError   an upload that was counted, or comes at the wrong time

Those with a module in brackets are defined there, beside the only code that raises them.
An error names what it got and what it expected; its ``hint`` is one line that
says what to do next. The command line prints both and never a traceback.
"""

from __future__ import annotations


class FedVTCError(Exception):
    """Root of every error raised on purpose.

    Args:
        message: One sentence: what was got, what was expected.
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


class PrivacyError(UsageError):
    """A privacy claim that cannot be made, or a setting under which none could."""


class KeyFileError(UsageError):
    """A key file that is missing, damaged, locked or of another kind."""


class TrustError(UsageError):
    """A trust list that is missing or damaged, or a client that it does not trust."""


class BundleError(UsageError):
    """Input that does not fit a bundle, or a part that it does not hold."""


class DeploymentError(UsageError):
    """A server or node that cannot be started or reached, or whose keys are wrong."""


class MissingExtra(FedVTCError):  # noqa: N818  (what is missing is an extra)
    """A feature needs an optional part of the installation."""


class ServerError(FedVTCError):
    """A round that cannot be closed, or an upload that does not belong to it."""


class GateError(FedVTCError):
    """A verification or a gate failed."""

    exit_code = 1


class VerificationError(GateError):
    """A bundle is not, byte for byte, what was exported and signed."""


class ParityError(GateError):
    """An exported graph does not compute what the trained network computes."""


class EnvelopeError(GateError):
    """An envelope that cannot be opened: damaged, forged, or meant for another place."""


class ReplayError(EnvelopeError):
    """An upload beside the one that counts already, or for a round that is not open."""


class FedVTCWarning(UserWarning):
    """Warning of something that is no error; the command line shows it as one line."""
