"""Re-rolling: which loops are found in unrolled traces, what they carry, and that the rolled graph runs at any length."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.ir.timeaxis import unsteps
from tests.analysis.graphs import BATCH as B

from .rolled import roll

X = torch.randn(B, 8, 3, dtype=torch.float64)
W = 0.5 * torch.randn(3, 3, dtype=torch.float64)


def stacked(update, x: Tensor, *rest: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = update(h, x[:, t], *rest)
        out.append(h)
    return torch.stack(out, 1)


def test_one_loop() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        return stacked(lambda h, xt, w: torch.tanh(h @ w) + xt, x, w)

    rolled = roll(loop, X, W)
    assert rolled.shapes == [(1, 1, 1)]
    assert [n.name for n in rolled.scans[0].step.graph.nodes if n.op == "placeholder"] == ["carry_0", "x_0", "const_0"]


def test_only_the_last_state() -> None:
    def last(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
        return h

    assert roll(last, X).shapes == [(1, 1, 0)]


def test_several_states_and_outputs() -> None:
    def loop(x: Tensor) -> tuple[Tensor, ...]:
        a = b = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            a, b = 0.5 * a + x[:, t], 0.3 * b - a
            out.append(a * b)
        return torch.stack(out, 1), a, b

    assert roll(loop, X).shapes == [(2, 1, 1)]


def test_two_states_that_start_from_one_tensor_are_two() -> None:
    def loop(x: Tensor, h0: Tensor) -> tuple[Tensor, ...]:
        a, b = h0, h0
        for t in range(x.shape[1]):
            a, b = 0.5 * a + x[:, t], 0.3 * b + x[:, t]
        return a, b

    assert roll(loop, X, X[:, 0].clone()).shapes == [(2, 1, 0)]


def test_a_state_copied_into_another_is_carried_two_blocks() -> None:
    def loop(x: Tensor) -> Tensor:
        h = previous = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h, previous = 0.5 * h - 0.3 * previous + x[:, t], h
        return h

    assert roll(loop, X).shapes == [(2, 1, 0)]


def test_a_lag_of_two_from_the_history() -> None:
    def loop(x: Tensor) -> Tensor:
        out = [x[:, 0], x[:, 1]]
        for t in range(2, x.shape[1]):
            out.append(0.5 * out[-1] - 0.3 * out[-2] + x[:, t])
        return torch.stack(out, 1)

    ((carries, _, _),) = roll(loop, X, lengths=(8, 10)).shapes
    assert carries in (2, 3)  # the first steps may be peeled in the middle of one


def test_a_peeled_first_step() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = None, []
        for t in range(x.shape[1]):
            h = x[:, t] if h is None else 0.9 * h + x[:, t]
            out.append(torch.tanh(h))
        return torch.stack(out, 1)

    rolled = roll(loop, X)
    assert rolled.shapes == [(1, 1, 1)]
    assert len([n for n in rolled.graph_module.graph.nodes if str(n.target) == "aten.tanh.default"]) == 1


def test_a_partial_last_step() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            out.append(h * x[:, t])
            h = torch.tanh(h @ w) + x[:, t]
        return torch.stack(out, 1)

    rolled = roll(loop, X, W)
    assert len(rolled.scans) == 1


def test_both_ends_differ() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = x[:, 0] * 2, []
        out.append(h)
        for t in range(1, x.shape[1] - 1):
            h = 0.9 * h + x[:, t]
            out.append(h)
        out.append(torch.exp(x[:, -1]) - h)
        return torch.stack(out, 1)

    assert [shape[:2] for shape in roll(loop, X, lengths=(6, 8)).shapes] == [(1, 1)]


def test_reversed() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in reversed(range(x.shape[1])):
            h = 0.9 * h + x[:, t]
            out.append(h)
        return torch.stack(out[::-1], 1)

    rolled = roll(loop, X)
    assert rolled.shapes == [(1, 1, 1)]
    steps = [n for n in rolled.graph_module.graph.nodes if getattr(n.target, "__name__", "") == "steps"]
    assert [n.args[3] for n in steps] == [-1]


def test_both_directions() -> None:
    def loop(x: Tensor) -> Tensor:
        a = b = torch.zeros_like(x[:, 0])
        left, right = [], []
        for t in range(x.shape[1]):
            a = 0.9 * a + x[:, t]
            left.append(a)
        for t in range(x.shape[1] - 1, -1, -1):
            b = 0.9 * b + x[:, t]
            right.insert(0, b)
        return torch.cat([torch.stack(left, 1), torch.stack(right, 1)], -1)

    assert roll(loop, X).shapes == [(1, 1, 1), (1, 1, 1)]


def test_two_loops_where_the_second_reads_the_first() -> None:
    def loop(x: Tensor) -> Tensor:
        return stacked(lambda h, xt: torch.tanh(h + xt), stacked(lambda h, xt: 0.9 * h + xt, x))

    assert roll(loop, X).shapes == [(1, 1, 1), (1, 1, 1)]


def test_every_second_step() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t] * x[:, x.shape[1] - 1 - t]
            out.append(h)
        return torch.stack(out[::1], 1)

    rolled = roll(loop, X)
    assert rolled.shapes == [(1, 2, 1)]


def test_an_inner_loop_of_constant_length_stays_in_the_step() -> None:
    for inner in (2, 4, 6):

        def loop(x: Tensor, w: Tensor, inner: int = inner) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                for _ in range(inner):
                    h = 0.5 * (h @ w)
                h = h + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

        rolled = roll(loop, X, W)
        assert rolled.shapes == [(1, 1, 1)]
        products = [n for n in rolled.scans[0].step.graph.nodes if str(n.target) == "aten.matmul.default"]
        assert len(products) == inner


def test_an_inner_loop_over_channels() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = [torch.zeros_like(x[:, 0, 0]) for _ in range(3)], []
        for t in range(x.shape[1]):
            for k in range(3):
                h[k] = 0.5 * h[k] + x[:, t, k]
            out.append(torch.stack(h, -1))
        return torch.stack(out, 1)

    rolled = roll(loop, X)
    assert len(rolled.scans) == 1
    assert rolled.scans[0].carries == 3


def test_the_counter_as_a_number() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = h * t / (t + 1) + x[:, t] / (t + 1)
            out.append(h)
        return torch.stack(out, 1)

    rolled = roll(loop, X)
    counters = [n for n in rolled.graph_module.graph.nodes if getattr(n.target, "__name__", "") == "counter"]
    assert {n.args[1:3] for n in counters} == {(0, 1), (1, 1)}


def test_integers_that_grow_with_the_length() -> None:
    def loop(x: Tensor) -> Tensor:
        length = x.shape[1]
        y = stacked(lambda h, xt: 0.9 * h + xt, x)
        return y.sum(1) / length + y[:, length // 2 * 0 + length - 2] + (2 * length + 3)

    roll(loop, X)


def test_time_first() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[0]), []
        for xt in x:
            h = torch.sigmoid(xt) * h + xt
            out.append(h)
        return torch.stack(out)

    assert roll(loop, X.transpose(0, 1).contiguous(), time=(0,)).shapes == [(1, 1, 1)]


def test_two_inputs_read_at_different_offsets() -> None:
    def loop(x: Tensor, y: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(1, x.shape[1]):
            h = 0.5 * h + x[:, t] - x[:, t - 1] + y[:, -t]
            out.append(h)
        return torch.stack(out, 1)

    assert roll(loop, X, X.clone(), time=(1, 1)).shapes == [(1, 3, 1)]


def test_windows() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1] - 2):
            h = 0.5 * h + x[:, t : t + 3].mean(1)
            out.append(h)
        return torch.stack(out, 1)

    assert roll(loop, X, lengths=(6, 8)).shapes == [(1, 1, 1)]


def test_chunks_and_zip() -> None:
    def loop(x: Tensor, g: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, :1]), []
        for xt, gt in zip(x.chunk(x.shape[1], 1), g.unbind(1)):
            h = gt[:, None] * h + xt
            out.append(h)
        return torch.cat(out, dim=1)

    assert roll(loop, X, X.sigmoid(), time=(1, 1)).shapes == [(1, 2, 1)]


def test_a_growing_cat() -> None:
    def loop(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        out = x.new_zeros(x.shape[0], 0, 3)
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out = torch.cat([out, h.unsqueeze(1)], 1)
        return out

    assert roll(loop, X).shapes == [(1, 1, 1)]


def test_a_state_that_starts_as_a_scalar() -> None:
    def loop(x: Tensor) -> Tensor:
        h = torch.zeros((), dtype=torch.float64)
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
        return h

    ((carries, xs, _),) = roll(loop, X).shapes
    assert (carries, xs) == (1, 1)


def test_a_map_without_state() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([torch.tanh(x[:, t] @ w) for t in range(x.shape[1])], 1)

    assert roll(loop, X, W).shapes == [(0, 1, 1)]


def test_what_is_the_same_in_every_step_is_computed_once() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        return stacked(lambda h, xt, w: h @ torch.tanh(w) + xt, x, w)

    rolled = roll(loop, X, W)
    assert "aten.tanh.default" not in {str(n.target) for n in rolled.scans[0].step.graph.nodes}


def test_two_layers_stepped_together() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        a = b = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            a = torch.tanh(a @ w + x[:, t])
            b = torch.tanh(b @ w + a)
            out.append(b)
        return torch.stack(out, 1)

    assert roll(loop, X, W).shapes == [(2, 1, 1)]


def test_no_loop() -> None:
    assert roll(lambda x, w: torch.tanh(x @ w), X, W).scans == []


def test_elements_of_a_state_read_one_by_one_stay_a_stack() -> None:
    """In a step, elements in a row are no time axis: `stack` and `select` have rules, an operator of the time axis none."""

    def loop(x: Tensor) -> Tensor:
        def update(h: Tensor, xt: Tensor) -> Tensor:
            return (
                0.4 * torch.stack([h[:, 1], h[:, 0], xt[:, 2]], -1) + torch.cat([h[:, :1], h[:, 1:2], h[:, 2:]], 1) / 3
            )

        return stacked(update, x)

    step = roll(loop, X).scans[0].step.graph
    assert not [n for n in step.nodes if n.target is unsteps]


def test_a_run_of_elements_that_wraps_around() -> None:
    def loop(x: Tensor) -> Tensor:
        return stacked(lambda h, xt: 0.4 * torch.stack([h[:, -1], h[:, 0], h[:, 1]], 1) + xt, x)

    assert roll(loop, X).shapes == [(1, 1, 1)]
