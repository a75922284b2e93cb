"""What is proved about a step: its state graph, its polynomial in the states, and the structure of the recurrence."""

from linrec.analysis import attention_rules as attention_rules
from linrec.analysis import complex_rules as complex_rules
from linrec.analysis import convolution as convolution
from linrec.analysis import fourier as fourier
from linrec.analysis import indexing as indexing
from linrec.analysis import loss_rules as loss_rules
from linrec.analysis import matrix_rules as matrix_rules
from linrec.analysis import norm_rules as norm_rules
from linrec.analysis import row_rules as row_rules
from linrec.analysis import selection as selection
from linrec.analysis import vector_rules as vector_rules
