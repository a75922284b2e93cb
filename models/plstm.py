"""A linear source-transition-mark network on a grid: Poppel, Freinschlag, Schmied & Hochreiter, "pLSTM" (2025).

    h_ij = A_ij h_{i-1,j} + B_ij h_{i,j-1} + s_ij,        y_ij = m_ij h_ij

Two nested loops, over rows and over the columns of a row; each cell reads the one above and the one to the left. The
transitions of a cell share one unit of decay, A + B <= 1, which is what keeps the sum over all paths bounded (the
paper's P mode).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridLSTM(nn.Module):
    """x (B, rows, columns, width) -> (B, rows, columns, width); it flows down and to the right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.source = nn.Linear(width, width)
        self.decay = nn.Linear(width, width)
        self.angle = nn.Linear(width, width)
        self.mark = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        above = [torch.zeros_like(x[:, 0, 0]) for _ in range(columns)]
        grid = []
        for i in range(rows):
            left = torch.zeros_like(x[:, 0, 0])
            for j in range(columns):
                cell = x[:, i, j]
                decay, angle = torch.sigmoid(self.decay(cell)), torch.sigmoid(self.angle(cell))
                left = decay * (angle * above[j] + (1 - angle) * left) + self.source(cell)
                above[j] = left
            grid.append(torch.stack(above, dim=1))
        return torch.sigmoid(self.mark(x)) * torch.stack(grid, dim=1)
