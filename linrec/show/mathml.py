"""Formulas in MathML, which browsers draw by themselves: a file with them needs no script and no network."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from linrec.ir.formula import Call, Diagonal, Elementwise, Equation, Symbol, Transpose, name_parts

_GREEK = dict(
    zip(
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "phi",
            "chi",
            "psi",
            "omega",
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Sigma",
            "Phi",
            "Psi",
            "Omega",
        ],
        "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΣΦΨΩ",
        strict=True,
    )
)

_MARKS = {"tilde": "~", "hat": "^", "bar": "¯", "dot": "˙"}


def mathml(equation: Equation) -> str:
    """The formulas of an equation, one under the other."""
    rows = "".join(
        f"<mtr><mtd style='text-align:right'>{_of(f.lhs)}</mtd><mtd><mo>=</mo></mtd>"
        f"<mtd style='text-align:left'>{_of(f.rhs)}</mtd></mtr>"
        for f in equation.formulas
    )
    return f"<math display='block'><mtable columnspacing='0.2em'>{rows}</mtable></math>"


def _row(*parts: str) -> str:
    return "<mrow>" + "".join(parts) + "</mrow>"


def _operator(text: str) -> str:
    return f"<mo stretchy='false'>{escape(text)}</mo>"


def _bracketed(x: Any) -> str:
    inner = _of(x)
    return _row(_operator("("), inner, _operator(")")) if x.is_Add or x.is_Mul else inner


def _of(x: Any) -> str:
    if isinstance(x, Symbol):
        return symbol(x.name)
    if isinstance(x, Transpose):
        return f"<msup>{_bracketed(x.args[0])}<mo>⊤</mo></msup>"
    if isinstance(x, Elementwise):
        parts = [_of(a) for a in x.args]
        return _row(_operator("("), _operator("⊙").join(parts), _operator(")"))
    if isinstance(x, Diagonal):
        return _row("<mi>diag</mi>", _operator("("), _of(x.args[0]), _operator(")"))
    if isinstance(x, Call):
        name, *rest = x.args
        return _row(symbol(str(name)), _operator("("), _operator(",").join(_of(a) for a in rest), _operator(")"))
    if x.is_Add:
        parts = []
        for term in x.args:
            text = _of(term)
            negative = text.startswith(_row(_operator("−"))[: -len("</mrow>")])
            if parts and not negative:
                parts.append(_operator("+"))
            parts.append(text)
        return _row(*parts)
    if x.is_Mul:
        return _product(x)
    if x.is_Pow:
        base, exponent = x.as_base_exp()
        if exponent == -1:
            return f"<mfrac><mn>1</mn>{_of(base)}</mfrac>"
        return f"<msup>{_bracketed(base)}{_of(exponent)}</msup>"
    if x.is_number:
        return _number(x)
    return f"<mi>{escape(str(x))}</mi>"


def _product(x: Any) -> str:
    above, below, sign = [], [], ""
    for factor in x.args:
        base, exponent = factor.as_base_exp() if factor.is_Pow else (factor, 1)
        if exponent == -1:
            below.append(_bracketed(base))
        elif factor == -1:
            sign = _operator("−")
        elif factor.is_number and factor.is_negative:
            sign = _operator("−")
            above.append(_number(-factor))
        else:
            above.append(_bracketed(factor))
    top = _row("<mspace width='0.2em'/>".join(above)) if above else "<mn>1</mn>"
    body = f"<mfrac>{top}{_row(*below)}</mfrac>" if below else top
    return _row(sign, body) if sign else body


def _number(x: Any) -> str:
    text = f"{float(x):.6g}" if x.is_real else str(x)
    return _row(_operator("−"), f"<mn>{text[1:]}</mn>") if text.startswith("-") else f"<mn>{escape(text)}</mn>"


def symbol(name: str) -> str:
    """A variable with its time and what follows an underscore as subscripts."""
    if name.startswith("[") and name.endswith("]"):
        inner = name[1:-1]
        negated = _operator("¬") if inner.startswith("not ") else ""
        return _row(_operator("["), negated, symbol(inner.removeprefix("not ")), _operator("]"))
    match = re.match(r"^(.*?)(?:\[([^\]]*)\])?$", name, re.DOTALL)
    assert match is not None
    stem, when = match.group(1), match.group(2)
    head, tail, accent = name_parts(stem)
    below = [f"<mi>{escape(part)}</mi>" for part in tail]
    if when:
        base, _, offset = when.partition("-")
        below.append(_row(f"<mi>{escape(base)}</mi>", _operator("−") + f"<mn>{escape(offset)}</mn>" if offset else ""))
    upright = " mathvariant='normal'" if len(head) > 1 and head not in _GREEK else ""
    body = f"<mi{upright}>{escape(_GREEK.get(head, head))}</mi>"
    if accent == "prime":
        body = f"<msup>{body}<mo>′</mo></msup>"
    elif accent:
        body = f"<mover accent='true'>{body}<mo stretchy='false'>{_MARKS[accent]}</mo></mover>"
    return f"<msub>{body}{_row(_operator(',').join(below))}</msub>" if below else body
