"""What is installed: every file that the package reads is in it, and versions that were tested."""

import re
import runpy

import pytest
import setuptools
from packaging.requirements import Requirement

from tests.small import REPO


@pytest.fixture
def given(monkeypatch):
    """The arguments of setup.py's setup(...)."""
    options = {}
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(setuptools, "setup", lambda **said: options.update(said))
    runpy.run_path("setup.py")
    return options


def pinned(name):
    """{package: version} of a constraints file."""
    lines = (REPO / "constraints" / name).read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {plain(package): version for package, version in pins}


def plain(package):
    return re.sub(r"[-_.]+", "-", package).lower()


@pytest.mark.parametrize("name", ["oldest.txt", "newest.txt"])
def test_tested_versions_are_within_the_bounds(name, given):
    pins = pinned(name)
    for text in given["install_requires"] + (given["extras_require"]["serve"] if name == "newest.txt" else []):
        needed = Requirement(text)
        signs = {bound.operator for bound in needed.specifier}
        assert signs == {">=", "<"}, f"{text}: a lower and an upper bound"
        assert pins[plain(needed.name)] in needed.specifier, f"{text}: {name} has {pins[plain(needed.name)]}"


def test_the_oldest_set_is_that_of_the_lower_bounds(given):
    """But for huggingface_hub, of which the oldest transformers needs a later version."""
    pins = pinned("oldest.txt")
    for needed in map(Requirement, given["install_requires"]):
        (low,) = (bound.version for bound in needed.specifier if bound.operator == ">=")
        same = re.match(rf"{re.escape(low)}(\.|$)", pins[plain(needed.name)])
        assert same or needed.name == "huggingface_hub", f"{needed}: {pins[plain(needed.name)]} was tested"


def test_files_that_are_no_modules_are_installed(given):
    listed = {
        path
        for package, patterns in given["package_data"].items()
        for pattern in patterns
        for path in (REPO / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (REPO / "dwrl_jax").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files and files == listed
    rooms = {path.parent for path in (REPO / "dwrl_jax").rglob("*.py")}
    assert {REPO / package.replace(".", "/") for package in given["packages"]} == rooms
    assert (REPO / "LICENSE").exists() and given["license"] == "Apache-2.0"
