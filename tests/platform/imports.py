"""Stand-ins for missing packages, so that sglang can be imported.

A package of the allow-list becomes a tree of empty modules. A name with an emulated operator gives
that operator. Every other name gives a placeholder, which can be imported, used in an annotation
and compared. Calling or instantiating a placeholder raises NotEmulatedError with the name.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types


class NotEmulatedError(NotImplementedError):
    """A tested path reached something that the emulation does not have."""


class _Placeholder(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{cls.__module__}.{cls.__name__}.{name}")

    def __call__(cls, *args, **kwargs):
        raise NotEmulatedError(f"{cls.__module__}.{cls.__name__} was called and is not emulated")

    def __or__(cls, other):  # in annotations: `Placeholder | None`
        return cls

    __ror__ = __or__

    def __get_pydantic_core_schema__(cls, source, handler):  # in the fields of models
        from pydantic_core import core_schema

        return core_schema.any_schema()


def placeholder(qualified: str) -> type:
    module, name = qualified.rsplit(".", 1)
    return _Placeholder(name, (), {"__module__": module})


class StandIn(types.ModuleType):
    def __init__(self, name: str, finder: "Finder"):
        super().__init__(name)
        self.__path__: list[str] = []
        self._finder = finder

    def __getattr__(self, name):
        qualified = f"{self.__name__}.{name}"
        provided = self._finder.provided
        unprovided_dunder = name.startswith("__") and qualified not in provided
        if unprovided_dunder or qualified in self._finder.absent:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if qualified in provided:
            value = provided[qualified]
        elif any(each.startswith(f"{qualified}.") for each in provided):
            value = importlib.import_module(qualified)
        else:
            value = placeholder(qualified)
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages, provided, absent=()):
        self.packages = frozenset(packages)
        self.provided = provided
        self.absent = frozenset(absent)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.packages:
            return None
        if name in self.absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name, self)

    def exec_module(self, module):
        """Nothing to run: names come when they are asked for."""


def stand_in(packages, provided, absent=()) -> None:
    """Serve `packages` from `provided` (qualified name -> object); real ones are not looked for.

    `absent` names raise ImportError, as an older release of the package would.
    """
    sys.meta_path.insert(0, Finder(packages, provided, absent))


def leave_out(absent) -> None:
    """Make names absent from now on; none of them has been asked for yet."""
    [finder] = [each for each in sys.meta_path if isinstance(each, Finder)]
    finder.absent = frozenset(absent)
