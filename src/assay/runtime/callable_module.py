"""A module that is also its own main function: ``assay.audit(subject)`` beside ``assay.audit.Property``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module whose call is that of its function of the same last name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Let the module ``name`` be called."""
    sys.modules[name].__class__ = CallableModule
