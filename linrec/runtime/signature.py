"""What tells one call of a module from another: how its arguments are put together, and all that a plan depends on
besides their sizes."""

from __future__ import annotations

import types
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture.beside import is_one_way
from linrec.capture.snapshot import reachable
from linrec.ir import members
from linrec.ir.fields import exact
from linrec.ir.held import held
from linrec.ir.obstruction import Obstruction
from linrec.ops.precision import autocast_state
from linrec.runtime.placement import default_device, device_set_aside
from linrec.runtime.state import Seen, submodules

PLAIN = (int, float, complex, bool, str, type(None))


def ordinary(leaves: list[Any]) -> bool:
    """Whether a call can be traced and rewritten: plain strided tensors that hold something, and plain values."""
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if type(leaf) not in (Tensor, nn.Parameter) or leaf.layout is not torch.strided or leaf.numel() == 0:
                return False
            if torch._C._functorch.is_functorch_wrapped_tensor(leaf):
                return False
            if leaf.__dict__:  # attributes that made-up inputs would not have
                return False
        elif not known(leaf):
            return False
    if torch._C._len_torch_dispatch_stack():
        return False
    return torch._C._len_torch_function_stack() == 0 or default_device() is not None


def known(leaf: Any) -> bool:
    """Whether a leaf is a tensor or a plain value."""
    return isinstance(leaf, (Tensor, torch.dtype, torch.device)) or type(leaf) in PLAIN


_FLAT = frozenset([Tensor, nn.Parameter, *PLAIN])
_positional: dict[int, Any] = {}
_numbers: dict[int, int] = {}


def flattened(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    """The leaves of ``(args, kwargs)``, and how they are put together; calls by position are quick."""
    if kwargs or not all(type(x) in _FLAT for x in args):
        return pytree.tree_flatten((args, kwargs))
    spec = _positional.get(len(args))
    if spec is None:
        spec = _positional.setdefault(len(args), pytree.tree_flatten((args, {}))[1])
        _numbers[id(spec)] = len(args)  # it lives for ever, and to hash a number is quick
    return list(args), spec


def is_single(args: Any, kwargs: Any) -> bool:
    """Whether each argument is one leaf, so that the leaves are the arguments in their order."""
    return all(type(x) in _FLAT for x in args) and all(type(x) in _FLAT for x in kwargs.values())


def is_positional(spec: Any) -> bool:
    """Whether `flattened` found nothing but single values by position: then a leaf is an argument."""
    return id(spec) in _numbers


def signature(module: nn.Module, leaves: list[Any], spec: Any, seen: Seen | None = None) -> Hashable:
    """What a plan depends on besides sizes, and what code reads elsewhere: structure, dtypes, ranks, devices, flags,
    plain arguments, attributes.

    Args:
        module: the module; leaves, spec: of its arguments; seen: what was frozen at the last call.
    """
    modules = submodules(module)
    parts: list[Hashable] = [
        _numbers.get(id(spec), spec),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        autocast_state(),
        device_set_aside(),
        one_and_the_same(leaves),
    ]
    for x in leaves:
        if isinstance(x, Tensor):
            parts.append((type(x), x.dtype, x.device, tuple([s == 1 for s in x.shape])))
        else:
            parts.append(exact(x))
    frozen, changing = (seen or Seen()).frozen(modules)
    parts.append(frozen)
    parts.append(_held(changing, leaves))
    parts.append(global_hooks())
    parts.append(any(map(hooked, modules[1:])))
    return tuple(parts)


def one_and_the_same(leaves: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Which arguments are one tensor: forward may ask that (``key is value``)."""
    first: dict[int, int] = {}
    found = []
    for k, x in enumerate(leaves):
        if isinstance(x, Tensor) and (at := first.setdefault(id(x), k)) != k:
            found.append((at, k))
    return tuple(found)


def frozen_of(key: Hashable) -> Hashable:
    """What a signature has of the attributes."""
    assert isinstance(key, tuple)
    found: Hashable = key[-4]
    return found


_TABLES = ("_parameters", "_buffers", "_modules")
_NO_TENSORS = frozenset([*PLAIN[:-1], type(None), set, types.FunctionType, types.MethodType])
"""Types that are surely none, which is quicker to see than that they are."""


def _held(modules: list[nn.Module], leaves: list[Any]) -> Hashable:
    """The tensors that modules hold as plain attributes, or in containers, such as a state from the last call: forward
    may ask whether their sizes are those of its arguments, and start anew where they are not."""
    found: list[Hashable] = []
    sizes: list[int] | None = None
    for sub in modules:
        for name, value in sub.__dict__.items():
            if type(value) in _NO_TENSORS or name in _TABLES:
                continue
            for x in (value,) if isinstance(value, Tensor) else (x for _, x in held(value)):
                if sizes is None:
                    sizes = [size for leaf in leaves if isinstance(leaf, Tensor) for size in leaf.shape]
                where = tuple(sizes.index(size) if size in sizes else -1 for size in x.shape)
                found.append((name, x.dtype, x.device, where))
    return tuple(found)


def global_hooks() -> bool:
    """Whether hooks are registered for all modules."""
    hooks = nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def hooked(module: nn.Module) -> bool:
    """Whether a module has a hook."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def one_way(module: nn.Module) -> Obstruction | None:
    """Why this module must not even be run for information, if so."""
    for name, sub in members.named_modules(module):
        if isinstance(sub, torch.jit.ScriptModule):  # whose attributes are not where those of Python's modules are
            text = f"the submodule {name!r} is a {type(sub).__name__} of TorchScript."
            return Obstruction("LR002", "", text, "Leave it as it was; functions of TorchScript are understood.")
    for name, x in reachable(module):
        if is_one_way(x):
            text = f"forward may use '{name}', a {type(x).__name__}, and what that changes cannot be taken back."
            return Obstruction("LR013", "", text, "Draw from it, or write into it, outside forward.")
    return None


def unsupported(module: nn.Module) -> Obstruction | None:
    """Why this module cannot be compiled in its present context, if so."""
    if global_hooks():
        return Obstruction("LR008", "", "a global module hook is registered.")
    for name, sub in members.named_modules(module):
        if sub is not module and hooked(sub):
            return Obstruction("LR008", "", f"the submodule {name!r} ({type(sub).__name__}) has a hook.")
    return None
