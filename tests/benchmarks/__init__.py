"""The budgets of the project, measured side by side: ``python tests/benchmarks/run.py``. See README.md."""
