"""Every code block of the documentation runs, or says why it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks_of

BLOCKS = {page: blocks_of(page) for page in PAGES}
#: How many blocks run, and how many have a reason why they do not. A change of the documentation changes them.
RUN, NOT_RUN = 94, 18


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.reason for block in BLOCKS[page])], ids=name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WSGI_ISR_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.blocks", str(page)],
        cwd=ROOT,
        env={**env, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == sum(not block.reason for block in BLOCKS[page])


def test_so_many_blocks_run_and_so_many_do_not() -> None:
    blocks = [block for found in BLOCKS.values() for block in found]
    assert (sum(not block.reason for block in blocks), sum(bool(block.reason) for block in blocks)) == (RUN, NOT_RUN)


def test_every_block_has_a_language() -> None:
    bare = [f"{name(page)}:{block.line}" for page, found in BLOCKS.items() for block in found if not block.language]
    assert bare == []


def test_no_reason_is_a_shrug() -> None:
    reasons = [block.reason for found in BLOCKS.values() for block in found if block.reason]
    assert [reason for reason in reasons if len(reason.split()) < 2] == []
