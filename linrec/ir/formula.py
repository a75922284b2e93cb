"""The symbols of a formula: sympy expressions that print as a person writes them, as text, on a terminal and in LaTeX.
Everything is non-commutative, so that products keep the order in which they were written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.pretty.pretty import PrettyPrinter
from sympy.printing.pretty.stringpict import prettyForm
from sympy.printing.str import StrPrinter

_NAME = re.compile(r"^(.*?)((?:\[[^\]]*\])?)$", re.DOTALL)
GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "pi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
    ]
)


class Symbol(sympy.Symbol):  # type: ignore[misc]
    """A variable, with its time in brackets: ``h[t-1]``."""

    def __new__(cls, name: str, commutative: bool = False) -> Symbol:
        """A variable of this name."""
        return super().__new__(cls, name, commutative=commutative)  # type: ignore[no-any-return]

    def _sympystr(self, printer: Any) -> str:
        return str(self.name)

    def _latex(self, printer: Any) -> str:
        return symbol_latex(self.name)

    def _pretty(self, printer: Any) -> Any:
        return printer._print_basestring(self.name)


class _Wrapped(sympy.Function):  # type: ignore[misc]
    is_commutative = False


class Transpose(_Wrapped):
    """``v^T``."""

    def _sympystr(self, printer: Any) -> str:
        return _bracketed(printer, self.args[0]) + "^T"

    def _latex(self, printer: Any) -> str:
        return _bracketed(printer, self.args[0]) + r"^{\top}"

    def _pretty(self, printer: Any) -> Any:
        return printer._print_basestring(to_text(self))


class Elementwise(_Wrapped):
    """A product element by element among matrix products."""

    def _sympystr(self, printer: Any) -> str:
        return "(" + " ⊙ ".join(printer._print(a) for a in self.args) + ")"

    def _latex(self, printer: Any) -> str:
        return "(" + r" \odot ".join(printer._print(a) for a in self.args) + ")"

    def _pretty(self, printer: Any) -> Any:
        return printer._print_basestring(to_text(self))


class Diagonal(_Wrapped):
    """``diag(v)``."""

    def _sympystr(self, printer: Any) -> str:
        return f"diag({printer._print(self.args[0])})"

    def _latex(self, printer: Any) -> str:
        return rf"\operatorname{{diag}}({printer._print(self.args[0])})"

    def _pretty(self, printer: Any) -> Any:
        return printer._print_basestring(to_text(self))


class Call(_Wrapped):
    """A named function of some arguments; the first argument is the name."""

    def _sympystr(self, printer: Any) -> str:
        name, *rest = self.args
        return f"{name}({', '.join(printer._print(a) for a in rest)})"

    def _latex(self, printer: Any) -> str:
        name, *rest = self.args
        return rf"\operatorname{{{_escape(str(name))}}}\left({', '.join(printer._print(a) for a in rest)}\right)"

    def _pretty(self, printer: Any) -> Any:
        return printer._print_basestring(to_text(self))


def _bracketed(printer: Any, x: Any) -> str:
    text = str(printer._print(x))
    return text if isinstance(x, (Symbol, Diagonal, Elementwise, Call)) else f"({text})"


def _over(x: Any) -> tuple[list[Any], list[Any]]:
    """The factors above and below the line of a product."""
    above, below = [], []
    for factor in x.args:
        base, exponent = factor.as_base_exp() if factor.is_Pow else (factor, sympy.S.One)
        if exponent == -1 and not base.is_number:
            below.append(base)
        else:
            above.append(factor)
    return above, below


def _sum(printer: Any, x: Any) -> str:
    parts: list[str] = []
    for term in x.args:
        text = printer._print(term)
        if parts and text.startswith("-"):
            parts.append(f" - {text[1:].lstrip()}")
        else:
            parts.append(f" + {text}" if parts else text)
    return "".join(parts)


def _product(printer: Any, x: Any, join: str, fraction: Any) -> str:
    above, below = _over(x)
    sign = ""
    if above and above[0] == -1:
        sign, above = "-", above[1:]
    texts = [f"({printer._print(f)})" if f.is_Add else printer._print(f) for f in above]
    top = join.join(texts) or "1"
    if not below:
        return sign + top
    bottom = [f"({printer._print(f)})" if f.is_Add else printer._print(f) for f in below]
    return sign + str(fraction(top, bottom))


def _number(x: Any) -> str:
    return f"{float(x):.6g}"


class _Text(StrPrinter):  # type: ignore[misc]
    def _print_Add(self, expr: Any, order: Any = None) -> str:
        return _sum(self, expr)

    def _print_Mul(self, expr: Any) -> str:
        return _product(self, expr, " ", lambda top, bottom: f"{top} / {' / '.join(bottom)}")

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        base = _bracketed(self, expr.base)
        return f"1 / {base}" if expr.exp == -1 else f"{base}^{self._print(expr.exp)}"

    def _print_Float(self, expr: Any) -> str:
        return _number(expr)

    def _print_Equality(self, expr: Any) -> str:
        return f"{self._print(expr.lhs)} = {self._print(expr.rhs)}"


class _Latex(LatexPrinter):  # type: ignore[misc]
    def _print_Add(self, expr: Any, order: Any = None) -> str:
        return _sum(self, expr)

    def _print_Mul(self, expr: Any) -> str:
        return _product(self, expr, r" \, ", lambda top, bottom: rf"\frac{{{top}}}{{{' '.join(bottom)}}}")

    def _print_Pow(self, expr: Any) -> str:
        base = _bracketed(self, expr.base)
        return rf"\frac{{1}}{{{base}}}" if expr.exp == -1 else f"{base}^{{{self._print(expr.exp)}}}"

    def _print_Float(self, expr: Any) -> str:
        return _number(expr)


class _Pretty(PrettyPrinter):  # type: ignore[misc]
    def _print_Add(self, expr: Any) -> Any:
        return prettyForm(to_text(expr)) if not _tall(expr) else super()._print_Add(expr, order="none")

    def _print_Mul(self, expr: Any) -> Any:
        above, below = _over(expr)
        if below:
            top = sympy.Mul(*above, evaluate=False) if len(above) > 1 else (above or [sympy.S.One])[0]
            bottom = sympy.Mul(*below, evaluate=False) if len(below) > 1 else below[0]
            return self._print(top) / self._print(bottom)
        return prettyForm(to_text(expr))

    def _print_Pow(self, expr: Any) -> Any:
        return prettyForm("1") / self._print(expr.base) if expr.exp == -1 else super()._print_Pow(expr)

    def _print_Float(self, expr: Any) -> Any:
        return prettyForm(_number(expr))


def _tall(x: Any) -> bool:
    return any(p.is_Pow and p.exp == -1 for p in sympy.preorder_traversal(x))


def to_text(x: Any) -> str:
    """A formula on one line: ``h[t] = a[t] h[t-1] + b[t]``."""
    return str(_Text().doprint(x))


def to_latex(x: Any) -> str:
    """A formula in LaTeX, without delimiters."""
    return str(_Latex().doprint(x))


def to_pretty(x: Any) -> str:
    """A formula for a terminal, with fractions drawn over several lines."""
    return str(_Pretty({"use_unicode": True, "wrap_line": False}).doprint(x))


def _escape(text: str) -> str:
    table = {"\\": r"\backslash ", "{": r"\{", "}": r"\}", "^": r"\hat{}", "~": r"\sim "}
    return "".join(table.get(c, "\\" + c if c in "_&%$#" else c) for c in text)


def symbol_latex(name: str) -> str:
    """A name with its time as a subscript: ``z_gate[t-1]`` becomes ``z_{\\mathrm{gate},\\,t-1}``."""
    inverted = name.startswith("[") and name.endswith("]")
    if inverted:
        inner = name[1:-1]
        negated = inner.startswith("not ")
        return r"\left[" + (r"\neg " if negated else "") + symbol_latex(inner.removeprefix("not ")) + r"\right]"
    match = _NAME.match(name)
    assert match is not None
    stem, when = match.group(1), match.group(2)[1:-1]
    head, tail, accent = name_parts(stem)
    head, digits = _digits(head)
    body = _stem(head)
    if accent == "prime":
        body += "'"
    elif accent:
        body = rf"\{accent}{{{body}}}"
    below = [
        *([digits] if digits else []),
        *(rf"\mathrm{{{_escape(part)}}}" for part in tail),
        *([when] if when else []),
    ]
    return body + (f"_{{{','.join(below)}}}" if below else "")


ACCENTS = ("tilde", "hat", "bar", "dot", "prime")


def name_parts(stem: str) -> tuple[str, list[str], str]:
    """(letter or word, what follows it as subscripts, accent) of a name: ``h_tilde`` is h with a tilde, ``z_gate`` has
    a subscript, and ``log_f`` is one word."""
    head, *tail = stem.split("_")
    accent = tail.pop(0) if tail and tail[0] in ACCENTS else ""
    letter = head in GREEK or re.match(r"^[A-Za-z]\d*$", head)
    if not head or not all(tail) or not (letter or accent):
        return stem, [], ""
    return head, tail, accent


def _digits(stem: str) -> tuple[str, str]:
    match = re.match(r"^([A-Za-z]+)(\d+)$", stem)
    return (match.group(1), match.group(2)) if match else (stem, "")


def _stem(head: str) -> str:
    if head in GREEK:
        return f"\\{head}"
    return head if len(head) == 1 and head.isalpha() else rf"\mathrm{{{_escape(head)}}}"


@dataclass(frozen=True)
class Equation:
    """The update of every state of a recurrence.

    Attributes:
        formulas: one sympy equation for each state.
        where: (symbol, meaning) of the symbols that are no variables of the user.
    """

    formulas: tuple[Any, ...]
    where: tuple[tuple[str, str], ...] = field(default=())

    def __deepcopy__(self, memo: Any) -> Equation:
        # It cannot be changed, and sympy would put the terms of a copy in another order.
        return self

    @property
    def text(self) -> str:
        """On one line: ``"h[t] = a[t] h[t-1] + b[t]"``."""
        return "; ".join(to_text(f) for f in self.formulas)

    @property
    def latex(self) -> str:
        """In LaTeX, without delimiters."""
        lines = [to_latex(f) for f in self.formulas]
        return lines[0] if len(lines) == 1 else r"\begin{aligned}" + r" \\ ".join(lines) + r"\end{aligned}"

    @property
    def pretty(self) -> str:
        """For a terminal, fractions over several lines."""
        return "\n".join(to_pretty(f) for f in self.formulas)
