"""What is proved about a step: its state graph, its polynomial in the states, and the structure of the recurrence."""

from linrec.analysis import indexing as indexing
from linrec.analysis import selection as selection
from linrec.analysis import vector_rules as vector_rules
