"""From the words on a command line to a model and its inputs; every mistake is one line that says what to do."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_SHAPE = re.compile(r"^(\d+(?:x\d+)*)(?::(\w+))?$")


class CannotLoad(Exception):
    """A model or an input could not be made. `usage`: whether the arguments are to blame, and not the model."""

    def __init__(self, message: str, usage: bool = True) -> None:
        super().__init__(message)
        self.usage = usage


def load(target: str, options: dict[str, Any]) -> Any:
    """A module (or a function of tensors) by name, built with the options where it is a class or a factory.

    Args:
        target: ``package.module:name``, ``file.py:name`` or ``transformers:ClassName``.
        options: keyword arguments.

    Raises:
        CannotLoad: where there is no such thing, or it cannot be built.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise CannotLoad(f"{target!r} does not name a model: write package.module:name, or file.py:name")
    module = _imported(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = ", ".join(n for n in dir(module) if n.lower().startswith(part[:3].lower()) and not n.startswith("_"))
            raise CannotLoad(f"{place} has no {part!r}" + (f"; it has {near}" if near else ""))
        found = getattr(found, part)
    if place == "transformers" and inspect.isclass(found):
        return _pretrained_class(module, found, options)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise CannotLoad(f"{target} is a {type(found).__name__}, and neither a module nor a function")
    if not inspect.isclass(found) and not options and _needs_arguments(found):
        return found
    return _built(target, found, options)


def _imported(place: str) -> Any:
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise CannotLoad(f"there is no file {place}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
            return module
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    except CannotLoad:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or place
        hint = " (pip install linrec[transformers])" if missing == "transformers" else ""
        raise CannotLoad(f"there is no module {missing!r}{hint}") from None
    except Exception as error:
        raise CannotLoad(f"importing {place} fails with {type(error).__name__}: {error}", usage=False) from error


def _needs_arguments(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _built(target: str, factory: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        signature = inspect.signature(factory)
        raise CannotLoad(f"{target}{signature} does not fit --config: {error}") from None
    except ValueError:
        pass
    try:
        model = factory(**options)
    except Exception as error:
        raise CannotLoad(f"building {target} fails with {type(error).__name__}: {error}", usage=False) from error
    if not isinstance(model, nn.Module) and not callable(model):
        raise CannotLoad(f"{target} made a {type(model).__name__}, and not a module")
    return model


def _pretrained_class(package: Any, model_class: Any, options: dict[str, Any]) -> nn.Module:
    """A model of a library whose classes take a configuration object, from keyword arguments of the configuration."""
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        return _as_module(_built(model_class.__name__, model_class, options))
    try:
        return _as_module(model_class(config_class(**options)))
    except Exception as error:
        text = f"building {model_class.__name__} fails with {type(error).__name__}: {error}"
        raise CannotLoad(text, usage=False) from error


def _as_module(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise CannotLoad(f"{type(model).__name__} is no module")
    return model


def tensor(text: str) -> Tensor:
    """An input from its shape: normal numbers for ``2x64x8``; zeros and ones, or token ids, for ``2x64:int64``."""
    match = _SHAPE.match(text)
    dtype = getattr(torch, match.group(2) or "float32", None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise CannotLoad(f"{text!r} is no shape: write 2x64x8, or 2x64:int64 for another dtype")
    shape = [int(n) for n in match.group(1).split("x")]
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def example(inputs: Sequence[str], ids: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one call, from shapes."""
    args = tuple(tensor(text) for text in inputs)
    kwargs = {"input_ids": tensor(ids if ":" in ids else f"{ids}:int64")} if ids else {}
    if not args and not kwargs:
        raise CannotLoad("say what the model is called with: --input 2x64x8, or --input-ids 2x64")
    return args, kwargs
