"""Formulas in the user's names: each case says what a reader expects, and the printers agree on it."""

from __future__ import annotations

import re

import pytest
import sympy

import linrec
from linrec.ir.formula import Call, Symbol, Transpose, name_parts, symbol_latex, to_latex, to_pretty, to_text
from linrec.show.mathml import mathml, symbol

from .samples import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_formula_is_in_the_users_names(case: Case) -> None:
    report = linrec.explain(case.function, *case.inputs)
    assert tuple(part for r in report for part in r.equation.split("; ")) == case.equations, str(report)
    for r in report:
        assert r.formula is not None
        assert len(r.formula.formulas) == len(r.states)
        names = {str(s.name) for f in r.formula.formulas for s in f.atoms(Symbol)}
        assert {symbol for symbol, _ in r.formula.where} <= names
        assert r.formula.latex.count("{") == r.formula.latex.count("}")
        assert mathml(r.formula).count("<mrow>") == mathml(r.formula).count("</mrow>")
        if len(r.states) == 1:
            assert re.sub(r"\s", "", r.formula.pretty) == re.sub(r"\s", "", r.equation)


def test_letters_are_explained() -> None:
    (case,) = [c for c in CASES if repr(c) == "one_name_for_all"]
    (entry,) = linrec.explain(case.function, *case.inputs)
    assert entry.formula is not None
    where = dict(entry.formula.where)
    assert "tanh(x[t])" in where["a[t]"] and "exp(x[t])" in where["b[t]"]


x, h, k = Symbol("x[t]"), Symbol("h[t-1]"), Symbol("k")


@pytest.mark.parametrize(
    ("formula", "text", "latex"),
    [
        (x * h, "x[t] h[t-1]", r"x_{t} \, h_{t-1}"),
        (sympy.Add(-x, h, evaluate=False), "-x[t] + h[t-1]", r"-x_{t} + h_{t-1}"),
        (sympy.Add(h, -2 * x, evaluate=False), "h[t-1] - 2 x[t]", r"h_{t-1} - 2 \, x_{t}"),
        ((1 - x) * h, "(1 - x[t]) h[t-1]", r"(1 - x_{t}) \, h_{t-1}"),
        (x * h**-1, "x[t] / h[t-1]", r"\frac{x_{t}}{h_{t-1}}"),
        (h**-1, "1 / h[t-1]", r"\frac{1}{h_{t-1}}"),
        (0.1 * x, "0.1 x[t]", r"0.1 \, x_{t}"),
        (Transpose(k) * x, "k^T x[t]", r"k^{\top} \, x_{t}"),
        (Transpose(k + x), "(k + x[t])^T", r"(k + x_{t})^{\top}"),
        (Call(sympy.Symbol("f"), x, h), "f(x[t], h[t-1])", r"\operatorname{f}\left(x_{t}, h_{t-1}\right)"),
    ],
)
def test_printing(formula: sympy.Expr, text: str, latex: str) -> None:
    assert to_text(formula) == text
    assert to_latex(formula) == latex
    assert to_pretty(formula)


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("h[t-1]", "h_{t-1}"),
        ("alpha[t]", r"\alpha_{t}"),
        ("gate", r"\mathrm{gate}"),
        ("W_hidden", r"W_{\mathrm{hidden}}"),
        ("h2[t]", "h_{2,t}"),
        ("h_tilde[t]", r"\tilde{h}_{t}"),
        ("A_bar", r"\bar{A}"),
        ("log_f[t]", r"\mathrm{log\_f}_{t}"),
        ("_hidden", r"\mathrm{\_hidden}"),
        ("[not done[t]]", r"\left[\neg \mathrm{done}_{t}\right]"),
    ],
)
def test_names_in_latex(name: str, latex: str) -> None:
    assert symbol_latex(name) == latex
    assert symbol(name).startswith("<m")


def test_parts_of_names() -> None:
    assert name_parts("h_tilde") == ("h", [], "tilde")
    assert name_parts("W_x") == ("W", ["x"], "")
    assert name_parts("log_f") == ("log_f", [], "")
    assert name_parts("x_") == ("x_", [], "")
