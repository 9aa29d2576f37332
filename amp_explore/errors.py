"""What a person can get wrong, told in one line that says what to do next."""


class AmpExploreError(Exception):
    """Base of every error that is shown to the user as its message alone, without a traceback."""


class ModelError(AmpExploreError):
    """The model cannot be loaded, or is of a family that is not known."""


class PlanError(AmpExploreError):
    """A plan is malformed, or does not fit the model."""


class TextWanted(PlanError):
    """A plan was repaired on somebody's own text, which the person has to give: plans have no files read.

    `name` is that of the file, `digest` that of its tokens.
    """

    def __init__(self, name: str, digest: str) -> None:
        self.name, self.digest = name, digest
        super().__init__(
            f"the plan was repaired on a text of its maker's own, {name!r} (digest {digest}); give that file, on the "
            "command line by --repair-text"
        )


class DataError(AmpExploreError):
    """Calibration or evaluation data is missing, too short or unreadable."""


class TooLarge(AmpExploreError):
    """It does not fit into the device's memory."""


class CacheError(AmpExploreError):
    """The cache cannot be read, or nothing more can be kept in it."""


def in_one_line(error: BaseException) -> str:
    """What a library says of a failure: without line breaks, and not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__
