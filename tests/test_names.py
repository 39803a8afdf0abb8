"""Test modules are imported by their bare names, so each name is used once."""

from collections import Counter
from pathlib import Path


def test_each_test_module_has_a_name_of_its_own():
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
