"""What the comments in a sampler's file say of its rows: which of them are warm-up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

SETTING = re.compile(r"\s*(\w+)\s*=\s*(\S+)")  # CmdStan writes "#     save_warmup = 1"
ADAPTED = "Adaptation terminated"  # CmdStan writes this after the last row of the warm-up
WARMUP, HEADERS = "warm-up rows", "repeated headers"  # what a reader skips and counts


OFF = ("0", "false")


@dataclass
class Marks:
    """What the comments so far say.

    settings : those of CmdStan that were read
    adapted : whether the adaptation has ended since
    passed : rows of a warm-up without adaptation that were skipped since
    """

    settings: dict[str, str] = field(default_factory=dict)
    adapted: bool = False
    passed: int = 0

    def read(self, comment: str) -> None:
        """Take in a comment, without the mark at its beginning."""
        found = SETTING.match(comment)
        if found:
            name, value = found.groups()
            self.settings[name] = value.lower()
            if name == "save_warmup":  # of one more run, in files that were joined
                self.adapted, self.passed = False, 0
        elif comment.strip().startswith(ADAPTED):
            self.adapted = True

    def skip(self, rows: int) -> int:
        """How many of the next rows are warm-up; they count as read."""
        if not self._saved():
            return 0
        if not self._counted():
            return 0 if self.adapted else rows
        skipped = min(rows, max((self._length() or 0) - self.passed, 0))
        self.passed += skipped
        return skipped

    def notes(self) -> list[str]:
        """A note where warm-up is kept, because no comment says how long it is."""
        if not self._saved() or not self._counted() or self._length() is not None:
            return []
        return [
            "warm-up rows may be kept: save_warmup = 1 without adaptation, and no comment says "
            "num_warmup; remove these rows from IN"
        ]

    def end(self) -> str:
        """What the comments say of the end of the warm-up."""
        return "num_warmup is not less" if self._counted() else f"none says '{ADAPTED}'"

    def _saved(self) -> bool:
        """Whether the run wrote its warm-up."""
        told = self.settings.get
        saved = told("save_warmup") in ("1", "true") and told("num_warmup") != "0"
        return saved and told("algorithm") != "fixed_param"  # which has none

    def _counted(self) -> bool:
        """Whether no line says where the warm-up ended, as the run did not adapt."""
        return self.settings.get("engaged") in OFF

    def _length(self) -> int | None:
        """The rows of the warm-up: every `thin`-th of its draws, the first included."""
        draws, step = self.settings.get("num_warmup", ""), self.settings.get("thin", "1")
        if not draws.isdecimal() or not step.isdecimal() or int(step) == 0:
            return None
        return -(-int(draws) // int(step))


def format_skipped(skipped: Mapping[str, int]) -> list[str]:
    """Return a line for each kind of rows that were skipped."""
    return [f"{what} left out: {count}" for what, count in skipped.items()]
