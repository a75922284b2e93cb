"""How findings are shown: as plain text, on a terminal, in a notebook, as data, as one HTML file."""

from linrec.show.data import Findings, to_dict
from linrec.show.page import page
from linrec.show.terminal import notebook, rich_tree
from linrec.show.text import plain

__all__ = ["Findings", "notebook", "page", "plain", "rich_tree", "to_dict"]
