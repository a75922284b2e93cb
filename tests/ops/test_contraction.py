"""Contractions of several tensors, pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linrec.ops.contraction import contract


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.text("abcde", min_size=0, max_size=3), min_size=1, max_size=5), st.data())
def test_like_einsum(terms: list[str], data: st.DataObject) -> None:
    """Any number of operands, letters that only one of them has, sizes of 1 against others, scalars."""
    terms = ["".join(dict.fromkeys(t)) for t in terms]
    sizes = {c: data.draw(st.integers(1, 3)) for c in "abcde"}
    letters = sorted(set("".join(terms)))
    output = "".join(data.draw(st.permutations([c for c in letters if data.draw(st.booleans())])))
    shapes = [[data.draw(st.sampled_from([1, sizes[c]])) for c in t] for t in terms]
    operands = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    equation = f"{','.join(terms)}->{output}"
    torch.testing.assert_close(contract(equation, *operands), torch.einsum(equation, *operands))


def test_the_cheapest_pair_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    einsum = torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda pair, *x: seen.append(pair) or einsum(pair, *x))
    contract("ab,bc,cd->ad", torch.ones(50, 2), torch.ones(2, 50), torch.ones(50, 3))
    assert seen == ["bc,cd->bd", "ab,bd->ad"]
