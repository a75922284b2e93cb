"""Memory that is used again: never while anybody can still see it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.ops.buffers import Buffers, buffers

MIB = 1 << 20


def made(b: Buffers, mib: int = 2) -> Tensor:
    return b.empty((mib, MIB // 4), torch.float32)


def test_memory_comes_back() -> None:
    b = Buffers(64 * MIB)
    x = made(b)
    where = x.data_ptr()
    y = made(b)
    assert y.data_ptr() != where
    del x
    again = made(b)
    assert again.data_ptr() == where and b.held == 4 * MIB
    assert b.empty((MIB // 8, 4), torch.float32).data_ptr() not in (where, y.data_ptr())


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "a view": lambda x: x[1:, ::2],
    "a detached tensor": lambda x: x.detach(),
    "numpy": lambda x: x.numpy(),
    "a storage": lambda x: x.untyped_storage(),
    "a slice of numpy's": lambda x: x.numpy()[1, 3:9],
    "dlpack": lambda x: torch.utils.dlpack.to_dlpack(x),
    "another dtype": lambda x: x.view(torch.int32),
    "a list": lambda x: [x],
    "a tensor that was set": lambda x: torch.empty(0).set_(x),
    "a gradient": lambda x: torch.nn.Parameter(torch.zeros_like(x)).__setattr__("grad", x) or x,
    "a graph": lambda x: (torch.ones_like(x).requires_grad_() * x).sum(),
    "a memoryview": lambda x: memoryview(x.numpy()),
}


@pytest.mark.parametrize("how", HOLDERS)
def test_not_while_it_is_held(how: str) -> None:
    b = Buffers(64 * MIB)
    x = made(b).fill_(1.0)
    where = x.data_ptr()
    holder = HOLDERS[how](x)
    del x
    gc.collect()
    other = made(b)
    assert other.data_ptr() != where
    b.release()
    assert b.held == 4 * MIB
    del holder, other
    gc.collect()
    assert made(b).data_ptr() == where


def test_what_was_changed_is_forgotten() -> None:
    b = Buffers(64 * MIB)
    x = made(b)
    x.resize_(3 * MIB)
    del x
    y = made(b)
    assert y.untyped_storage().nbytes() == 2 * MIB and b.held == 2 * MIB
    y.share_memory_()
    where = y.data_ptr()
    del y
    z = made(b)
    assert not z.is_shared() and z.data_ptr() != where and b.held == 2 * MIB


def test_bounds() -> None:
    b = Buffers(5 * MIB)
    first, second, third = made(b), made(b), made(b)
    assert b.held == 4 * MIB
    del third
    assert made(b).data_ptr() not in (first.data_ptr(), second.data_ptr())
    del first
    large = b.empty((3, MIB // 4), torch.float32)  # takes the room of what is free
    assert b.held == 5 * MIB
    del large, second
    b.release()
    assert b.held == 0
    assert b.empty((6, MIB // 4), torch.float32).shape == (6, MIB // 4) and b.held == 0
    assert b.empty((3,), torch.float64).dtype is torch.float64 and b.held == 0
    assert Buffers(0).empty((MIB,), torch.float32).shape == (MIB,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16])
def test_layouts_are_those_of_torch(dtype: torch.dtype) -> None:
    b = Buffers(256 * MIB)
    x = torch.zeros(4, 1024, 300, dtype=dtype)
    for y in (x, x.transpose(0, 1), x.permute(2, 0, 1), x[:, ::2], x.transpose(1, 2)[1:], x[:, :1].expand_as(x)):
        mine, theirs = b.like(y), torch.empty_like(y)
        assert (mine.shape, mine.stride(), mine.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        assert mine.storage_offset() == 0 and not mine.requires_grad


def test_threads_never_share() -> None:
    b, wrong = Buffers(64 * MIB), []

    def work(number: int) -> None:
        for _ in range(200):
            x = made(b).fill_(number)
            if not bool((x == number).all()):
                wrong.append(number)
            del x

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and b.held <= 8 * MIB


def test_a_forked_process_begins_anew() -> None:
    x = buffers.empty((MIB,), torch.float32).fill_(1.0)
    pid = os.fork()
    if pid == 0:
        y = buffers.empty((MIB,), torch.float32).fill_(2.0)
        os._exit(0 if bool((x == 1).all()) and bool((y == 2).all()) else 1)
    assert os.waitpid(pid, 0)[1] == 0


class Gate(nn.Module):
    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def test_results_that_are_kept_stay_what_they_are() -> None:
    model = linrec.parallelize(Gate())
    generator = torch.Generator().manual_seed(0)
    kept: list[tuple[Tensor, ...]] = []
    copies = []
    for _ in range(4):
        a = torch.rand(2, 64, 2048, generator=generator).requires_grad_()
        x = torch.randn(2, 64, 2048, generator=generator).requires_grad_()
        for _ in range(2):  # of which one is thrown away
            y = model(a, x)
            found = (y, *torch.autograd.grad(y.square().sum(), (a, x)))
        kept.append(found)
        copies.append([t.detach().clone() for t in found])
    for found, copied in zip(kept, copies, strict=True):
        for t, c in zip(found, copied, strict=True):
            torch.testing.assert_close(t.detach(), c, rtol=0, atol=0)
