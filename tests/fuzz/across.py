"""What leads from one state of a random program to another, as text: `H` stands for a state, `G` for one that gates it
(kinds and other letters as in `catalogue`)."""

from __future__ import annotations

ACROSS = {
    ("s", "s"): ["0.3 * H"],
    ("s", "d"): ["H[:, None] * P.a", "H.unsqueeze(-1).expand(-1, 4) * 0.3", "torch.outer(H, P.a)"],
    ("s", "n"): ["H[:, None, None] * db_t", "H.view(-1, 1, 1) * P.ad"],
    ("s", "c"): ["H[:, None] * P.pole"],
    ("d", "s"): ["H.sum(-1)", "(H * x_t).mean(1)", "H[:, 2]", "H @ P.a", "torch.einsum('bi,bi->b', H, g_t)"],
    ("d", "d"): ["0.4 * H", "0.3 * g_t * H", "0.5 * H @ P.W", "0.3 * (H - x_t)", "0.3 * P.drive(H)", "0.5 * H.flip(1)"],
    ("d", "n"): [
        "H[..., None] * k_t[:, None]",
        "0.3 * torch.einsum('bd,dn->bdn', H, P.K)",
        "0.2 * H.unsqueeze(-1).repeat(1, 1, 3)",
    ],
    ("d", "c"): ["(H @ P.K).to(torch.complex128)", "(H[:, :3] * 0.5).to(torch.complex128) * P.pole"],
    ("n", "s"): ["0.2 * H.sum((1, 2))", "0.3 * H[:, 0, 1]"],
    ("n", "d"): [
        "(H * k_t[:, None]).sum(-1)",
        "(H @ k_t[..., None]).squeeze(-1)",
        "torch.einsum('bdn,bn->bd', H, k_t)",
        "0.4 * H.mean(2)",
        "H[..., 0]",
        "0.3 * H @ P.al",
    ],
    ("n", "n"): ["0.4 * H", "0.3 * H @ P.An", "0.3 * da_t * H"],
    ("n", "c"): ["(0.3 * H.mean(1)).to(torch.complex128)"],
    ("c", "s"): ["0.3 * H.real.sum(-1)"],
    ("c", "d"): [
        "H.real @ P.K.T",
        "(H.imag @ P.K.T) * 0.5",
        "torch.view_as_real(H.to(torch.complex128)).sum(-1) @ P.K.T * 0.3",
        "(H @ P.K.T.to(H.dtype)).real",
    ],
    ("c", "n"): ["0.3 * H.real[:, None] * x_t[..., None]"],
    ("c", "c"): ["0.3 * H", "0.3 * P.pole * H"],
    ("f", "s"): ["0.3 * H", "torch.where(H, e_t, s_t)"],
    ("f", "d"): ["torch.where(H[:, None], x_t, 0.5 * d_t)", "H[:, None] * P.b", "H.to(x_t.dtype)[:, None] * x_t"],
    ("f", "n"): ["H[:, None, None] * db_t"],
    ("f", "c"): ["H[:, None] * k_t"],
    ("f", "i"): ["H", "H.long() * 2"],
    ("i", "s"): ["0.1 * H", "H * e_t * 0.1"],
    ("i", "d"): ["0.1 * H[:, None] * x_t", "0.2 * H[:, None].to(x_t.dtype) * P.b"],
    ("i", "n"): ["0.1 * H[:, None, None] * db_t"],
    ("i", "c"): ["0.1 * H[:, None] * k_t"],
    ("i", "i"): ["H", "2 * H"],
}
"""Affine from one state to an update of another (or the same) kind."""

GATES = {
    ("f", "s"): ["torch.where(G, H, 0.5 * H)", "H * ~G", "H.masked_fill(G, 0.1)"],
    ("f", "d"): [
        "torch.where(G[:, None], 0.5 * H, H)",
        "H.masked_fill(G[:, None], 0.0)",
        "H * (0.5 + 0.5 * G[:, None].to(H.dtype))",
        "torch.where(~G[:, None], P.a * H, x_t)",
    ],
    ("f", "n"): ["torch.where(G[:, None, None], H, 0.5 * H)", "H * G[:, None, None]"],
    ("f", "c"): ["torch.where(G[:, None], H, P.pole * H)"],
    ("f", "f"): ["H & G", "H ^ G", "torch.where(m_t, G, H)"],
    ("f", "i"): ["torch.where(G, torch.zeros_like(H), H + 1)", "H * G + 1"],
    ("i", "s"): ["H / (1.0 + G.abs())"],
    ("i", "d"): ["H * torch.sigmoid(0.1 * G)[:, None]", "torch.where(G[:, None] % 3 == 0, H, P.a * H)"],
    ("i", "n"): ["torch.where(G[:, None, None] > 2, H, 0.5 * H)"],
    ("i", "c"): ["H / (1.0 + G.abs())[:, None]"],
    ("i", "f"): ["H | (G % 3 == 0)"],
    ("i", "i"): ["torch.where(G > 3, H, H + 1)"],
    ("s", "d"): ["H * torch.sigmoid(G)[:, None]"],
    ("s", "f"): ["H | (G > 1.0)"],
    ("d", "s"): ["H * torch.sigmoid(G.mean(-1))"],
    ("d", "d"): ["H * torch.sigmoid(G)"],
    ("d", "f"): ["H ^ (G[:, 0] > 0.3)"],
    ("d", "i"): ["H + (G > 0).sum(-1)"],
}
"""Affine in H where G is a state that doesn't depend on H."""
