"""The public functions: `parallelize`, `revert`, `explain`, `report`, `graph`."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, fx, nn

from linrec.capture.probe import undone
from linrec.extend import load_installed
from linrec.ir import members
from linrec.ir.obstruction import LinrecError
from linrec.lowering.registry import LOWERINGS
from linrec.passes.base import Observer
from linrec.passes.outline import COMPILED
from linrec.report import Report
from linrec.runtime.compile import Options
from linrec.runtime.dispatcher import Dispatcher, original_forward
from linrec.runtime.settings import Settings
from linrec.runtime.signature import one_way

M = TypeVar("M", bound=nn.Module)
F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["explain", "graph", "parallelize", "report", "revert"]


class _FunctionModule(nn.Module):
    """A function as a module: the modules and parameters it closes over are registered, so that they are its state."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["function"] = function
        self.__dict__["captured"] = ()
        self.refresh()

    def refresh(self) -> None:
        """Look again at what the function captures: a closure or a global may have been bound anew."""
        found = _captured(self.__dict__["function"])
        objects = tuple(x for x in found if isinstance(x, (nn.Module, Tensor)))
        self.__dict__["numbers"] = tuple(x for x in found if not isinstance(x, (nn.Module, Tensor)))
        if [id(x) for x in objects] == [id(x) for x in self.__dict__["captured"]]:
            return
        self.__dict__["captured"] = objects
        self._modules.clear()
        self._parameters.clear()
        for name in [n for n in self.__dict__ if n.startswith("tensor_")]:
            del self.__dict__[name]
        for k, value in enumerate(objects):
            if isinstance(value, nn.Module):
                self.add_module(f"module_{k}", value)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(f"parameter_{k}", value)
            else:
                self.__dict__[f"tensor_{k}"] = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["function"](*args, **kwargs)


def _captured(function: Any, seen: set[int] | None = None) -> list[Any]:
    """The tensors, modules and numbers that a function reaches by its closure, globals, arguments or bound object."""
    seen = set() if seen is None else seen
    found: list[Any] = []

    def visit(value: Any) -> None:
        if id(value) in seen and not isinstance(value, (int, float, complex, str, bool)):
            return
        seen.add(id(value))
        if isinstance(value, (nn.Module, Tensor, int, float, complex, str, bool)):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            found.extend(_captured(value, seen))

    if isinstance(function, functools.partial):
        for value in (function.func, *function.args, *function.keywords.values()):
            visit(value)
        return found
    if isinstance(function, types.MethodType):
        visit(function.__self__)
        function = function.__func__
    code = getattr(function, "__code__", None)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            visit(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    names = getattr(function, "__globals__", {})
    for name in code.co_names if code else ():
        if name in names and not isinstance(names[name], types.ModuleType):
            visit(names[name])
    return found


class _Parallelized:
    """A parallelised function; calls it like the original."""

    def __init__(self, function: Callable[..., Any], module: _FunctionModule) -> None:
        functools.update_wrapper(self, function)
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.module.refresh()
        return self.module(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> _Parallelized:
        if instance is None:
            return self
        name = f"{type(instance).__name__}.{getattr(self, '__name__', 'the function')}"
        text = f"{name} was decorated with parallelize, which takes functions and modules, not methods of a class."
        raise LinrecError(f"{text} Leave the class as it is, and call linrec.parallelize(model) on its instances.")


@overload
def parallelize(
    model: M,
    example_inputs: Any = None,
    *,
    when: str = "training",
    strict: bool = False,
    validate: bool = True,
    lowering: str = "",
) -> M: ...
@overload
def parallelize(
    model: F,
    example_inputs: Any = None,
    *,
    when: str = "training",
    strict: bool = False,
    validate: bool = True,
    lowering: str = "",
) -> F: ...
def parallelize(
    model: Any,
    example_inputs: Any = None,
    *,
    when: str = "training",
    strict: bool = False,
    validate: bool = True,
    lowering: str = "",
) -> Any:
    """Run the linear recurrences of a model in parallel over time, with its code unchanged.

    Works in place: modules that own a loop over time get a dispatcher in front of their forward; parameters, buffers,
    state dict, class and hooks stay as they are. What cannot be proved is left alone; `report` says why.

    Args:
        model: a module, or a function of tensors (then a function is returned).
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments to compile for at once; without,
            each signature is compiled at its first call.
        when: "training" uses the parallel form while ``module.training`` and the original code in eval mode; "always"
            uses it in both.
        strict: raise where a time loop would stay.
        validate: compare each rewritten graph with the original in float64, values and gradients, before it is used,
            and check the original's operators at every new greatest length.
        lowering: the algorithm to use wherever it applies, by the name that reports give it, in place of the one that
            is expected to be the fastest; "compiled loop" for kernels wherever they can be generated, "loop" to keep
            every recurrence sequential.

    Returns:
        The same module, or a function.

    Raises:
        TypeError: if `model` is neither a module nor callable.
        ValueError: if `when` is neither "training" nor "always", or no algorithm is called `lowering`.
        NotParallelizable: under ``strict=True``, with the obstructions.

    >>> class EMA(torch.nn.Module):
    ...     def forward(self, x):
    ...         h, out = torch.zeros_like(x[:, 0]), []
    ...         for t in range(x.shape[1]):
    ...             h = 0.9 * h + 0.1 * x[:, t]
    ...             out.append(h)
    ...         return torch.stack(out, 1)
    >>> model = parallelize(EMA())
    >>> y = model(torch.randn(2, 100, 3))
    >>> report(model).recurrences[0].lowering
    'diagonal scan'
    """
    if when not in ("training", "always"):
        raise ValueError(f"when must be 'training' or 'always', not {when!r}")
    load_installed()
    known = [*(x.name for x in LOWERINGS), COMPILED, "loop"]
    if lowering and lowering not in known:
        raise ValueError(f"there is no lowering {lowering!r}; known are {', '.join(map(repr, known))}")
    settings = Settings(when, strict, Options(validate, lowering=lowering))
    if isinstance(model, nn.Module):
        revert(model)
        model.__dict__["forward"] = Dispatcher(model, "", settings, root=True)
        if example_inputs is not None:
            _compile_now(model, example_inputs)
        return model
    if isinstance(model, _Parallelized):
        model = model.module.__dict__["function"]
    if not callable(model):
        raise TypeError(f"parallelize takes a torch.nn.Module or a function, not {type(model).__name__}")
    module = _FunctionModule(model)
    wrapped = _Parallelized(model, module)
    module.__dict__["forward"] = Dispatcher(module, getattr(model, "__name__", ""), settings, root=True)
    if example_inputs is not None:
        _compile_now(module, example_inputs)
    return wrapped


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _compile_now(model: nn.Module, example_inputs: Any, keywords: dict[str, Any] | None = None) -> None:
    """Call the model once for its plans, and undo what the call did to it."""
    args, kwargs = _arguments(example_inputs)
    kwargs |= keywords or {}
    problem = one_way(model)
    if problem is not None:  # not even once, for information
        model.__dict__["forward"].note(problem)
        return
    tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    with undone(model, tensors, parameters="copy"), torch.enable_grad():
        model(*args, **kwargs)
        if any(d.changes and not d.disabled for d in _dispatchers(model)):
            model(*args, **kwargs)  # what a first call does may be done only once
        installed = [(sub, sub.__dict__.get("forward")) for sub in members.modules(model)]
    for sub, forward in installed:
        if isinstance(forward, Dispatcher):
            sub.__dict__["forward"] = forward


def _module_of(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, _Parallelized):
        return model.module
    raise TypeError(f"expected a module or a function returned by parallelize, not {type(model).__name__}")


def revert(model: Any) -> Any:
    """Take linrec out of a model again: exactly the model that came in.

    Args:
        model: a module given to `parallelize` (nothing happens to one that was not), or a function it returned.

    Returns:
        The same module, or the original function.
    """
    root = _module_of(model)
    mine: Any = root.__dict__.get("forward")
    for sub in members.modules(root):
        dispatcher = sub.__dict__.get("forward")
        if isinstance(model, _Parallelized) and dispatcher is not None and dispatcher.settings is not mine.settings:
            continue
        if isinstance(dispatcher, Dispatcher):
            if dispatcher.own is None:
                del sub.__dict__["forward"]
            else:
                sub.__dict__["forward"] = dispatcher.own
    return root.__dict__["function"] if isinstance(model, _Parallelized) else model


def _dispatchers(model: nn.Module) -> list[Dispatcher]:
    found = [sub.__dict__.get("forward") for sub in members.modules(model)]
    return [d for d in found if isinstance(d, Dispatcher)]


def report(model: Any) -> Report:
    """What `parallelize` has done to a model so far.

    Args:
        model: a module given to `parallelize`, or a function it returned.

    Returns:
        A `Report`; print it.
    """
    result = Report()
    for dispatcher in _dispatchers(_module_of(model)):
        result.called |= bool(dispatcher.looked)
        if dispatcher.owner:
            result.modules.append(dispatcher.name)
        for compiled in dispatcher.compiled.values():
            for plan in compiled.plans:
                entries = plan.recurrences
                if plan.broken_from is not None:
                    problem = plan.broken_from[1]
                    entries = [replace(r, parallel=False, obstructions=[*r.obstructions, problem]) for r in entries]
                    result.obstructions.append(problem)
                known = {(r.module, r.location, r.equation, r.lowering, r.parallel) for r in result.recurrences}
                result.recurrences += [
                    r for r in entries if (r.module, r.location, r.equation, r.lowering, r.parallel) not in known
                ]
            result.obstructions += [o for o in compiled.obstructions if o not in result.obstructions]
    return result


def explain(model: Any, *example_inputs: Any, **keywords: Any) -> Report:
    """What `parallelize` would do to a model for these inputs; changes nothing.

    Args:
        model: a module or a function.
        example_inputs, keywords: the arguments of one call.

    Returns:
        A `Report`.

    Raises:
        TypeError: where these are no arguments of the model's.
    """
    return explained(model, example_inputs, keywords)


def explained(
    model: Any, example_inputs: tuple[Any, ...], keywords: dict[str, Any], observe: Observer | None = None
) -> Report:
    """`explain`, calling `observe` with the name of each pass and the graph after it."""
    if isinstance(model, nn.Module):
        probe = model
    elif callable(model):
        probe = _FunctionModule(revert(model) if isinstance(model, _Parallelized) else model)
    else:
        raise TypeError(f"explain takes a torch.nn.Module or a function, not {type(model).__name__}")
    _check_arguments(model, example_inputs, keywords)
    kept = [(sub, sub.__dict__.get("forward")) for sub in members.modules(probe)]
    try:
        parallelize(probe, when="always")
        probe.__dict__["forward"].settings.options.observe = observe
        _compile_now(probe, example_inputs, keywords)
        return report(probe)
    finally:
        revert(probe)
        for sub, forward in kept:
            if forward is not None:
                sub.__dict__["forward"] = forward


def _check_arguments(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Say what is missing, or too much, before the model does."""
    called = original_forward(model) if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # a callable that has none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        text = f"explain takes the arguments of one call, explain(model, *inputs): {error} of {signature}"
        raise TypeError(text) from None


def graph(module: Any) -> fx.GraphModule:
    """The rewritten graph that a module used last.

    Args:
        module: a module that owns a time loop, in a parallelised model, or a model with just one of them.

    Raises:
        LinrecError: where no plan has been used yet.
    """
    root = _module_of(module)
    own = root.__dict__.get("forward")
    if isinstance(own, Dispatcher) and own.last_plan is not None:
        return own.last_plan.graph_module
    plans = [d.last_plan for d in _dispatchers(root) if d.last_plan is not None]
    if not plans:
        raise LinrecError(
            "no rewritten graph is in use: call the model in training mode first; "
            "linrec.report(model) says what was found"
        )
    if len({id(p.graph_module) for p in plans}) > 1:
        names = ", ".join(repr(d.name) for d in _dispatchers(root) if d.last_plan is not None)
        raise LinrecError(f"several modules have rewritten graphs; ask for one of them: {names}")
    return plans[0].graph_module
