"""A dataclass of another module than the cached functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sample:
    """A dataclass whose constructor replaces the name of a file by the content of the file."""

    file: str

    def __post_init__(self) -> None:
        self.file = Path(self.file).read_text()
