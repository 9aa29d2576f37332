"""The locks hold what the requirements ask for, exactly and with hashes."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))


def locked(path: Path) -> list[tuple[Requirement, int]]:
    """Each package of a lock, and how many files of it may be installed."""
    blocks = re.findall(r"^\w.*\n(?:[ \t].*\n)*", path.read_text(), re.MULTILINE)
    return [(Requirement(block.split("\\")[0]), block.count("--hash=sha256:")) for block in blocks]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_is_exact(path):
    packages = locked(path)
    assert packages
    for package, files in packages:
        [version] = package.specifier
        assert version.operator == "==" and files, f"{package.name} is not pinned with hashes"


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_a_lock_holds_what_is_required(name):
    """In versions that the requirements admit; where not, `make lock` writes it anew."""
    packages = [package for package, _ in locked(ROOT / f"{name}.lock")]
    for line in (ROOT / f"{name}.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        wanted = Requirement(line)
        found = [package for package in packages if canonicalize_name(package.name) == canonicalize_name(wanted.name)]
        versions = [each.version for package in found for each in package.specifier]
        assert versions and all(map(wanted.specifier.contains, versions)), f"{wanted} is locked as {versions}"
