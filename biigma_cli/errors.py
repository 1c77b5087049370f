"""Every error a user can cause: what went wrong, where, how to fix it, and the exit code.

`biigma_cli.cli.boundary` turns any of these into one message on stderr, without a traceback.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_DEVICE = 4
EXIT_PARTIAL = 5
EXIT_RANK_LOST = 6
EXIT_INTERRUPTED = 130

#: What brings shipped files back.
AGAIN = "pip install --force-reinstall biigma"


class BiigmaError(Exception):
    """Base of all errors that have one clear message.

    Args:
        message: what is wrong and where (a path, a column, a value).
        fix: what the user can do about it; shown on a line of its own.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(BiigmaError):
    """A flag, a config key or a combination of them that cannot be."""

    exit_code = EXIT_USAGE


class RunBusy(UsageError):
    """Another process is training in the same run folder."""


class DataError(BiigmaError):
    """Bad, missing or corrupt data: an image, a metadata file, a split."""

    exit_code = EXIT_DATA


class ImageError(DataError):
    """One image that cannot be read; a batch goes on without it."""


class MaskError(DataError):
    """A picture where a lesion mask should be; a batch goes on without it."""


class ModelFileError(BiigmaError):
    """A model or weights file that is missing, corrupt or not one of ours."""

    exit_code = EXIT_DATA


class CheckpointMismatch(ModelFileError):
    """A checkpoint whose classes, shapes or split do not fit the request."""


class DeviceError(BiigmaError):
    """A device or an execution provider that was asked for and cannot be had."""

    exit_code = EXIT_DEVICE


class ParityError(BiigmaError):
    """torch and ONNX Runtime disagree on the same images; nothing was written."""


class TrainingDiverged(BiigmaError):
    """A loss that is NaN, infinite or exploded, or weights that are not finite."""


class Interrupted(BiigmaError):
    """Work that a signal ended after it had saved its state.

    Args:
        exit_code: 130 for SIGINT, 143 for SIGTERM, as a shell would give.
    """

    def __init__(self, message: str, *, fix: str = "", exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(message, fix=fix)
        self.exit_code = exit_code


class RankLost(BiigmaError):
    """Another process of a distributed training ended or no longer answers.

    The code is its own, so that the launcher can tell this consequence from its cause.
    """

    exit_code = EXIT_RANK_LOST


class PartialFailure(BiigmaError):
    """Some inputs of a batch failed; the others were answered."""

    exit_code = EXIT_PARTIAL
