"""A compressed body takes as much memory as it has bytes."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from wsgi_isr.pages.compression import _coders

#: Half of it repeats, so that the compressed body is about half as long.
BODY = random.Random(20).randbytes(20_000) * 2


@pytest.mark.parametrize("coding", ["br", "gzip", "zstd"])
def test_a_compressed_body_has_no_memory_to_spare(coding: str) -> None:
    compress = _coders()[coding]
    compress(BODY)  # modules and tables of the coder stay
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        body = compress(BODY)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < len(body) + 200
