"""The texts that repairs are fitted on.

A plan names its text by the digest of its tokens and says where they are from. A text that comes with this program, or
from the hub, is read again wherever the plan goes. A file of its maker's own is named, and never opened for it: whoever
measures the plan gives the file, once for each process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from amp_explore.errors import PlanError, TextWanted
from amp_explore.plan import Repair, RepairMethod
from amp_explore.texts.calibration import TokenWindows, calibration_windows

_KEPT = 32  # texts; half a megabyte each, or so


class RepairTexts:
    """Windows by their digest, as far as they were seen lately; safe to use from several threads."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, TokenWindows] = OrderedDict()
        self._lock = threading.Lock()

    def know(self, windows: TokenWindows) -> None:
        """Keep windows for the repairs that name them."""
        with self._lock:
            self._seen[windows.digest] = windows
            self._seen.move_to_end(windows.digest)
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)

    def find(self, digest: str) -> TokenWindows | None:
        """The windows of this digest, if they are known."""
        with self._lock:
            return self._seen.get(digest)

    def repair_by(self, tokenizer: PreTrainedTokenizerBase, method: RepairMethod, **text: Any) -> Repair:
        """A repair fitted on the text that `calibration_windows` gives for these options."""
        windows = calibration_windows(tokenizer, **text)
        self.know(windows)
        if text.get("text") is not None:
            text["text"] = str(text["text"])
        return Repair(method, windows.digest, **text)

    def windows(
        self, tokenizer: PreTrainedTokenizerBase, repair: Repair, text: str | Path | None = None
    ) -> TokenWindows:
        """The windows of a repair; `text` is the file that a person gives where it names one.

        Raises:
            TextWanted: it names a file, which was not given yet.
            PlanError: the text here is another one.
        """
        if (seen := self.find(repair.digest)) is not None:
            return seen
        if repair.text is not None and text is None:
            raise TextWanted(repair.text, repair.digest)
        cut = {name: getattr(repair, name) for name in ("window", "windows", "bos", "seed")}
        given = None if repair.text is None else text
        windows = calibration_windows(tokenizer, repair.source, text=given, **cut)
        if windows.digest != repair.digest:
            raise PlanError(
                f"the plan was repaired on other text than {windows.data} is here (digest {repair.digest}, here "
                f"{windows.digest}); bring that text, or set the plan's repair to null"
            )
        self.know(windows)
        return windows
