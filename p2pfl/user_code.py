"""The user's own code, by the name an agreement has for it: "module:attribute"."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from p2pfl.errors import ConfigError

__all__ = ["imported"]


def imported(path: str, what: str) -> Any:
    """The callable that `path`, "package.module:attribute", names; `what` is what errors call it.

    The current folder is searched first, as `python -m` does.
    Raises ConfigError that says what is missing and what there is.
    """
    name, separator, attribute = path.partition(":")
    if not separator or not name or not attribute:
        raise ConfigError(f'{what} {path!r} is not "module:attribute", such as "mine:{what.split()[0]}"')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"no module {name!r}; start in the folder that holds {name.split('.')[0]}.py, or install it"
            ) from error
        raise ConfigError(f"module {name!r} imports {error.name!r}, which is not installed") from error
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise ConfigError(f"importing {name!r} raised {type(error).__name__}: {error}") from error
    try:
        found = module
        for step in attribute.split("."):
            found = getattr(found, step)
    except AttributeError as error:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"module {name!r} has no {attribute!r}; it has {', '.join(names) or 'none'}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}; expected a function")
    return found
