"""Train `transformers`' own Mamba, or RecurrentGemma, as a byte-level language model, without touching their code.

Where their GPU kernels are not available, both run a Python loop over time. The text is the documentation inside this
Python's standard library (or any file: `--text`), the weights are random and nothing is downloaded. One copy of
the model is trained as it is for a few steps; the other, after one added line, for all of them, and in eval mode it
generates a sample through its own code.

    python examples/hf_mamba.py
    python examples/hf_mamba.py --model recurrentgemma
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the repository is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import linrec
from examples._shared import conclude, require, train_both

VOCABULARY = 256
TEXT_BYTES = 400_000
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def library_text(size: int = TEXT_BYTES) -> bytes:
    """The first `size` bytes of docstrings of this Python's standard library, in the order of its file names."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
                text += docstring.encode() + b"\n\n"
        if len(text) >= size:
            break
    return bytes(text[:size])


def training_text(path: Path | None, shortest: int) -> Tensor:
    """The bytes to learn from, (size,) int64; leaves with one line if there are fewer than `shortest`."""
    try:
        text = library_text() if path is None else path.read_bytes()
    except OSError as error:
        raise SystemExit(f"--text: {error}") from None
    if len(text) < shortest:
        place = "this Python's standard library" if path is None else path
        raise SystemExit(f"{len(text)} bytes of text in {place}, {shortest} are needed: give a longer file with --text")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def build(name: str, hidden: int, layers: int) -> nn.Module:
    """A causal language model of `transformers` over bytes, with random weights."""
    import transformers

    transformers.logging.set_verbosity_error()  # that the GPU kernels are missing is the point
    if name == "mamba":
        return transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers)
        )
    return transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            attention_window_size=64,
        )
    )


def sample(model: nn.Module, prompt: Tensor, size: int) -> str:
    """`size` bytes after `prompt` (T,), drawn by the model's own `generate`."""
    ids = prompt.unsqueeze(0)
    options = {"max_new_tokens": size, "do_sample": True, "temperature": 0.7}
    drawn = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return bytes(drawn[0, ids.shape[1] :].tolist()).decode(errors="replace")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mamba", "recurrentgemma"), default="mamba")
    parser.add_argument("--hidden", type=int, default=64, metavar="N", help="width, a multiple of 16 (64)")
    parser.add_argument("--layers", type=int, metavar="N", help="2 for Mamba; 3 for RecurrentGemma, the third attends")
    parser.add_argument("--length", type=int, default=128, metavar="N", help="bytes in a training window (128)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="windows in a batch (4)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="training steps once parallelised (300)")
    parser.add_argument("--loop-steps", type=int, default=6, metavar="N", help="training steps as it is (6)")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="bytes to generate at the end (200)")
    parser.add_argument("--learning-rate", type=float, default=0.005, metavar="X", help="of Adam, at the start (0.005)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights, batches and the sample (0)")
    parser.add_argument("--text", type=Path, help="a file to learn from")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (its own choice)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the results")
    args = parser.parse_args(argv)
    if args.layers is None:
        args.layers = 2 if args.model == "mamba" else 3
    if min(args.hidden, args.layers, args.length, args.batch, args.steps, args.loop_steps, args.sample) < 1:
        parser.error("sizes and numbers of steps start at 1")
    if args.loop_steps < 2 or args.steps < 2:
        parser.error("the first step is not measured: take at least 2")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads starts at 1")
    if args.hidden % 16:
        parser.error(f"--hidden must be a multiple of 16, not {args.hidden}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    require("rich", "matplotlib", "transformers")
    text = training_text(args.text, shortest=20 * args.length)
    cut = len(text) * 9 // 10
    learned, held_out = text[:cut], text[cut:]

    torch.manual_seed(args.seed)
    model = build(args.model, args.hidden, args.layers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    starts = torch.randint(cut - args.length, (args.steps, args.batch))
    name = type(model).__name__
    print(f"{name}: {parameters:,} parameters, {len(text):,} bytes of text, {args.steps} training steps")

    def loss_at(net: nn.Module, step: int) -> Tensor:
        ids = torch.stack([learned[start : start + args.length] for start in starts[step].tolist()])
        return net(input_ids=ids, labels=ids).loss

    as_it_is = copy.deepcopy(model)

    linrec.parallelize(model)  # the one added line

    options = {"loop_steps": min(args.loop_steps, args.steps), "steps": args.steps, "rate": args.learning_rate}
    loop, parallel = train_both(as_it_is, model, loss_at, **options)

    model.eval()  # in eval mode the model runs its own code, as it came in
    with torch.no_grad():
        windows = held_out[: len(held_out) // args.length * args.length].view(-1, args.length)[:16]
        bits = model(input_ids=windows, labels=windows).loss.item() / math.log(2)
        written = sample(model, held_out[: args.length // 2], args.sample)
    conclude(
        loop,
        parallel,
        linrec.report(model),
        title=f"{name} on bytes: {parameters:,} parameters, T = {args.length}, batch {args.batch}",
        folder=args.out,
        stem=f"hf_{args.model}",
        facts={"held_out_bits_per_byte": bits, "parameters": parameters, "sample": written},
    )
    print(f"held-out text    {bits:.3f} bits a byte ({math.log2(VOCABULARY):.0f} for a guess)")
    print("sample           " + repr(written))


if __name__ == "__main__":
    main()
