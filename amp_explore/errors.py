"""What a person can get wrong, told in one line that says what to do next."""


class AmpExploreError(Exception):
    """Base of every error that is shown to the user as its message alone, without a traceback."""


class ModelError(AmpExploreError):
    """The model cannot be loaded, or is of a family that is not known."""


class PlanError(AmpExploreError):
    """A plan is malformed, or does not fit the model."""


class DataError(AmpExploreError):
    """Calibration or evaluation data is missing, too short or unreadable."""


class TooLarge(AmpExploreError):
    """It does not fit into the device's memory."""


class CacheError(AmpExploreError):
    """The cache cannot be read, or nothing more can be kept in it."""


def in_one_line(error: BaseException) -> str:
    """What a library says of a failure: without line breaks, and not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__
