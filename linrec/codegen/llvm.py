"""Writes LLVM's assembly language. A value is a number or a vector of one number for each of `width` lanes, the wide
values; operators lift the former to the latter. Code goes into nested regions, so that what does not change in a loop
can be written in front of it while its body is being written."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

FLOATS = ("float", "double")
METADATA = "!0 = !{i32 1}"
"""What instructions refer to, at the end of a module."""
_STREAMED = "!nontemporal !0"


@dataclass(frozen=True)
class Val:
    """A value: its name or number as text, the kind of its elements ("float", "i64", "ptr", ...), and whether it is
    wide."""

    text: str
    kind: str
    wide: bool = False


class Region:
    """A place in the code that lines can still be added to."""

    def __init__(self) -> None:
        self.parts: list[str | Region] = []

    def lines(self) -> Iterator[str]:
        """All its lines."""
        for part in self.parts:
            if isinstance(part, str):
                yield part
            else:
                yield from part.lines()


@dataclass
class Loop:
    """A loop that is being written.

    Attributes:
        index: counts from 0 (or its start).
        hoist: the region in front of it.
        carried: the values that the iterations hand on, as an iteration finds them.
        handed: as it leaves them; to be set.
        results: after the loop, what the last iteration has left.
    """

    index: Val
    hoist: Region
    carried: list[Val]
    handed: list[Val] = field(default_factory=list)
    results: list[Val] = field(default_factory=list)


class Builder:
    """Writes one function."""

    def __init__(self, width: int, names: Iterator[int]) -> None:
        self.width = width
        self.region = self.entry = Region()
        self.needed: dict[str, None] = {}
        """Declarations of what is called."""
        self._names = names

    def type(self, kind: str, wide: bool = False) -> str:
        """The type of values of a kind."""
        return f"<{self.width} x {kind}>" if wide and self.width > 1 else kind

    def fresh(self, stem: str = "v") -> str:
        """A name that is not taken."""
        return f"{stem}{next(self._names)}"

    def emit(self, text: str) -> None:
        """Add a line to the current region."""
        self.region.parts.append(text)

    @contextlib.contextmanager
    def within(self, region: Region) -> Iterator[None]:
        """Write into another region for a while."""
        before, self.region = self.region, region
        yield
        self.region = before

    def set(self, kind: str, wide: bool, text: str) -> Val:
        """Name the result of an instruction."""
        name = "%" + self.fresh()
        self.emit(f"{name} = {text}")
        return Val(name, kind, wide and self.width > 1)

    def number(self, value: Any, kind: str) -> Val:
        """A constant."""
        if kind == "float":
            value = struct.unpack("f", struct.pack("f", _single(float(value))))[0]
        if kind in FLOATS:
            return Val(f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}", kind)
        if kind == "i1":
            return Val("true" if value else "false", kind)
        return Val(str(int(value)), kind)

    def integer(self, value: int) -> Val:
        """A 64-bit integer."""
        return self.number(value, "i64")

    def widen(self, x: Val) -> Val:
        """The same number in every lane."""
        if x.wide or self.width == 1:
            return x
        one, many = x.kind, self.type(x.kind, True)
        if not x.text.startswith("%"):
            return Val("<" + ", ".join([f"{one} {x.text}"] * self.width) + ">", one, True)
        first = self.set(one, True, f"insertelement {many} poison, {one} {x.text}, i32 0")
        zeros = f"<{self.width} x i32> zeroinitializer"
        return self.set(one, True, f"shufflevector {many} {first.text}, {many} poison, {zeros}")

    def alike(self, *values: Val) -> list[Val]:
        """All wide where one of them is."""
        return [self.widen(v) for v in values] if any(v.wide for v in values) else list(values)

    def op(self, name: str, x: Val, y: Val, kind: str | None = None) -> Val:
        """An instruction with two operands, such as "fadd contract"."""
        x, y = self.alike(x, y)
        return self.set(kind or x.kind, x.wide, f"{name} {self.type(x.kind, x.wide)} {x.text}, {y.text}")

    def add(self, x: Val, y: Val) -> Val:
        """x + y for 64-bit integers."""
        if x.text == "0" and not x.wide:
            return y
        if y.text == "0" and not y.wide:
            return x
        return self.op("add", x, y)

    def mul(self, x: Val, y: Val) -> Val:
        """x y for 64-bit integers."""
        if "0" in (x.text, y.text):
            return self.integer(0)
        if x.text == "1":
            return y
        return x if y.text == "1" else self.op("mul", x, y)

    def fadd(self, x: Val, y: Val) -> Val:
        """x + y."""
        return self.op("fadd contract", x, y)

    def fsub(self, x: Val, y: Val) -> Val:
        """x - y."""
        return self.op("fsub contract", x, y)

    def fmul(self, x: Val, y: Val) -> Val:
        """x y."""
        return self.op("fmul contract", x, y)

    def fdiv(self, x: Val, y: Val) -> Val:
        """x / y."""
        return self.op("fdiv", x, y)

    def fneg(self, x: Val) -> Val:
        """-x."""
        return self.set(x.kind, x.wide, f"fneg {self.type(x.kind, x.wide)} {x.text}")

    def fma(self, x: Val, y: Val, z: Val) -> Val:
        """x y + z, rounded once."""
        x, y, z = self.alike(x, y, z)
        return self.intrinsic("fma", x, y, z)

    def intrinsic(self, name: str, *args: Val) -> Val:
        """An LLVM intrinsic that is overloaded in one type, that of its arguments and its result."""
        args = tuple(self.alike(*args))
        kind = self.type(args[0].kind, args[0].wide)
        letter = {"float": "f32", "double": "f64"}.get(args[0].kind, args[0].kind)
        full = f"llvm.{name}." + (f"v{self.width}{letter}" if args[0].wide and self.width > 1 else letter)
        self.needed[f"declare {kind} @{full}({', '.join([kind] * len(args))})"] = None
        given = ", ".join(f"{kind} {a.text}" for a in args)
        return self.set(args[0].kind, args[0].wide, f"call {kind} @{full}({given})")

    def compare(self, condition: str, x: Val, y: Val) -> Val:
        """A comparison: "fcmp olt", "icmp slt", ..."""
        return self.op(condition, x, y, "i1")

    def select(self, condition: Val, x: Val, y: Val) -> Val:
        """x where the condition holds, otherwise y."""
        if condition.wide or x.wide or y.wide:
            condition, x, y = self.widen(condition), self.widen(x), self.widen(y)
        kind = self.type(x.kind, x.wide)
        test = self.type("i1", condition.wide)
        return self.set(x.kind, x.wide, f"select {test} {condition.text}, {kind} {x.text}, {kind} {y.text}")

    def convert(self, instruction: str, x: Val, kind: str) -> Val:
        """A conversion: "sitofp", "zext", "bitcast", ..."""
        text = f"{instruction} {self.type(x.kind, x.wide)} {x.text} to {self.type(kind, x.wide)}"
        return self.set(kind, x.wide, text)

    def extract(self, x: Val, lane: int) -> Val:
        """One lane's number."""
        if not x.wide:
            return x
        return self.set(x.kind, False, f"extractelement {self.type(x.kind, True)} {x.text}, i32 {lane}")

    def insert(self, x: Val, value: Val, lane: int) -> Val:
        """With another number in one lane."""
        kind = self.type(x.kind, True)
        if self.width == 1:
            return value
        return self.set(x.kind, True, f"insertelement {kind} {x.text}, {x.kind} {value.text}, i32 {lane}")

    def from_lanes(self, values: Sequence[Val]) -> Val:
        """A wide value from one number for each lane."""
        if self.width == 1:
            return values[0]
        found = Val("poison", values[0].kind, True)
        for lane, value in enumerate(values):
            found = self.insert(found, value, lane)
        return found

    def lanes(self) -> Val:
        """0, 1, 2, ... by lane."""
        if self.width == 1:
            return self.integer(0)
        return Val("<" + ", ".join(f"i64 {i}" for i in range(self.width)) + ">", "i64", True)

    def element(self, pointer: Val, index: Val, kind: str) -> Val:
        """The address of an element of an array of numbers of a kind."""
        return self.set("ptr", False, f"getelementptr {kind}, ptr {pointer.text}, i64 {index.text}")

    def load(self, pointer: Val, kind: str, wide: bool = False) -> Val:
        """The number at an address, or `width` of them from there."""
        wide = wide and self.width > 1
        return self.set(kind, wide, f"load {self.type(kind, wide)}, ptr {pointer.text}, align {size_of(kind)}")

    def store(self, value: Val, pointer: Val) -> None:
        """Write a number, or those of all lanes."""
        kind = self.type(value.kind, value.wide)
        self.emit(f"store {kind} {value.text}, ptr {pointer.text}, align {size_of(value.kind)}")

    def stream(self, value: Val, pointer: Val) -> None:
        """Write all lanes to an address that is a multiple of a vector's size, past the caches. Others see it after a
        `fence`."""
        align = self.width * size_of(value.kind)
        self.emit(f"store {self.type(value.kind, True)} {value.text}, ptr {pointer.text}, align {align}, {_STREAMED}")

    def fence(self) -> None:
        """Finish all writes before those that follow."""
        self.emit("fence seq_cst")

    def masked_load(self, pointer: Val, kind: str, mask: Val) -> Val:
        """Numbers from an address on, in the lanes that a mask holds; zeros elsewhere."""
        many, bits = self.type(kind, True), self.type("i1", True)
        name = f"llvm.masked.load.v{self.width}{_letter(kind)}.p0"
        self.needed[f"declare {many} @{name}(ptr, i32, {bits}, {many})"] = None
        args = f"ptr {pointer.text}, i32 {size_of(kind)}, {bits} {mask.text}, {many} zeroinitializer"
        return self.set(kind, True, f"call {many} @{name}({args})")

    def masked_store(self, value: Val, pointer: Val, mask: Val) -> None:
        """Write the numbers of the lanes that a mask holds."""
        value = self.widen(value)
        many, bits = self.type(value.kind, True), self.type("i1", True)
        name = f"llvm.masked.store.v{self.width}{_letter(value.kind)}.p0"
        self.needed[f"declare void @{name}({many}, ptr, i32, {bits})"] = None
        align = f"i32 {size_of(value.kind)}"
        self.emit(f"call void @{name}({many} {value.text}, ptr {pointer.text}, {align}, {bits} {mask.text})")

    def sum_lanes(self, x: Val) -> Val:
        """The sum over all lanes, in any order."""
        if not x.wide:
            return x
        kind, many = x.kind, self.type(x.kind, True)
        name = f"llvm.vector.reduce.fadd.v{self.width}{_letter(kind)}"
        self.needed[f"declare {kind} @{name}({kind}, {many})"] = None
        zero = self.number(-0.0, kind).text
        return self.set(kind, False, f"call reassoc {kind} @{name}({kind} {zero}, {many} {x.text})")

    def sum_each(self, values: Sequence[Val]) -> Val:
        """As many wide values as there are lanes, to one: lane i is the sum over all lanes of value i."""
        found, kind = list(values), self.type(values[0].kind, True)
        block = self.width
        while block > 1:
            # The lanes of a value are blocks of partial sums, one for each of the values that it was made from.
            half = block // 2
            starts = range(0, 2 * self.width, block)
            parts = [[s + d + i for s in starts for i in range(half)] for d in (0, half)]
            masks = ["<" + ", ".join(f"i32 {i}" for i in p) + ">" for p in parts]
            pairs = zip(found[::2], found[1::2], strict=True)
            found = [self.fadd(*(self._shuffle(kind, x, y, mask) for mask in masks)) for x, y in pairs]
            block = half
        return found[0]

    def _shuffle(self, kind: str, x: Val, y: Val, mask: str) -> Val:
        text = f"shufflevector {kind} {x.text}, {kind} {y.text}, <{self.width} x i32> {mask}"
        return self.set(x.kind, True, text)

    @contextlib.contextmanager
    def loop(
        self, stop: Val, start: Val | None = None, step: int | Val = 1, carried: Sequence[Val] = ()
    ) -> Iterator[Loop]:
        """Repeat for start, start + step, ... below stop."""
        start = self.integer(0) if start is None else start
        head, pre, inside, latch, after = (self.fresh(n) for n in ("head", "pre", "body", "latch", "after"))
        hoist, body = Region(), Region()
        outer = self.region
        outer.parts.append(hoist)
        self.emit(f"br label %{pre}")
        self.emit(f"{pre}:")
        self.emit(f"br label %{head}")
        self.emit(f"{head}:")
        index, later = "%" + self.fresh("i"), "%" + self.fresh("i")
        self.emit(f"{index} = phi i64 [ {start.text}, %{pre} ], [ {later}, %{latch} ]")
        phis = [Val("%" + self.fresh(), c.kind, c.wide) for c in carried]
        place = Region()
        outer.parts.append(place)
        going = "%" + self.fresh()
        self.emit(f"{going} = icmp slt i64 {index}, {stop.text}")
        self.emit(f"br i1 {going}, label %{inside}, label %{after}")
        self.emit(f"{inside}:")
        outer.parts.append(body)
        found = Loop(Val(index, "i64"), hoist, phis)
        self.region = body
        yield found
        self.region = outer
        self.emit(f"br label %{latch}")
        self.emit(f"{latch}:")
        self.emit(f"{later} = add nsw i64 {index}, {step.text if isinstance(step, Val) else step}")
        self.emit(f"br label %{head}")
        self.emit(f"{after}:")
        for phi, first, last in zip(phis, carried, found.handed, strict=True):
            kind = self.type(phi.kind, phi.wide)
            place.parts.append(f"{phi.text} = phi {kind} [ {first.text}, %{pre} ], [ {last.text}, %{latch} ]")
        found.results = phis

    @contextlib.contextmanager
    def when(self, condition: Val) -> Iterator[None]:
        """Run only where a condition (not a wide one) holds."""
        then, after = self.fresh("then"), self.fresh("after")
        self.emit(f"br i1 {condition.text}, label %{then}, label %{after}")
        self.emit(f"{then}:")
        yield
        self.emit(f"br label %{after}")
        self.emit(f"{after}:")


def _letter(kind: str) -> str:
    return {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}.get(kind, kind)


def _single(value: float) -> float:
    """A number that a float32 can hold, infinities included."""
    if math.isfinite(value) and abs(value) > 3.4028235677973366e38:
        return math.copysign(math.inf, value)
    return value


def size_of(kind: str) -> int:
    """Bytes of a number of a kind."""
    return {"float": 4, "double": 8, "half": 2, "bfloat": 2, "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "ptr": 8}[
        kind
    ]
