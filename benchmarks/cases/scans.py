"""Recurrences whose state is mixed by no matrix: a gate for each channel, and Mamba's selective scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.variant import Case, JaxVariant, Sizes, Variant, optional


def gate(a: Tensor, x: Tensor) -> Tensor:
    """h[t] = a[t] h[t-1] + x[t]; a, x: (B, T, D)."""
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


def _gate_inputs(sizes: Sizes) -> list[Tensor]:
    shape = sizes["B"], sizes["T"], sizes["D"]
    return [torch.sigmoid(torch.randn(shape) + 2), torch.randn(shape)]


def _pscan(sizes: Sizes, loop: Any) -> Variant:
    pscan = optional("mambapy.pscan").pscan
    return Variant(lambda a, x: pscan(a.unsqueeze(2), x.unsqueeze(2)).squeeze(2))


def _lax_scan(sizes: Sizes, loop: Any) -> JaxVariant:
    jax = optional("jax")

    def scan(a: Any, x: Any) -> Any:
        def step(h: Any, given: Any) -> Any:
            h = given[0] * h + given[1]
            return h, h

        along = [y.swapaxes(0, 1) for y in (a, x)]
        return jax.lax.scan(step, jax.numpy.zeros_like(x[:, 0]), along)[1].swapaxes(0, 1)

    return JaxVariant(scan)


def _mixer(sizes: Sizes) -> Any:
    optional("transformers")
    modeling = optional("transformers.models.mamba.modeling_mamba")
    config = modeling.MambaConfig(hidden_size=sizes["D"], num_hidden_layers=1, state_size=sizes["N"])
    return modeling.MambaMixer(config, 0).train()


def _use_mambapy(sizes: Sizes, loop: Any) -> Variant:
    optional("mambapy")
    mixer = _mixer(sizes)
    mixer.load_state_dict(loop.state_dict())
    mixer.use_mambapy = True
    return Variant(mixer)


def _product(sizes: Sizes, loop: Any) -> Variant:
    """What torch takes for one product of the same tensors: as many bytes read and written as by the gate."""
    return Variant(torch.mul, same=False)


def _mambapy(sizes: Sizes, loop: Any) -> Variant:
    mamba = optional("mambapy.mamba")
    block = mamba.MambaBlock(mamba.MambaConfig(d_model=sizes["D"], n_layers=1, d_state=sizes["N"]))
    block.load_state_dict(loop.state_dict())
    return Variant(block)


def _hidden(sizes: Sizes) -> list[Tensor]:
    return [torch.randn(sizes["B"], sizes["T"], sizes["D"])]


_GATE: dict[str, Any] = {
    "sizes": {"B": 4, "T": 2048, "D": 256},
    "tiny": {"B": 2, "T": 16, "D": 8},
    "inputs": _gate_inputs,
    "loop": lambda sizes: gate,
    "peers": {"mambapy pscan": _pscan, "JAX lax.scan": _lax_scan, "a * x, no recurrence": _product},
}

CASES = [
    Case(
        "gate",
        "diagonal gate, given gradient",
        **_GATE,
        gradient=lambda inputs: torch.randn_like(inputs[1]),
        wanted={"mambapy pscan": 6, "JAX lax.scan": 2.5},
    ),
    Case("gate-squared", "diagonal gate, squared loss", **_GATE, wanted={"mambapy pscan": 3.5}),
    Case(
        "mamba",
        "transformers' MambaMixer, unchanged",
        sizes={"B": 2, "T": 512, "D": 256, "N": 16},
        tiny={"B": 2, "T": 16, "D": 8, "N": 4},
        inputs=_hidden,
        loop=_mixer,
        peers={"mambapy block": _mambapy, "transformers use_mambapy": _use_mambapy},
        wanted={"mambapy block": 3},
    ),
]
