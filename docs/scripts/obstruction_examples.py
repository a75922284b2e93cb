"""For each obstruction of the catalogue the shortest loop that meets it, and what to write instead.

Every `code` leaves a `linrec.Report` called `report`, in which the obstruction is found; every `remedy`, where there is
one, leaves one in which it is not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """Code that meets an obstruction; `remedy` is the same loop without it, `advice` what to know besides.

    `met` is false where the example shows the meaning without ending in the obstruction.
    """

    code: str
    remedy: str = ""
    advice: str = ""
    met: bool = True


LEAKY = """
def leaky(x):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = {update}
        out.append(h)
    return torch.stack(out, 1)

report = linrec.explain(leaky, torch.randn(2, 30, 3))
"""

EXAMPLES = {
    "LR001": Example(
        """
def five_steps(x):  # the same operators at every length
    h = torch.zeros_like(x[:, 0])
    for t in range(5):
        h = 0.9 * h + x[:, t]
    return h

report = linrec.explain(five_steps, torch.randn(2, 30, 3))
""",
        advice="A model in which nothing is repeated over time is left alone, and its report is empty: that is what "
        "the example shows. The entry itself is for steps that are repeated, but carry no state and hold no operator "
        "that could be done for all of them at once; no short loop that ends with it is known.",
        met=False,
    ),
    "LR002": Example(
        LEAKY.format(update="0.9 * h + torch.from_numpy(x[:, t].numpy())"),
        LEAKY.format(update="0.9 * h + x[:, t]"),
        "numpy, and whatever else leaves torch on the way, cannot be traced.",
    ),
    "LR003": Example(
        LEAKY.format(update="torch.tanh(0.9 * h + x[:, t])"),
        LEAKY.format(update="0.9 * h + torch.tanh(x[:, t])"),
        "The remedy is another model: this is the step from an Elman network to one of the family of minGRU, LRU or "
        "Mamba. A network that needs its nonlinearity keeps the loop, and everything that reads no state leaves it.",
    ),
    "LR004": Example(
        LEAKY.format(update="0.9 * h + x[:, : t + 1].sum(1)"),
        """
def leaky(x):
    h, total, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        total = total + x[:, t]
        h = 0.9 * h + total
        out.append(h)
    return torch.stack(out, 1)

report = linrec.explain(leaky, torch.randn(2, 30, 3))
""",
        "What grows from step to step is carried as a state, or computed before the loop (`x.cumsum(1)`). A branch on "
        "the step number becomes a mask that every step multiplies with; steps that take turns (`if t % 3`) need none.",
    ),
    "LR005": Example(
        """
def first_few(x):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)[:, : int(2 * x.shape[1] ** 0.5)]

report = linrec.explain(first_few, torch.randn(2, 30, 3))
""",
        """
def states(x):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)

def first_few(x):
    return states(x)[:, : int(2 * x.shape[1] ** 0.5)]

report = linrec.explain(states, torch.randn(2, 30, 3))
""",
        "A size, an index or a slice may be an affine function of the length (`x.shape[1] - 1`, `x.shape[1] // 2`), "
        "and numbers that are computed with may be any function of it (`/ x.shape[1] ** 0.5`). What cuts the result "
        "otherwise is best done outside what is parallelised.",
    ),
    "LR006": Example(
        """
def paths(x):  # integers that a matrix mixes: no scan is registered for them
    adjacent = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    h, out = torch.ones_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = h @ adjacent + x[:, t]
        out.append(h)
    return torch.stack(out, 1)

report = linrec.explain(paths, torch.randint(0, 2, (2, 30, 3)))
""",
        advice="See [Extending](extending.md) for how an algorithm is registered.",
    ),
    "LR007": Example(
        LEAKY.format(update="0.5 * h + 0.4 * h.detach() + x[:, t]"),
        LEAKY.format(update="0.9 * h + x[:, t]"),
        "With the detach, the state has one coefficient and its gradient another: a parallel form with the full "
        "gradient would be another model. Where the whole state is detached, as in truncated backpropagation, it is "
        "rewritten.",
    ),
    "LR008": Example(
        """
class Leaky(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.inner(x[:, t])
            out.append(h)
        return torch.stack(out, 1)

model = Leaky()
model.inner.register_forward_hook(lambda module, args, result: None)
linrec.parallelize(model)(torch.randn(2, 30, 3))
report = linrec.report(model)
""",
        advice="A hook on the module that owns the loop is called as ever.",
    ),
    "LR009": Example(
        LEAKY.format(update="0.9 * h + torch.bernoulli(torch.sigmoid(h))"),
        LEAKY.format(update="0.9 * h + torch.bernoulli(torch.sigmoid(x[:, t]))"),
        "Dropout, `rand`, `randn`, `bernoulli` and their like are drawn before the loop, step by step: the same seed"
        " gives the same numbers as the loop.",
    ),
    "LR010": Example(
        """
with linrec.extend.isolated():
    # An extension that is wrong: it says that sin is the identity.
    linrec.rule(torch.ops.aten.sin.default)(lambda algebra, node, h: h)
"""
        + LEAKY.format(update="torch.sin(h) + x[:, t]").replace("\n", "\n    ").rstrip()
        + "\n",
        advice="Without an extension this is a bug of linrec, and the model that shows it is welcome as an issue. The "
        "original code runs; nothing wrong is computed.",
    ),
    "LR011": Example(
        """
def capped(x):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + x[:, t]
        if t >= 50:  # not seen at the short lengths that are traced
            h = h.clamp(-1, 1)
        out.append(h)
    return torch.stack(out, 1)

report = linrec.explain(capped, torch.randn(2, 80, 3))
""",
        advice="Lengths up to the greatest one that agreed go on in the parallel form.",
    ),
    "LR012": Example(
        """
@torch.library.custom_op("docs::sorted_ranks", mutates_args=())
def sorted_ranks(x: torch.Tensor) -> torch.Tensor:
    return x.argsort(-1).argsort(-1).to(x.dtype)

sorted_ranks.register_fake(lambda x: torch.empty_like(x))
"""
        + LEAKY.format(update="0.9 * h + sorted_ranks(x[:, t])"),
        """
@torch.library.custom_op("docs::ranks", mutates_args=())
def ranks(x: torch.Tensor) -> torch.Tensor:
    return x.argsort(-1).argsort(-1).to(x.dtype)

ranks.register_fake(lambda x: torch.empty_like(x))
ranks.register_vmap(lambda info, dims, x: (ranks(x.movedim(dims[0], 0)), 0))
"""
        + LEAKY.format(update="0.9 * h + ranks(x[:, t])"),
        "A batching rule of `torch.func.vmap` is enough; `linrec.vector_rule` registers a rule of linrec's own.",
    ),
    "LR013": Example(
        """
class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            self.seen.append(t)
            out.append(h)
        return torch.stack(out, 1)

report = linrec.explain(Recorder(), torch.randn(2, 30, 3))
""",
        advice="Assigned tensors (`self.h = h`) and buffers that are written to are understood; it is lists, counters "
        "and parameters that are not.",
    ),
    "LR014": Example(
        """
class Leaky(torch.nn.Module):
    def forward(self, x):
        x.requires_grad_()  # of the caller's tensor
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

report = linrec.explain(Leaky(), torch.randn(2, 30, 3))
""",
        advice="Autocast, the transforms of `torch.func` and `torch.compile` are no obstacles.",
    ),
    "LR015": Example(
        LEAKY.format(update="0.9 * h + x[:, t] if x[:, t].sum() > 0 else 0.9 * h"),
        LEAKY.format(update="0.9 * h + torch.where(x[:, t].sum() > 0, x[:, t], 0)"),
        "The state may be chosen by a mask as well, as long as the mask does not read the state.",
    ),
    "LR016": Example(
        """
def leaky(x):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)

model = linrec.parallelize(leaky, torch.randn(2, 30, 3), lowering="loop")
report = linrec.report(model)
""",
        advice="It is there for measuring: what reads no state leaves the loop all the same.",
    ),
    "LR017": Example(
        """
def diffused(u, source):  # u: a grid
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    for t in range(source.shape[1]):
        u = u + source[:, t] * torch.nn.functional.conv2d(u, kernel, padding=1)
    return u

report = linrec.explain(diffused, torch.randn(2, 1, 24, 24), torch.rand(2, 30, 1, 24, 24))
""",
        advice="Every element of this state mixes with every other: in parallel, a step is a matrix of 576 rows and "
        "columns, in the loop it is a few multiplications for each element.",
    ),
}
