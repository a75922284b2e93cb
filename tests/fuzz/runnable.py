"""A failed program as a file that runs by itself and shows what is wrong."""

from __future__ import annotations

from .check import Outcome
from .writer import Program

MAIN = """

if __name__ == "__main__":
    import linrec

    torch.manual_seed(0)
    model, oracle = Model().double(), Model().double()
    oracle.load_state_dict(model.state_dict())
    linrec.parallelize(model)
    for batch, length in ((2, 9), (3, 17), (4, 40)):
        x = torch.randn({shape}, dtype=torch.float64)
        mask = torch.rand({mask}) < 0.3
        seen = []
        for each in (oracle, model):
            leaf = x.clone().requires_grad_()
            outputs = each(leaf, mask)
            torch.manual_seed(1)
            total = sum((torch.view_as_real(y) if y.is_complex() else y).double().mul(torch.randn(())).sum() for y in outputs)
            wanted = [leaf, *(p for p in each.parameters() if p.requires_grad)]
            found = torch.autograd.grad(total, wanted, allow_unused=True)
            seen.append([*outputs, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found))])
        print(batch, length, [f"{{(a - b).abs().max().item():.1e}}" for a, b in zip(*seen)])
    print(linrec.report(model))
"""


def as_file(program: Program, outcome: Outcome) -> str:
    """The program, what came of it as comments, and a main part that compares it with itself under linrec."""
    said = [line for each in outcome.details for line in each.splitlines()]
    notes = [
        f"# {outcome.kind} (expected: {program.verdict}; time is dimension {program.time})",
        *(f"# {s}" for s in said),
    ]
    sizes = ("batch, length", "batch, length") if program.time == 1 else ("length, batch", "length, batch")
    return "\n".join(notes) + "\n" + program.source + MAIN.format(shape=sizes[0] + ", 4", mask=sizes[1])
