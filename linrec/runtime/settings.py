"""The options of one `parallelize` call."""

from __future__ import annotations

from dataclasses import dataclass, field

from linrec.runtime.compile import Options
from linrec.runtime.turns import Turns


@dataclass
class Settings:
    """The options of one `parallelize` call, shared by all dispatchers of a model.

    Attributes:
        when: "training" where plans serve in training mode only, or "always".
        strict: whether what is left as it is raises.
        options: how to compile; turns: who may be where in the model.
    """

    when: str
    strict: bool
    options: Options
    turns: Turns = field(default_factory=Turns)
