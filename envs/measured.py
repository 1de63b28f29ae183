"""Errors of the catalogue's entries, `Report.error`, as tests/benchmarks/verdicts.py measured and wrote them."""

ERRORS: dict[str, float] = {}
