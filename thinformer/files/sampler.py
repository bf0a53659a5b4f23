"""What the comments in a sampler's file say of its rows: which of them are warm-up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

SETTING = re.compile(r"\s*(\w+)\s*=\s*(\S+)")  # CmdStan writes "#     save_warmup = 1"
ADAPTED = "Adaptation terminated"  # CmdStan writes this after the last row of the warm-up
WARMUP, HEADERS = "warm-up rows", "repeated headers"  # what a reader skips and counts


@dataclass
class Marks:
    """What the comments so far say.

    settings : those of CmdStan that were read
    adapted : whether the adaptation has ended since
    """

    settings: dict[str, str] = field(default_factory=dict)
    adapted: bool = False

    def read(self, comment: str) -> None:
        """Take in a comment, without the mark at its beginning."""
        found = SETTING.match(comment)
        if found:
            name, value = found.groups()
            self.settings[name] = value.lower()
            if name == "save_warmup":  # of one more run, in files that were joined
                self.adapted = False
        elif comment.strip().startswith(ADAPTED):
            self.adapted = True

    def warming(self) -> bool:
        """Whether the rows that come next are warm-up."""
        told = self.settings.get
        return (
            told("save_warmup") in ("1", "true")
            and not self.adapted
            # without adaptation there is no line that says where it ended
            and told("engaged") not in ("0", "false")
            and told("algorithm") != "fixed_param"
            and told("num_warmup") != "0"
        )


def format_skipped(skipped: Mapping[str, int]) -> list[str]:
    """Return a line for each kind of rows that were skipped."""
    return [f"{what} left out: {count}" for what, count in skipped.items()]
