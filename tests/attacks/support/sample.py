"""A dataclass of another module than the functions that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sample:
    """Its constructor puts what a file holds in the place of the file's name."""

    file: str

    def __post_init__(self) -> None:
        self.file = Path(self.file).read_text()
