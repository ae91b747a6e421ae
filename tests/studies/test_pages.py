"""Pages and commands of the studies: links lead somewhere, each contender can be imported."""

import re
import runpy
import sys
import types

import pytest

from studies import pages
from tests.small import REPO

PAGES = [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *(REPO / "studies").rglob("*.md")]
CONTENDERS = REPO / "studies" / "speed" / "contenders"


def test_links_lead_to_files():
    missing = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            place = link.partition("#")[0]
            if place and "://" not in link and not (page.parent / place).exists():
                missing.append(f"{page.relative_to(REPO)}: {link}")
    assert not missing


@pytest.mark.parametrize("path", sorted(CONTENDERS.glob("*__dwrl.py")), ids=lambda path: path.stem)
def test_contenders_can_be_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(CONTENDERS)
    monkeypatch.setitem(sys.modules, "common", types.ModuleType("common"))  # the harness's own
    assert callable(runpy.run_path(str(path))["main"])
    monkeypatch.delitem(sys.modules, "dwrl")


def test_text_outside_the_marks_stays():
    page = pages.splice("Before.\n", "one\n")
    assert pages.between(page) == "one\n" and page.startswith("Before.\n\n")
    again = pages.splice(page.replace("Before", "First") + "After.\n", "two\n")
    assert again == page.replace("Before", "First").replace("one", "two") + "After.\n"
