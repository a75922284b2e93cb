"""What the GPU benchmark times: recurrences with the ways of computing them, their inputs, and the bytes that a
training step has to move at least."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import linrec
from benchmarks.variant import Unavailable, optional
from linrec import ops
from linrec.ops import dispatch, fla

Call = Callable[..., Tensor]
Maker = Callable[[str], Call]
"""Given a type of device, makes a function of the case's inputs. Raises Unavailable where a package is missing."""


@dataclass(frozen=True)
class GpuCase:
    """A recurrence.

    Attributes:
        name, title: for the command line and for readers.
        sizes: by name, without the number of steps.
        inputs: makes the inputs, with time in dimension 1, for sizes and a number of steps.
        exact: computes the result step by step.
        variants: ways of computing it, by name.
        moved: elements that forward and backward pass read and write at least, for the inputs and the result.
    """

    name: str
    title: str
    sizes: dict[str, int]
    inputs: Callable[[dict[str, int], int], list[Tensor]]
    exact: Call
    variants: dict[str, Maker]
    moved: Callable[[list[Tensor], Tensor], int]
    loops: frozenset[str] = field(default_factory=lambda: frozenset(("loop",)))


def _numel(*tensors: Tensor) -> int:
    return sum(x.numel() for x in tensors)


def every_tensor_once_each_way(inputs: list[Tensor], result: Tensor) -> int:
    """Forward: inputs read, result written. Backward: inputs and the result's derivative read, derivatives written."""
    return 3 * _numel(*inputs) + 2 * _numel(result)


def and_the_states(inputs: list[Tensor], result: Tensor) -> int:
    """The same where the result, all states, is read once more for the derivative by the transitions; b is not."""
    return 3 * _numel(*inputs) - inputs[1].numel() + 3 * _numel(result)


def torch_form(name: str) -> Callable[..., Any]:
    """An op without any implementation for a device."""
    return dispatch.OPS[name]


def with_triton(call: Call) -> Maker:
    """A form that Triton's kernels are expected to compute."""

    def make(device: str) -> Call:
        if device == "cuda":
            optional("triton")
        return call

    return make


def with_fla(call: Call) -> Maker:
    """A form that flash-linear-attention's kernels are expected to compute."""

    def make(device: str) -> Call:
        if device != "cuda" or fla.library() is None:
            raise Unavailable("flash-linear-attention is not installed, or there is no GPU")
        return call

    return make


def gate_loop(a: Tensor, x: Tensor) -> Tensor:
    """h[t] = a[t] h[t-1] + x[t], unchanged user code."""
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


def mamba_loop(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """h[t] = a[t] h[t-1] + b[t], y[t] = h[t] c[t], unchanged user code."""
    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append((h * c[:, t].unsqueeze(1)).sum(-1))
    return torch.stack(out, dim=1)


def attention_loop(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """S[t] = decay[t] S[t-1] + k[t] v[t]^T, y[t] = q[t]^T S[t], unchanged user code."""
    state = q.new_zeros(*q[:, 0].shape, v.shape[-1])
    out = []
    for t in range(q.shape[1]):
        state = decay[:, t].unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        out.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(out, dim=1)


def delta_loop(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The gated delta rule, unchanged user code."""
    state = q.new_zeros(*q[:, 0].shape, v.shape[-1])
    out = []
    for t in range(q.shape[1]):
        state = decay[:, t].unsqueeze(-1) * state
        error = v[:, t] - (k[:, t].unsqueeze(-2) @ state).squeeze(-2)
        state = state + k[:, t].unsqueeze(-1) * (beta[:, t] * error).unsqueeze(-2)
        out.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(out, dim=1)


def _loop(function: Call) -> Maker:
    return lambda device: function


def _parallelized(function: Call) -> Maker:
    # Unchecked: at every new greatest length a check runs the loop, of 131072 steps in the end. `error_of` checks it.
    return lambda device: linrec.parallelize(function, validate=False)


def _accelerated_scan(device: str) -> Call:
    if device != "cuda":
        raise Unavailable("accelerated-scan needs a GPU")
    scan = optional("accelerated_scan.scalar").scan
    return lambda a, x: scan(a.mT.contiguous(), x.mT.contiguous()).mT


def _gate_inputs(sizes: dict[str, int], length: int) -> list[Tensor]:
    shape = sizes["B"], length, sizes["D"]
    return [torch.sigmoid(torch.randn(shape) + 2), torch.randn(shape)]


def _mamba_inputs(sizes: dict[str, int], length: int) -> list[Tensor]:
    shape = sizes["B"], length, sizes["D"], sizes["N"]
    return [torch.sigmoid(torch.randn(shape) + 2), torch.randn(shape), torch.randn(sizes["B"], length, sizes["N"])]


def _attention_inputs(sizes: dict[str, int], length: int) -> list[Tensor]:
    lead, width = (sizes["B"], length, sizes["H"]), sizes["K"]
    q, k, v = (torch.randn(*lead, width) / math.sqrt(math.sqrt(width)) for _ in range(3))
    return [q, k, v, torch.sigmoid(torch.randn(*lead, 1) + 3)]


def _delta_inputs(sizes: dict[str, int], length: int) -> list[Tensor]:
    q, k, v, decay = _attention_inputs(sizes, length)
    # A little shorter than 1: rounded to half precision it must not be longer.
    k = 0.99 * torch.nn.functional.normalize(k, dim=-1)
    return [q, k, v, torch.sigmoid(torch.randn_like(decay)), decay]


def _attend(op: Callable[..., Any]) -> Call:
    return lambda *inputs: op(*inputs)[0]


def _read(op: Callable[..., Any]) -> Call:
    return lambda a, b, c: op(a, b, c.unsqueeze(2))[0]


CASES = {
    case.name: case
    for case in (
        GpuCase(
            "gate",
            "diagonal gate, all states",
            {"B": 1, "D": 1024},
            _gate_inputs,
            gate_loop,
            {
                "loop": _loop(gate_loop),
                "linrec.parallelize": _parallelized(gate_loop),
                "ops.linear_scan, Triton": with_triton(ops.linear_scan),
                "ops.linear_scan, torch form": _loop(torch_form("linear_scan")),
                "accelerated-scan": _accelerated_scan,
            },
            and_the_states,
        ),
        GpuCase(
            "mamba",
            "Mamba's scan with its readout",
            {"B": 1, "D": 256, "N": 16},
            _mamba_inputs,
            mamba_loop,
            {
                "loop": _loop(mamba_loop),
                "linrec.parallelize": _parallelized(mamba_loop),
                "ops.scan_readout, Triton": with_triton(_read(ops.scan_readout)),
                "ops.scan_readout, torch form": _loop(_read(torch_form("scan_readout"))),
            },
            every_tensor_once_each_way,
        ),
        GpuCase(
            "attention",
            "linear attention, one decay for each head and step",
            {"B": 1, "H": 8, "K": 64},
            _attention_inputs,
            attention_loop,
            {
                "loop": _loop(attention_loop),
                "linrec.parallelize": _parallelized(attention_loop),
                "ops.linear_attention, fla": with_fla(_attend(ops.linear_attention)),
                "ops.linear_attention, torch form": _loop(_attend(torch_form("linear_attention"))),
            },
            every_tensor_once_each_way,
        ),
        GpuCase(
            "delta",
            "gated delta rule",
            {"B": 1, "H": 8, "K": 64},
            _delta_inputs,
            delta_loop,
            {
                "loop": _loop(delta_loop),
                "linrec.parallelize": _parallelized(delta_loop),
                "ops.delta_rule, fla": with_fla(_attend(ops.delta_rule)),
                "ops.delta_rule, torch form": _loop(_attend(torch_form("delta_rule"))),
            },
            every_tensor_once_each_way,
        ),
    )
}
