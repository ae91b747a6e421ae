"""The protocols, a file each. `ROUTER` of such a file has its paths, and nothing else names the file."""

import importlib
import pkgutil

from fastapi import APIRouter


def routers() -> list[APIRouter]:
    """The routers of all protocols."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}").ROUTER for name in names]
