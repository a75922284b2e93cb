"""Memories that never change, the LMU at the size of psMNIST, and a recurrence that is not linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.variant import Case, Sizes, Variant
from linrec.ops.powers import impulse_response
from models.lmu import LMU, PixelClassifier


def _all_steps(sizes: Sizes) -> LMU:
    return LMU(1, sizes["hidden"], sizes["order"], float(sizes["T"]), f1=nn.Identity(), f2=F.relu)


def _last_step(sizes: Sizes) -> PixelClassifier:
    return PixelClassifier(sizes["hidden"], sizes["order"], float(sizes["T"]))


def _pixels(sizes: Sizes) -> list[Tensor]:
    return [torch.rand(sizes["B"], sizes["T"], 1)]


class _ByHand(nn.Module):
    """An LMU with its impulse response, H[t] = A^t B, at hand."""

    def __init__(self, lmu: Any, length: int) -> None:
        super().__init__()
        self.encoder, self.W_m, self.W_x = lmu.encoder, lmu.W_m, lmu.W_x
        if hasattr(lmu, "head"):
            self.head = lmu.head
        self.register_buffer("H", impulse_response(lmu.A.double(), lmu.B.double(), length).squeeze(-1).to(lmu.A.dtype))


class _MemoryByFFT(_ByHand):
    """The memory by FFT, then the readout."""

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        response = torch.fft.rfft(self.H[:length], n=2 * length, dim=0)
        memory = torch.fft.irfft(torch.fft.rfft(self.encoder(x), n=2 * length, dim=1) * response, n=2 * length, dim=1)
        return F.relu(self.W_m(memory[:, :length]) + self.W_x(x))


class _FoldedFFT(_ByHand):
    """The readout folded into the impulse response, so that the FFT has as many channels as the hidden state."""

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        response = torch.fft.rfft(self.W_m(self.H[:length]), n=2 * length, dim=0)
        read = torch.fft.irfft(torch.fft.rfft(self.encoder(x), n=2 * length, dim=1) * response, n=2 * length, dim=1)
        return F.relu(read[:, :length] + self.W_x(x))


class _Equation25(_ByHand):
    """The last memory as one product with the flipped impulse response (eq. 25)."""

    def forward(self, x: Tensor) -> Tensor:
        memory = self.encoder(x).squeeze(-1) @ self.H[: x.shape[1]].flip(0)
        return self.head(F.relu(self.W_m(memory) + self.W_x(x[:, -1])))


class Elman(nn.Module):
    """h[t] = tanh(W x[t] + b + U h[t-1] + c); x: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], self.width), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.inner(x[:, t]) + self.outer(h))
            out.append(h)
        return torch.stack(out, dim=1)


class _TorchRNN(nn.Module):
    def __init__(self, elman: Elman) -> None:
        super().__init__()
        self.rnn = nn.RNN(elman.width, elman.width, batch_first=True)
        names = {"weight_ih_l0": elman.inner.weight, "bias_ih_l0": elman.inner.bias}
        names |= {"weight_hh_l0": elman.outer.weight, "bias_hh_l0": elman.outer.bias}
        self.rnn.load_state_dict(names)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """In the order of `Elman`'s: what is compared goes by name."""
        own = dict(super().named_parameters(*args, **kwargs))
        order = {"inner.weight": "weight_ih_l0", "inner.bias": "bias_ih_l0"}
        order |= {"outer.weight": "weight_hh_l0", "outer.bias": "bias_hh_l0"}
        return iter([(name, own[f"rnn.{mine}"]) for name, mine in order.items()])

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


_LMU: dict[str, Any] = {
    "sizes": {"B": 20, "T": 784, "order": 468, "hidden": 346},
    "tiny": {"B": 2, "T": 16, "order": 6, "hidden": 5},
    "inputs": _pixels,
}

CASES = [
    Case(
        "lmu",
        "LMU at psMNIST size, all steps",
        **_LMU,
        loop=_all_steps,
        peers={
            "FFT, then readout": lambda sizes, loop: Variant(_MemoryByFFT(loop, sizes["T"])),
            "readout folded, FFT": lambda sizes, loop: Variant(_FoldedFFT(loop, sizes["T"])),
        },
        wanted={"FFT, then readout": 2.5},
    ),
    Case(
        "lmu-last",
        "LMU at psMNIST size, last step",
        **_LMU,
        loop=_last_step,
        peers={"eq. 25 by hand": lambda sizes, loop: Variant(_Equation25(loop, sizes["T"]))},
        wanted={"eq. 25 by hand": 1},
    ),
    Case(
        "lmu-last-data",
        "LMU at psMNIST size, last step, no derivative by the pixels",
        **_LMU,
        loop=_last_step,
        peers={"eq. 25 by hand": lambda sizes, loop: Variant(_Equation25(loop, sizes["T"]))},
        wanted={"eq. 25 by hand": 1},
        derived=False,
    ),
    Case(
        "rnn",
        "tanh RNN",
        sizes={"B": 8, "T": 1024, "D": 128},
        tiny={"B": 2, "T": 16, "D": 6},
        inputs=lambda sizes: [torch.randn(sizes["B"], sizes["T"], sizes["D"])],
        loop=lambda sizes: Elman(sizes["D"]),
        peers={"nn.RNN": lambda sizes, loop: Variant(_TorchRNN(loop))},
        wanted={"nn.RNN": 1.3},
    ),
]
