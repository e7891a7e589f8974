"""Imported: from now on this process does not keep the rule of the protocol that ``FAULTS_BREAK`` names."""

from __future__ import annotations

import os

from .broken import BREAK

BREAK[os.environ["FAULTS_BREAK"]]()
