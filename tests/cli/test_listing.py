"""`criteria` and `allocations`."""

from __future__ import annotations

import pytest

from amp_explore.criteria.registry import CRITERIA
from amp_explore.studies.recipe import ALLOCATIONS


@pytest.mark.parametrize(("command", "names"), [("criteria", CRITERIA), ("allocations", ALLOCATIONS)])
def test_lists_name_everything_with_its_formula_and_source(good, command, names):
    output = good(command)
    for name, each in names.items():
        assert f"\n{name}" in f"\n{output}" and each.formula in output and each.source in output
    if command == "criteria":
        assert "cfsp (neurons)" in output and "amp (heads and neurons)" in output
