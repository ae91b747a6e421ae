"""What is installed: every file that the package reads is in it."""

import runpy

import setuptools

from tests.small import REPO


def test_files_that_are_no_modules_are_installed(monkeypatch):
    given = {}
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    runpy.run_path("setup.py")
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
