"""The guide to releases names the variables of platforms that the code reads, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

from wsgi_isr.config.source import PLATFORM_VARIABLES

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "releases.md"


def test_the_guide_lists_the_platform_variables_in_the_order_of_the_code() -> None:
    [paragraph] = [part for part in GUIDE.read_text("utf-8").split("\n\n") if part.startswith("The platform's name")]
    assert tuple(re.findall(r"`([A-Z_]+)`", paragraph)) == PLATFORM_VARIABLES
