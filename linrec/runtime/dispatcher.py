"""What stands in front of a module's forward after `parallelize`: it picks the plan for a call, compiles one on first
sight of a signature, and runs the original code wherever no plan holds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture.discover import TimeAxis, find_time
from linrec.capture.trace import raised_at
from linrec.codegen import torch_forms
from linrec.ir import members
from linrec.ir.extension import PASSING
from linrec.ir.obstruction import NotParallelizable, Obstruction, Refused
from linrec.ops.opaque import is_traced
from linrec.runtime.compile import Compiled, Options, compile_call
from linrec.runtime.further import AS_SHORT, Known, ended, may_help, until_longer
from linrec.runtime.placement import default_device, under_default_device, without_default_device
from linrec.runtime.plan import OtherBranch, Plan
from linrec.runtime.settings import Settings
from linrec.runtime.shortcut import Shortcut
from linrec.runtime.signature import (
    PLAIN,
    flattened,
    frozen_of,
    is_positional,
    is_single,
    known,
    one_way,
    ordinary,
    signature,
    unsupported,
)
from linrec.runtime.state import Seen
from linrec.runtime.traced import Traced, is_callable
from linrec.runtime.trials import clipped, failure, may_be_longer, names_of, quiet, warn
from linrec.runtime.turns import inside
from linrec.runtime.validate import check_length

MAX_SIGNATURES = 24
"""How many signatures of one module are compiled; a number that changes at every call must not compile for ever."""

MOST_OTHERWISE = 4
"""At how many calls a plan may turn out to be for other branches than those taken, before it is used at one."""


def original_forward(module: nn.Module) -> Any:
    """The forward that the module would run without linrec."""
    own = module.__dict__.get("forward")
    if isinstance(own, Dispatcher):
        return own.original
    return own if own is not None else _of_class(module)


def _of_class(module: nn.Module) -> Any:
    """What the module's class has for its forward: a function, or anything else that can be called."""
    found = inspect.getattr_static(type(module), "forward")
    bind = getattr(type(found), "__get__", None)
    return found if bind is None else bind(found, module, type(module))


class Dispatcher(members.InFront):
    """Replaces ``module.forward`` (as an instance attribute). Copies and pickles with its module; plans stay behind.

    Args:
        module: the module; name: its qualified name in the parallelised model.
        settings: how to compile, and when to use plans.
        root: whether to look for loops in submodules on the first call.
    """

    def __init__(self, module: nn.Module, name: str, settings: Settings, root: bool) -> None:
        self.module = module
        self.name = name
        self.settings = settings
        self.root = root
        self.own = module.__dict__.get("forward")
        self.compiled: dict[Hashable, Compiled] = {}
        self.looked: set[Hashable] = set()
        self.owner = False
        self.last_plan: Plan | None = None
        self.disabled, self.changes = False, 0
        self.brief: tuple[int, int, int] | None = None
        self.seen = Seen()
        self.shortcut: Shortcut | None = None
        self.traced = Traced(self)

    @property
    def original(self) -> Any:
        """The module's own forward."""
        return under_default_device(self.own if self.own is not None else _of_class(self.module))

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def __wrapped__(self) -> Any:
        return self.original

    @property
    def __code__(self) -> Any:
        return getattr(self.original, "__code__", type(self).__call__.__code__)

    @property
    def __name__(self) -> str:
        return "forward"

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return getattr(self.original, "__doc__", None)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.update(compiled={}, looked=set(), last_plan=None, brief=None, seen=Seen(), shortcut=None)
        del state["traced"]
        options = self.settings.options
        own = Options(options.validate, lowering=options.lowering)
        state["settings"] = Settings(self.settings.when, self.settings.strict, own)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.traced = Traced(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a plan that holds for these arguments, or the original; the root's first calls compile."""
        if torch.compiler.is_dynamo_compiling():
            # Read by the compiler, so nothing but what it understands.
            if self._wanted() and is_traced() and is_callable(self.traced, args, kwargs):
                return self.traced.call(self.module, args, kwargs)
            return self.original(*args, **kwargs)
        caller = sys._getframe(1).f_locals.get("self")
        if caller is not self.module and isinstance(caller, nn.Module) and caller.__dict__.get("forward") is self:
            # A shallow copy of the module (copy.copy, DataParallel) shares this object: it runs its own code.
            return type(caller).forward(caller, *args, **kwargs)
        turns = self.settings.turns
        turns.enter()
        try:
            known = self.shortcut if not inside.depth and self._wanted() else None
            served = known.serves(args, kwargs) if known is not None else None
            if known is not None and served is not None:
                self.last_plan = known.plan
                return self._run(known.plan, known.length, *served, args, kwargs)
            return self._call(args, kwargs)
        finally:
            turns.leave()

    def _call(self, args: Any, kwargs: Any) -> Any:
        recorded = torch.compiler.is_compiling() or torch._C._get_tracing_state()
        if recorded or not self._active() or self._is_brief(args):
            return self.original(*args, **kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self._transformed(args, kwargs)
        leaves, spec = flattened(args, kwargs)
        if not ordinary(leaves):
            if self.owner:
                self._note_strangers(leaves)
            return self.original(*args, **kwargs)
        if default_device() is None:
            return self._ordinary(leaves, spec, args, kwargs)
        with without_default_device():
            return self._ordinary(leaves, spec, args, kwargs)

    def _ordinary(self, leaves: list[Any], spec: Any, args: Any, kwargs: Any) -> Any:
        try:
            key = signature(self.module, leaves, spec, self.seen)
            axes = None
            if self.root and self._unseen(key, leaves):
                try:
                    axes = self._look(key, spec, leaves)
                except NotParallelizable:
                    raise
                except Exception:
                    self.looked.add(key)  # not again at every call
                    raise
        except NotParallelizable:
            raise
        except Exception as error:  # a bug of the compiler must never break the model
            self.note(failure(error))
            return self.original(*args, **kwargs)
        if self.owner:
            return self._dispatch(key, spec, leaves, args, kwargs, axes)
        return self.original(*args, **kwargs)

    def _unseen(self, key: Hashable, leaves: list[Any]) -> bool:
        """Whether a call like this one was not looked at yet. Where a number of the module moves from call to call, all
        calls are unlike those before: after many of them nothing new is to be expected."""
        new = key not in self.looked and (key, clipped(leaves)) not in self.looked
        return new and len(self.looked) < 4 * MAX_SIGNATURES

    def _is_brief(self, args: Any) -> bool:
        """Whether a call is too short for any plan to pay, told at a glance: finding its plan would take longer."""
        if self.brief is None:
            return False
        position, dim, least = self.brief
        x = args[position] if position < len(args) else None
        return isinstance(x, Tensor) and x.dim() > dim and x.shape[dim] < least

    def _note_brief(self, plan: Plan, spec: Any) -> None:
        """Remember by which argument a call's length is seen, and from which length on a plan may pay."""
        axis = plan.axis
        where = (axis.leaf, axis.dim) if is_positional(spec) and not self.settings.strict else (-1, -1)
        least = plan.pays_from + axis.dims[axis.leaf][axis.dim]
        others = sum(len(c.plans) for c in self.compiled.values())
        if others and (self.brief is None or self.brief[:2] != where):
            self.brief = None
        else:
            self.brief = (*where, min(least, self.brief[2]) if self.brief else least) if where[0] >= 0 else None

    def _note_strangers(self, leaves: list[Any]) -> None:
        """Say which arguments keep a call from being traced: what an object does in a call cannot be replayed."""
        for name in sorted({type(x).__name__ for x in leaves if not known(x)}):
            hint = "Pass tensors and plain values; language models take use_cache=False in training."
            self.note(Obstruction("LR014", "", f"the call has an argument of type {name}.", hint))

    def _note_other_length(self, failures: list[IndexError]) -> None:
        """Say that forward runs a number of steps that does not come of its input, where that is what it looks like."""
        if failures:
            text = f"with fewer steps forward raises {type(failures[0]).__name__}: {failures[0]}."
            hint = "Take the number of steps from the input, as by range(x.shape[1])."
            problem = Obstruction("LR005", raised_at(failures[0]), text, hint)
            self.note(problem)
            if self.settings.strict:
                raise NotParallelizable([problem])

    def note(self, problem: Obstruction) -> None:
        """Put an obstruction into the report that belongs to no signature."""
        found = self.compiled.setdefault("failures", Compiled())
        if problem not in found.obstructions:
            found.obstructions.append(problem)

    def _active(self) -> bool:
        if inside.depth:
            return False
        return self._wanted() and not torch.is_inference_mode_enabled()

    def _wanted(self) -> bool:
        return not self.disabled and (self.settings.when != "training" or self.module.training)

    def _look(self, key: Hashable, spec: Any, leaves: list[Any]) -> list[TimeAxis] | None:
        """Find the modules that own a time loop in this call, and put a dispatcher in front of each. Returns what was
        found, if it was asked."""
        problem = one_way(self.module)
        if problem is not None:
            self.note(problem)
            self.looked.add(key)
            return None
        names = {id(m): n for n, m in members.named_modules(self.module)}
        with self.settings.turns.alone() as free:
            if not free:
                return None
            failures: list[IndexError] = []
            with quiet():
                axes = list(find_time(self.module, self.original, spec, leaves, failures))
            for axis in axes:
                for owner in axis.owners:
                    if owner is self.module:
                        self.owner = True
                    elif not isinstance(owner.__dict__.get("forward"), Dispatcher) and id(owner) in names:
                        path = f"{self.name}.{names[id(owner)]}" if self.name else names[id(owner)]
                        new = Dispatcher(owner, path, self.settings, root=False)
                        new.owner = True
                        owner.__dict__["forward"] = new
            if not self.owner and not any(
                isinstance(m.__dict__.get("forward"), Dispatcher) for m in names_of(self.module)
            ):
                self._note_other_length(failures)
                key = (key, clipped(leaves))  # a longer call may show more
            self.looked.add(key)
            return axes

    def _dispatch(
        self, key: Hashable, spec: Any, leaves: list[Any], args: Any, kwargs: Any, axes: list[TimeAxis] | None
    ) -> Any:
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        try:
            plan, length, values = self._plan(key, spec, leaves, tensors, axes)
        except NotParallelizable:
            raise
        except Exception as error:  # a bug of the compiler must never break the model
            self.note(failure(error))
            plan, length, values = None, 0, None
        if plan is None:
            return self.original(*args, **kwargs)
        self.last_plan = plan
        self.shortcut = None if self.settings.strict else self._as_shortcut(key, leaves, args, kwargs, plan, length)
        return self._run(plan, length, tensors, values, args, kwargs)

    def _as_shortcut(
        self, key: Hashable, leaves: list[Any], args: Any, kwargs: Any, plan: Plan, length: int
    ) -> Shortcut | None:
        """What to remember of a call that a plan serves, where each argument is one leaf."""
        single = is_single(args, kwargs)
        known = self.seen.fixed(frozen_of(key)) if single else None
        found = self._found(key)[1] if known is not None else None
        if known is None or found is None:
            return None
        return Shortcut.of(self.module, leaves, tuple(kwargs), known, plan, found.watch, length)

    def _run(
        self, plan: Plan, length: int, tensors: list[Tensor], values: list[Any] | None, args: Any, kwargs: Any
    ) -> Any:
        """The result of a plan, or of the original where that turns out not to be for this call."""
        try:
            return plan.run(self.module, tensors, values)
        except PASSING:
            raise
        except OtherBranch as other:
            result = self.original(*args, **kwargs)
            self._otherwise(plan, other)
            return result
        except Exception as error:  # what the user's code does wrong, the original says better
            result = self.original(*args, **kwargs)
            text = f"at length {length} the rewritten graph fails: {type(error).__name__}: {error}."
            self._broken(plan, length, Obstruction("LR010", "", text))
            return result

    def _plan(
        self, key: Hashable, spec: Any, leaves: list[Any], tensors: list[Tensor], axes: list[TimeAxis] | None = None
    ) -> tuple[Plan | None, int, list[Any] | None]:
        """The plan for a call, compiled and checked where that is due, the length, and what the plan runs with."""
        key, found = self._found(key)
        plan, values = self._admitted(found, tensors) if found else (None, None)
        if plan is None and (found is None or may_help(found, self.module, tensors)):
            found = self._compile(key, spec, leaves, found, axes)
            plan, values = self._admitted(found, tensors) if found else (None, None)
        self._strictly(found)
        if plan is None:
            return None, 0, None
        length = plan.length(tensors)
        if length < plan.pays_from:
            return None, length, None
        if not self._due(plan, length):
            return plan, length, values
        assert found is not None
        if self._check(plan, spec, leaves, length, (key, found)) is not None:
            plan = self._admitted(found, tensors)[0]
            plan = None if plan is None or self._due(plan, length) else plan  # one for a longer period
        return plan, length, None

    def _found(self, key: Hashable) -> tuple[Hashable, Compiled | None]:
        """What was compiled for calls like this one, all that code reads elsewhere being as it is now, and its key."""
        for number in range(MAX_SIGNATURES):
            found = self.compiled.get((key, number))
            if found is None or found.watch is None or found.watch.holds():
                return (key, number), found
        return (key, MAX_SIGNATURES), self.compiled.get((key, MAX_SIGNATURES))

    def _transformed(self, args: Any, kwargs: Any) -> Any:
        """A call inside a transform of `torch.func`: by a plan that is there and checked at this length, in its torch
        forms; by the original where there is none, or one of its operators does not know the transform."""
        leaves, spec = flattened(args, kwargs)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if all(type(x) in (*PLAIN, Tensor, nn.Parameter) for x in leaves):
            found = self._found(signature(self.module, leaves, spec, self.seen))[1]
            plan = self._admitted(found, tensors)[0] if found else None
            if plan is not None and not self._due(plan, plan.length(tensors)) and not plan.has_effects:
                try:
                    with torch_forms():
                        return plan.run(self.module, tensors)
                except PASSING:
                    raise
                except Exception:  # nothing has been changed yet: the original says what it has to say
                    pass
        return self.original(*args, **kwargs)

    def _due(self, plan: Plan, length: int) -> bool:
        """Whether the original has to run at this length first: to be compared, or for the numbers that it computes."""
        return (self.settings.options.validate or plan.numbers is not None) and not plan.is_checked(length)

    def _admitted(self, found: Compiled, tensors: list[Tensor]) -> tuple[Plan | None, list[Any] | None]:
        for plan in found.plans:
            values = plan.admitted(self.module, tensors, plan.length(tensors))
            if values is not None:
                return plan, values
        return None, None

    def _compile(
        self, key: Hashable, spec: Any, leaves: list[Any], found: Compiled | None, axes: list[TimeAxis] | None = None
    ) -> Compiled | None:
        if found is None and len(self.compiled) >= MAX_SIGNATURES:
            text = f"the module was called with more than {MAX_SIGNATURES} combinations of arguments and attributes."
            found = Compiled(obstructions=[Obstruction("LR014", "", text)])
            self.note(found.obstructions[0])
            self._strictly(found)
            return found
        with self.settings.turns.alone() as free:
            if not free:
                return found
            found = self._compiled(key, spec, leaves, found or Compiled(), axes)
        self._strictly(found)
        return found

    def _compiled(
        self, key: Hashable, spec: Any, leaves: list[Any], found: Compiled, axes: list[TimeAxis] | None
    ) -> Compiled:
        long = ended(found, tensors := [x for x in leaves if isinstance(x, Tensor)])
        try:
            problem = unsupported(self.module)
            plan = None
            obstructions = [problem] if problem else []
            if problem is None:
                varied = found.varied(leaves)
                with quiet():
                    options = self.settings.options
                    plan, obstructions = compile_call(
                        self.module, self.original, spec, leaves, self.name, options, varied, found, axes, long
                    )
            if plan is not None:
                self._note_brief(plan, spec)
                found.plans.append(plan)
                self.traced.offer(plan, leaves, *pytree.tree_unflatten(leaves, spec))
                if long or len(found.plans) == 1:
                    until_longer(found)
            else:
                found.failed.append([tuple(x.shape) for x in tensors])
                obstructions = [] if long else obstructions  # the plan that is not for this call has its own
            self._note_changes(obstructions)
            found.obstructions = [o for o in found.obstructions if o not in obstructions] + obstructions
            if found.plans or obstructions or not may_be_longer(leaves):
                self.compiled[key] = found
        except Refused as refused:
            found = Compiled(obstructions=[refused.obstruction])
            self.compiled[key] = found
        except Exception as error:  # as in _call
            found = Compiled(obstructions=[failure(error)])
            self.compiled[key] = found
        return found

    def _note_changes(self, obstructions: list[Obstruction]) -> None:
        """What forward does to the module's own numbers and containers holds for every call, unless it is what it does
        at its first one only."""
        if any(o.id == "LR013" for o in obstructions):
            self.changes += 1
            self.disabled = self.changes > 1
        elif not obstructions:
            for found in self.compiled.values():
                found.obstructions = [o for o in found.obstructions if o.id != "LR013"]

    def _strictly(self, found: Compiled | None) -> None:
        if not self.settings.strict or found is None:
            return
        left = list(found.obstructions)
        for plan in found.plans:
            left += [o for r in plan.recurrences if not r.parallel for o in r.obstructions]
        if left:
            raise NotParallelizable(left)

    def _check(self, plan: Plan, spec: Any, leaves: list[Any], length: int, of: Known = None) -> Obstruction | None:
        with self.settings.turns.alone() as free:
            if not free:
                return Obstruction("LR014", "", "another thread is compiling.")
            try:
                with quiet():
                    problem = check_length(plan, self.module, plan.axis.forward or self.original, spec, leaves, length)
            except OtherBranch as other:
                problem = Obstruction("LR015", "", f"{other}; the original runs.")
                self._otherwise(plan, other)
                if plan.otherwise >= MOST_OTHERWISE and not plan.seen:
                    self._broken(plan, 0, problem)
                return problem
        if problem is None:
            plan.checked = max(plan.checked, length)
            plan.seen.add(length)
        elif of is None or problem.id not in AS_SHORT or not self._in_turns(plan, spec, leaves, length, *of):
            self._broken(plan, length, problem)
        return problem

    def _in_turns(self, plan: Plan, spec: Any, leaves: list[Any], length: int, key: Hashable, found: Compiled) -> bool:
        """Whether a plan is not for calls as long as this one because steps repeat after more steps than short runs
        have: then there is another plan for these."""
        if plan.until is None:
            before, plan.until = len(found.plans), length
            self._compile(key, spec, leaves, found)
            new = found.plans[before:]
            if not new or new[0].period <= plan.period or self._check(new[0], spec, leaves, length) is not None:
                del found.plans[before:]
                plan.until = None
                return False
        plan.until, self.shortcut = length, None
        return True

    def _otherwise(self, plan: Plan, other: OtherBranch) -> None:
        """Say once that the original runs where forward branches otherwise."""
        plan.otherwise += 1
        if plan.otherwise == 1:
            warn(f"linrec runs the original code of {self.name or 'the model'} where {other}.")

    def _broken(self, plan: Plan, length: int, problem: Obstruction) -> None:
        """Use a plan no more from a length on."""
        plan.broken_from = (length, problem)
        if self.settings.strict:
            raise NotParallelizable([problem])
        warn(f"linrec keeps the original code of {self.name or 'the model'}: {problem}")
