"""On import, break the rule of the protocol that ``FAULTS_BREAK`` names, in this process."""

from __future__ import annotations

import os

from .broken import BREAK

BREAK[os.environ["FAULTS_BREAK"]]()
