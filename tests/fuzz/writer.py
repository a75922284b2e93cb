"""Writes one random recurrent module as Python source, and what is known about it by construction.

`write(pick)` draws everything through `pick`, so that the same code serves Hypothesis, which shrinks what was drawn, and
a plain random generator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import catalogue as cat
from .across import ACROSS, GATES


class Pick(Protocol):
    """Draws from lists; the first element is the simplest."""

    def one(self, options: Sequence[Any]) -> Any: ...


@dataclass
class Program:
    """A module as text, with `forward(x: (batch, 4, in time), mask: (batch, time) bool)`.

    Attributes:
        source: a file that defines the class `Model`.
        verdict: "parallel", "partial" or "sequential" where that is known, else "any".
        time: the dimension of time in `x` and `mask`.
        rtol: to what the values must agree.
    """

    source: str
    verdict: str
    time: int
    rtol: float


WRITES = re.compile(r"\w_\(")
"""Calls like `add_(`."""

RANK = {"linear": 0, "max": 1, "unsure": 2, "blocked": 3, "nonlinear": 4}


@dataclass
class _State:
    kind: str
    start: str
    reads: dict[int, str] = field(default_factory=dict)


class _Writer:
    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.time = pick.one([1, 1, 1, 0])
        self.walk = pick.one(
            ["range", "unbind", "zip", "iterate", "enumerate", "while", "reversed", "split", "shifted"]
        )
        self.place = pick.one(["inline", "inline", "method", "cell", "helper", "function", "nested"])
        self.style = pick.one(["together", "in turn"])
        self.container = pick.one(["variables", "variables", "tuple", "list", "dict", "attributes"])
        self.linear = pick.one([True, True, True, False])
        self.none = pick.one([False, False, False, True])
        # A graph with writes is traced three times as slowly: one program in three has them.
        self.writes = pick.one([False, False, True])
        # What surrounds the loop, or depends on the number of the step.
        self.extra = pick.one([*[""] * 9, "number", "number", "branch", "dropout before", "hook", "check", "item"])
        if self.walk in ("zip", "iterate") and self.extra in ("number", "branch"):
            self.extra = ""
        self.states: list[_State] = []
        self.outputs: list[str] = []
        self.rounds = False

    def flag(self, *odds: bool) -> bool:
        return bool(self.pick.one(odds or (False, True)))

    def run(self) -> Program:
        kinds = [
            self.pick.one(["d", "d", "d", "s", "n", "c", "f", "i"])
            for _ in range(self.pick.one([1, 1, 1, 2, 2, 2, 3, 4]))
        ]
        for kind in kinds:
            self.states.append(_State(kind, self.pick.one(cat.INITIAL[kind])))
        before = self._outputs("h") if self.flag(False, False, True) else []
        updates = self._updates()
        after = self._outputs("h" if self.style == "in turn" else "n")
        body = [*before, *updates, *after]
        if self.style == "together":
            body.append(", ".join(self._names("h")) + " = " + ", ".join(self._names("n")))
        text = "".join(body)  # what rounds the state rounds its derivative, and sums of it part by part
        allowed = 1e-3 if ".half()" in text else 1e-5 if ".float()" in text or self.rounds else 1e-8
        return Program(self._assemble(body), self._verdict(), self.time, allowed)

    def _names(self, prefix: str) -> list[str]:
        return [f"{prefix}{i}" for i in range(len(self.states))]

    def _updates(self) -> list[str]:
        lines: list[str] = []
        done: dict[int, dict[int, str]] = {}
        for i, state in enumerate(self.states):
            target = f"h{i}" if self.style == "in turn" else f"n{i}"
            deps: dict[int, str] = {}
            terms: list[str] = []
            shape = self.pick.one(["own", "own", "own", "own", "max", "delay", "guarded"])
            if shape == "max" and cat.MAXIMA[state.kind] and self.linear:
                deps[i] = "max"
                lines.append(f"{target} = " + self.pick.one(cat.MAXIMA[state.kind]).replace("H", f"h{i}"))
                done[i] = deps
                state.reads = deps
                continue
            gate = self._gate(i, done)
            if gate is not None:
                text, deps = gate
                terms.append(text)
            elif shape != "delay":
                text, level = self._own(state.kind)
                deps[i] = level
                terms.append(text.replace("H", f"h{i}"))
            for _ in range(self.pick.one([0, 0, 1, 1, 2])):
                j = self.pick.one(range(len(self.states)))
                if (j == i and shape == "delay") or (self.states[j].kind, state.kind) not in ACROSS:
                    continue
                text = self.pick.one(ACROSS[self.states[j].kind, state.kind])
                # The real part of a complex state is linear over the reals only.
                level = "unsure" if self.states[j].kind == "c" != state.kind else "linear"
                if not self.linear and state.kind != "i" and self.flag(False, False, True):
                    inner = "torch.tanh(H.real)" if self.states[j].kind == "c" else "torch.tanh(H)"
                    text, level = text.replace("H", inner), "nonlinear"
                    self.rounds |= self.states[j].kind in ("f", "i")  # the default dtype is float32
                name, through = self._other(j, done)
                _joined(deps, through, level)
                terms.append(text.replace("H", name))
            if self.extra == "branch" and state.kind == "d":
                terms.append(self.pick.one(cat.BRANCHES))
                deps = {k: max(level, "unsure", key=RANK.__getitem__) for k, level in deps.items()}
            elif (state.kind != "f" or not terms) and (self.flag(True, True, True, False) or not terms):
                terms.append(self.pick.one(cat.DRIVES[state.kind]))
            new_lines = self._combine(target, terms, i)
            if shape == "guarded" and self.style == "in turn" and i in deps:
                # A mask that keeps the old state where it is off.
                mask = "m_t" + {"d": "[:, None]", "c": "[:, None]", "n": "[:, None, None]"}.get(state.kind, "")
                new_lines = [f"keep{i} = h{i}", *new_lines, f"h{i} = torch.where({mask}, {target}, keep{i})"]
            lines += new_lines
            done[i] = deps
            state.reads = deps
        return lines

    def _other(self, j: int, done: dict[int, dict[int, str]]) -> tuple[str, dict[int, str]]:
        """State j, old or already updated: its name, and what it depends on."""
        new = j in done and self.flag()
        name = f"n{j}" if new and self.style == "together" else f"h{j}"
        return name, done[j] if j in done and (new or self.style == "in turn") else {j: "linear"}

    def _gate(self, i: int, done: dict[int, dict[int, str]]) -> tuple[str, dict[int, str]] | None:
        """State i under the hand of another one: not affine in both, which counts where they depend on each other."""
        j = self.pick.one(range(len(self.states)))
        kinds = (self.states[j].kind, self.states[i].kind)
        if j == i or kinds not in GATES or not self.flag(False, False, True):
            return None
        name, through = self._other(j, done)
        if i in through:
            return None
        self.rounds |= kinds[0] in ("f", "i")  # of what a sigmoid of it is
        deps: dict[int, str] = {i: "linear"}
        _joined(deps, through, "unsure" if kinds == ("f", "f") else "nonlinear")
        return self.pick.one(GATES[kinds]).replace("H", f"h{i}").replace("G", name), deps

    def _own(self, kind: str) -> tuple[str, str]:
        families = [(cat.DIAGONAL, "linear"), (cat.DIAGONAL, "linear"), (cat.MIXING, "linear")]
        if self.extra == "number":
            families += [(cat.NUMBERED, "linear")] * 3
        if not self.linear:
            families += [(cat.NONLINEAR, "nonlinear"), (cat.UNSURE, "unsure"), (cat.BLOCKED, "blocked")]
        family, level = self.pick.one(families)
        if not family[kind]:
            family, level = cat.DIAGONAL, "linear"
        texts = [t for t in family[kind] if self.writes or not WRITES.search(t)]
        return self.pick.one(texts), level

    def _combine(self, target: str, terms: list[str], i: int) -> list[str]:
        if self.states[i].kind in ("f", "i"):
            return [f"{target} = " + " + ".join(f"({t})" for t in terms)]
        damp = self.pick.one(["", "", "0.7 * "])
        ways = ["sum", "sum", "steps", "stack", "inner loop", "no grad"]
        way = self.pick.one([*ways, "in place", "in place"] if self.writes else ways)
        terms = [f"({t})" if re.search(r" [-+] ", t) else t for t in terms]
        if damp:
            terms[0] = damp + terms[0]
        if way == "steps" and len(terms) > 1:
            return [f"t{i} = {terms[0]}", *(f"t{i} = t{i} + {t}" for t in terms[1:]), f"{target} = t{i}"]
        if way == "in place" and len(terms) > 1:
            return [f"t{i} = ({terms[0]}).clone()", *(f"t{i} += {t}" for t in terms[1:]), f"{target} = t{i}"]
        if way == "stack" and len(terms) > 1 and terms[-1] != "0.3" and self.states[i].kind != "c":
            return [f"{target} = sum([{', '.join(terms)}])"]
        if way == "inner loop" and len(terms) > 1:
            return [
                f"t{i} = {terms[0]}",
                "for _ in range(2):",
                f"    t{i} = t{i} + 0.5 * {terms[-1]}",
                f"{target} = " + " + ".join([f"t{i}", *terms[1:-1]]),
            ]
        if way == "no grad" and self.states[i].kind == "d":
            return [
                "with torch.no_grad():",
                f"    c{i} = torch.tanh(x_t)",
                f"{target} = " + " + ".join([*terms, f"c{i}"]),
            ]
        return [f"{target} = " + " + ".join(terms)]

    def _outputs(self, prefix: str) -> list[str]:
        lines = []
        wanted = range(len(self.states)) if not self.outputs else [self.pick.one(range(len(self.states)))]
        for i in wanted:
            k = len(self.outputs)
            text = self.pick.one(cat.READS[self.states[i].kind]).replace("H", f"{prefix}{i}")
            lines.append(f"y{k} = {text}")
            self.outputs.append(f"y{k}")
        return lines

    def _verdict(self) -> str:
        n = len(self.states)
        reach = [[j in self.states[i].reads for j in range(n)] for i in range(n)]
        for k in range(n):
            for i in range(n):
                for j in range(n):
                    reach[i][j] = reach[i][j] or (reach[i][k] and reach[k][j])
        kinds = []
        for i in range(n):
            inside = [j for j in range(n) if j == i or (reach[i][j] and reach[j][i])]
            edges = [level for k in inside for j, level in self.states[k].reads.items() if j in inside]
            worst = max(edges, key=RANK.__getitem__, default="linear")
            kinds.append("unsure" if worst == "max" and len(inside) > 1 else "linear" if worst == "max" else worst)
        if not any(state.reads for state in self.states) or self.extra == "branch":
            return "any"  # no state is carried further than one step; what is left may be no loop at all
        if all(k == "linear" for k in kinds):
            return "parallel"
        if "unsure" in kinds:
            return "any"
        return "not parallel"

    def _assemble(self, body: list[str]) -> str:
        owner = {"cell": "self.cell", "nested": "self.block.cell"}.get(self.place, "self")
        text = "\n".join(body)
        found = set(re.findall(r"\b([a-z]+)_t\b", text))
        names = sorted(found - {"x"})
        hoisted, stepwise = [], []
        for name in names:
            if name == "m" or self.flag():
                hoisted.append(name)
            else:
                stepwise.append(name)
        inner = "module" if self.place == "function" else "self"
        time = str(self.time)
        body = [f"{n}_t = {cat.SEQUENCES[n].replace('X', 'x_t')}" for n in stepwise] + body
        body = [line.replace("P.", inner + ".") for line in body]
        head = [f"{n} = {cat.SEQUENCES[n].replace('X', 'x')}".replace("P.", owner + ".") for n in hoisted if n != "m"]
        if "m" in hoisted:
            head.append("m = mask")
        if self.extra == "dropout before":
            head.insert(0, "x = F.dropout(x, 0.3, self.training)")
        if self.extra == "check":
            head.insert(0, "assert torch.isfinite(x).all()")
        if self.extra == "item":
            head.insert(0, "x = x / (1 + 0.1 * x.abs().mean().item())")
        numbered = ["t_n"] if "t_n" in text else []
        loop, reads = self._walk(hoisted)
        starts, pack, unpack = self._storage(owner)
        collect, gather = self._collect()
        states, outs = self._names("h"), self.outputs
        inputs = ["x_t", *(f"{n}_t" for n in hoisted), *numbered]
        receivers = {"method": "self.step(", "cell": "self.cell(", "nested": "self.block(", "function": "step(self, "}
        if self.place in receivers:
            receiver = receivers[self.place]
            call = f"{', '.join(states + outs)} = {receiver}{', '.join(states + inputs)})"
            step_body = [*body, f"return {', '.join(states + outs)}"]
            body_here = [call]
        else:
            step_body, body_here = [], body
        count = [f"t_n = {'t - 1' if self.walk == 'while' else 't'}"] if numbered else []
        inside = [*reads, *count, *unpack, *body_here, *pack, *collect]
        finals = self._finals(states)
        after = [f"return {', '.join([*gather, *finals])}" + ("," if len(gather) + len(finals) == 1 else "")]
        prepare = [f"T = x.shape[{time}]", f"x0 = x.select({time}, 0)", *head, *starts]
        if self.walk == "shifted":
            prepare.append(f"last = x.select({time}, 0)")
        main = [*prepare, *self._buffers(), loop, *("    " + line for line in inside), *self._result_lines, *after]
        main = [line.replace("TIME", time).replace("X0", "x0") for line in main]
        everything = "\n".join([*main, *step_body])
        parameters = [f"{n} = {v}" for n, v in cat.PARAMETERS.items() if re.search(rf"\.{n}\b", everything)]
        buffers = [(n, v) for n, v in cat.BUFFERS.items() if re.search(rf"\.{n}\b", everything)]
        made = [f"self.{p}" for p in parameters] + [f'self.register_buffer("{n}", {v})' for n, v in buffers]
        return self._file(made, main, step_body, states + inputs)

    def _walk(self, hoisted: list[str]) -> tuple[str, list[str]]:
        t = self.time

        def at(name: str, index: str) -> str:
            return f"{name}[:, {index}]" if t == 1 else f"{name}[{index}]"

        rest = [f"{n}_t = {at(n, 't')}" for n in hoisted]
        if self.walk == "unbind":
            return "for t in range(T):", [f"x_t = x.unbind({t})[t]", *rest]
        if self.walk == "zip":
            names = ["x", *hoisted]
            return (
                f"for {', '.join(n + '_t' for n in names)} in zip({', '.join(f'{n}.unbind({t})' for n in names)}):"
                if len(names) > 1
                else f"for x_t in x.unbind({t}):",
                [],
            )
        if self.walk == "iterate":
            over = "x.transpose(0, 1)" if t == 1 else "x"
            return ("t = -1\n        " if rest else "") + f"for x_t in {over}:", ["t += 1", *rest] if rest else []
        if self.walk == "enumerate":
            return f"for t, x_t in enumerate(x.unbind({t})):", rest
        if self.walk == "while":
            return "t = 0\n        while t < T:", [f"x_t = {at('x', 't')}", *rest, "t += 1"]
        if self.walk == "reversed":
            return "for t in reversed(range(T)):", [f"x_t = {at('x', 't')}", *rest]
        if self.walk == "split":
            return f"for t, piece in enumerate(x.split(1, {t})):", [f"x_t = piece.squeeze({t})", *rest]
        if self.walk == "shifted":
            return "for t in range(T):", [f"x_t = 0.5 * {at('x', 't')} + 0.5 * last", f"last = {at('x', 't')}", *rest]
        return "for t in range(T):", [f"x_t = {at('x', 't')}", *rest]

    def _storage(self, owner: str) -> tuple[list[str], list[str], list[str]]:
        states = self._names("h")
        starts = [s.start.replace("P.", owner + ".") for s in self.states]
        joined = ", ".join(states)
        if self.container == "tuple":
            return [f"state = ({', '.join(starts)},)"], [f"state = ({joined},)"], [f"{joined}, = state"]
        if self.container == "list":
            return (
                [f"state = [{', '.join(starts)}]"],
                [f"state[{i}] = {s}" for i, s in enumerate(states)],
                [f"{s} = state[{i}]" for i, s in enumerate(states)],
            )
        if self.container == "dict":
            inner = ", ".join(f'"{s}": {v}' for s, v in zip(states, starts))
            return (
                [f"state = {{{inner}}}"],
                [f'state["{s}"] = {s}' for s in states],
                [f'{s} = state["{s}"]' for s in states],
            )
        if self.container == "attributes":
            return (
                [f"self.{s} = {v}" for s, v in zip(states, starts)],
                [f"self.{s} = {s}" for s in states],
                [f"{s} = self.{s}" for s in states],
            )
        if self.none:
            first = ["if h0 is None:", *(f"    {s} = {v}" for s, v in zip(states, starts))]
            return [" = ".join(states) + " = None"], [], first
        return [f"{s} = {v}" for s, v in zip(states, starts)], [], []

    def _collect(self) -> tuple[list[str], list[str]]:
        self._ways = [
            self.pick.one(
                ["stack", "stack", "cat", "grow", "history", "last", "sum", "list", *["buffer"] * self.writes]
            )
            for _ in self.outputs
        ]
        lines, results, self._result_lines = [], [], []
        t = self.time
        for y, way in zip(self.outputs, self._ways):
            if way in ("stack", "history"):
                lines.append(f"out_{y}.append({y})")
                value = f"torch.stack(out_{y}, {t})"
            elif way == "cat":
                lines.append(f"out_{y}.append({y}.unsqueeze({t}))")
                value = f"torch.cat(out_{y}, {t})"
            elif way == "grow":
                lines.append(
                    f"out_{y} = {y}.unsqueeze({t}) if out_{y} is None else torch.cat([out_{y}, {y}.unsqueeze({t})], {t})"
                )
                value = f"out_{y}"
            elif way == "buffer":
                where = f"{y}_all[:, len_{y}]" if t == 1 else f"{y}_all[len_{y}]"
                lines += [
                    f"if {y}_all is None:",
                    f"    {y}_all = {y}.new_zeros({y}.shape[:{t}] + (T,) + {y}.shape[{t}:])",
                    f"{where} = {y}",
                    f"len_{y} += 1",
                ]
                value = f"{y}_all"
            elif way == "list":
                lines.append(f"out_{y}.append({y})")
                results.append(self.pick.one([f"out_{y}", f"tuple(out_{y})"]))
                continue
            elif way == "last":
                self._result_lines.append(f"z_{y} = {y}")
                results.append(f"z_{y}")
                continue
            else:
                lines.append(f"out_{y} = out_{y} + {y}")
                self._result_lines.append(f"z_{y} = out_{y}")
                results.append(f"z_{y}")
                continue
            after = self.pick.one(cat.AFTER).replace("Y", f"z_{y}")
            self._result_lines += [f"z_{y} = {value}", f"z_{y} = {after}"]
            results.append(f"z_{y}")
        return lines, results

    def _buffers(self) -> list[str]:
        empty = {
            "stack": "out_{y} = []",
            "history": "out_{y} = []",
            "list": "out_{y} = []",
            "cat": "out_{y} = []",
            "grow": "out_{y} = None",
            "buffer": "{y}_all, len_{y} = None, 0",
            "sum": "out_{y} = 0.0",
        }
        return [empty[w].format(y=y) for y, w in zip(self.outputs, self._ways) if w in empty]

    def _finals(self, states: list[str]) -> list[str]:
        choice = self.pick.one(["all", "none", "first"])
        return states if choice == "all" else states[:1] if choice == "first" else []

    def _file(self, made: list[str], main: list[str], step: list[str], arguments: list[str]) -> str:
        lines = ["import torch", "import torch.nn.functional as F", "from torch import nn", "", ""]

        def init(of: list[str]) -> list[str]:
            return ["    def __init__(self):", "        super().__init__()", *("        " + m for m in of), ""]

        indent = ["        " + line for line in main]
        if self.place == "function":
            lines += [f"def step(module, {', '.join(arguments)}):", *("    " + line for line in step), "", ""]
        if self.place in ("cell", "nested"):
            lines += [
                "class Cell(nn.Module):",
                *init(made),
                f"    def forward(self, {', '.join(arguments)}):",
                *("        " + line for line in step),
                "",
                "",
            ]
            made = ["self.cell = Cell()"]
        if self.place == "nested":
            block = ["class Block(nn.Module):", *init(["self.cell = Cell()"]), "    def forward(self, *inputs):"]
            lines += [*block, "        return self.cell(*inputs)", "", ""]
            made = ["self.block = Block()"]
        if self.extra == "hook":
            made = [*made, "self.register_forward_hook(lambda module, inputs, result: None)"]
        lines += ["class Model(nn.Module):", *init(made)]
        if self.place == "method":
            lines += [f"    def step(self, {', '.join(arguments)}):", *("        " + line for line in step), ""]
        if self.place == "helper":
            lines += [
                "    def forward(self, x, mask):",
                "        return self.scan(x, mask)",
                "",
                "    def scan(self, x, mask):",
                *indent,
            ]
        else:
            lines += ["    def forward(self, x, mask):", *indent]
        return "\n".join(lines) + "\n"


def _joined(deps: dict[int, str], through: dict[int, str], level: str) -> None:
    """Add what something depends on by way of something else."""
    for k, inner in through.items():
        worst = max(level, inner, key=RANK.__getitem__)
        deps[k] = max(deps.get(k, "linear"), worst, key=RANK.__getitem__)


def write(pick: Pick) -> Program:
    """One random program."""
    return _Writer(pick).run()
