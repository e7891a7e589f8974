"""``python -m tests.benchmarks``, from the root of the repository."""

from __future__ import annotations

from tests.benchmarks.run import main

if __name__ == "__main__":
    raise SystemExit(main())
