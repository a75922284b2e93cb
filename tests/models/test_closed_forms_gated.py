"""Gated and matrix-valued case studies against independent forms: explicit sums over the past, and products of whole
matrices.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import (
    aaren,
    abc,
    comba,
    deltanet,
    deltaproduct,
    gae,
    gated_deltanet,
    gla,
    gsa,
    hgrn,
    hgrn2,
    jrt,
    kda,
    linear_attention,
    mamba,
    mamba2,
    mesanet,
    mingru,
    mlstm,
    momentum_delta,
    plstm,
    qrnn,
    retnet,
    rglru,
    rwkv4,
    rwkv5,
    rwkv6,
    rwkv7,
    slstm,
    sru,
    titans,
    transnormer,
)

close = torch.testing.assert_close
LENGTH = 9


def affine_sum(a: Tensor, b: Tensor) -> Tensor:
    """h_t = sum_{s<=t} (prod_{s<r<=t} a_r) b_s, for a, b (B, T, ...): the definition, without a recurrence."""
    return torch.stack(
        [sum(a[:, s + 1 : t + 1].prod(1) * b[:, s] for s in range(t + 1)) for t in range(b.shape[1])], dim=1
    )


def matrix_sum(A: Tensor, B: Tensor) -> Tensor:
    """S_t = sum_{s<=t} B_s A_{s+1} ... A_t, for A, B (B, T, ..., d, d)."""
    states = []
    for t in range(B.shape[1]):
        total = torch.zeros_like(B[:, 0])
        for s in range(t + 1):
            term = B[:, s]
            for r in range(s + 1, t + 1):
                term = term @ A[:, r]
            total = total + term
        states.append(total)
    return torch.stack(states, dim=1)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1))


def outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def test_mingru() -> None:
    model, x, h0 = mingru.MinGRU(3, 4), torch.randn(2, LENGTH, 3), torch.randn(2, 4)
    z, h = torch.sigmoid(model.linear_z(x)), model.linear_h(x)
    close(model(x), affine_sum(1 - z, z * h))
    close(model(x, h0), affine_sum(1 - z, z * h) + (1 - z).cumprod(1) * h0[:, None])


def test_minlstm() -> None:
    model, x, h0 = mingru.MinLSTM(3, 4), torch.randn(2, LENGTH, 3), torch.randn(2, 4)
    f, i = torch.sigmoid(model.linear_f(x)), torch.sigmoid(model.linear_i(x))
    a = f / (f + i)
    close(model(x, h0), affine_sum(a, (1 - a) * model.linear_h(x)) + a.cumprod(1) * h0[:, None])


def test_qrnn_poolings() -> None:
    z, f, o, i = (torch.rand(2, LENGTH, 3) for _ in range(4))
    close(qrnn.f_pool(z, f), affine_sum(f, (1 - f) * z))
    close(qrnn.fo_pool(z, f, o), o * affine_sum(f, (1 - f) * z))
    close(qrnn.ifo_pool(z, f, o, i), o * affine_sum(f, i * z))


def test_rglru_resets_are_a_fresh_start() -> None:
    model, x = rglru.RGLRU(4), torch.randn(2, LENGTH, 4)
    position = torch.arange(LENGTH).expand(2, -1) % 5
    packed, _ = model(x, position)
    for part in (slice(0, 5), slice(5, LENGTH)):
        close(packed[:, part], model(x[:, part], position[:, part])[0])
    r, i = torch.sigmoid(model.a_gate(x)), torch.sigmoid(model.input_gate(x))
    a = torch.sigmoid(model.a_param) ** (8 * r)
    close(model(x)[0], affine_sum(a, torch.sqrt(1 - a**2) * i * x))


def test_s6_and_selective_scan() -> None:
    model, x = mamba.S6(4, 3), torch.randn(2, LENGTH, 4)
    dt, B, C = model.x_proj(x).split([1, 3, 3], dim=-1)
    dt, A = F.softplus(model.dt_proj(dt)), -torch.exp(model.A_log)
    h = affine_sum(torch.exp(dt[..., None] * A), outer(dt * x, B))
    expected = torch.einsum("btdn,btn->btd", h, C) + model.D * x
    close(model(x), expected)
    close(mamba.selective_scan(x, dt, A, B, C, model.D), expected)


def test_sru_first_version() -> None:
    model, x = sru.SRU(4, state_in_gates=False), torch.randn(2, LENGTH, 4)
    f, r = torch.sigmoid(model.W_f(x)), torch.sigmoid(model.W_r(x))
    close(model(x)[0], r * affine_sum(f, (1 - f) * model.W(x)) + (1 - r) * x)


def test_hgrn_without_rotation_is_two_real_recurrences() -> None:
    layer, x, bound = hgrn.HGRU(3), torch.randn(2, LENGTH, 3), torch.rand(3)
    layer.theta.data.zero_()
    f = bound + (1 - bound) * torch.sigmoid(layer.forget(x))
    h = [affine_sum(f, (1 - f) * F.silu(part(x))) for part in (layer.re, layer.im)]
    close(layer(x, bound), layer.out(layer.norm(F.silu(layer.gate(x)) * torch.cat(h, -1))))


def test_advantages_by_definition() -> None:
    """Eq. 16: A_t = sum_l (gamma lambda)^l delta_{t+l}, up to the end of the episode."""
    r, v = torch.randn(1, 6), torch.randn(1, 7)
    done = torch.tensor([[False, False, True, False, False, False]])
    advantage = gae.GAE(0.9, 0.8)(r, v, done)
    delta = r + 0.9 * v[:, 1:] * ~done - v[:, :-1]
    close(advantage[0, 0], delta[0, 0] + 0.72 * delta[0, 1] + 0.72**2 * delta[0, 2])
    close(advantage[0, 3], delta[0, 3] + 0.72 * delta[0, 4] + 0.72**2 * delta[0, 5])


def test_grid_sums_over_paths() -> None:
    model = plstm.GridLSTM(2)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.source.bias.data.fill_(1.0)
    # Decay 1/2 and angle 1/2: each edge weighs 1/4, and h_ij sums binomially many paths from each source.
    h = model(torch.zeros(1, 3, 4, 2))[0, ..., 0] / 0.5
    paths = [
        [torch.exp(torch.lgamma(torch.tensor([a + b + 1.0, a + 1.0, b + 1.0]))) for b in range(4)] for a in range(3)
    ]
    weight = torch.stack(
        [torch.stack([p[0] / p[1] / p[2] / 4 ** (a + b) for b, p in enumerate(row)]) for a, row in enumerate(paths)]
    )
    close(h[2, 3], weight.sum())
    close(h[1, 2], weight[:2, :3].sum())


def test_slstm_without_stabiliser() -> None:
    model, x = slstm.SLSTM(3, 4), torch.randn(2, LENGTH, 3)
    h = c = n = torch.zeros(2, 4)
    for t in range(LENGTH):
        z, i, f, o = (model.W(x[:, t]) + model.R(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
    close(model(x)[:, -1], h)


def test_linear_attention_is_masked_attention() -> None:
    model, x = linear_attention.LinearAttention(6, 2), torch.randn(2, LENGTH, 6)
    q, k = (F.elu(heads(p(x), 2)) + 1 for p in (model.query, model.key))
    scores = torch.einsum("bihd,bjhd->bhij", q, k).tril()
    y = torch.einsum("bhij,bjhd->bihd", scores / scores.sum(-1, keepdim=True), heads(model.value(x), 2))
    close(model(x), model.out(y.flatten(2)))


def test_just_read_twice_attends_to_the_prefix_too() -> None:
    model, x, prefix = jrt.JRTAttention(4, 5), torch.randn(2, LENGTH, 4), torch.randn(2, 6, 4)
    q, k = F.elu(model.q(x)) + 1, torch.cat([F.elu(model.k_encoder(prefix)) + 1, F.elu(model.k(x)) + 1], 1)
    scores = (q @ k.mT).tril(diagonal=6)
    values = torch.cat([model.v_encoder(prefix), model.v(x)], 1)
    close(model(x, prefix), model.out(scores / scores.sum(-1, keepdim=True) @ values))


def test_retention_is_its_parallel_form() -> None:
    """Eq. 5 of the paper: (Q K^T * D) V with D_nm = gamma^{n-m}."""
    model, x = retnet.MultiScaleRetention(8, 2), torch.randn(2, LENGTH, 8)
    angle = torch.arange(LENGTH)[:, None] * model.theta
    q, k = retnet.rotate(heads(model.q(x), 2), angle), retnet.rotate(heads(model.k(x), 2), angle) / 2
    steps = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    decay = (model.gamma[:, None, None] ** steps).tril()
    y = torch.einsum("bihd,bjhd,hij,bjhe->bihe", q, k, decay, heads(model.v(x), 2))
    y = model.norm(y.reshape(2 * LENGTH, 8)).view(2, LENGTH, 8)
    close(model(x), model.out(F.silu(model.g(x)) * y))


def test_lightning_attention_is_its_parallel_form() -> None:
    model, x = transnormer.NormAttention(6, 2), torch.randn(2, LENGTH, 6)
    q, k, v, u = model.qkvu(x).chunk(4, -1)
    steps = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    decay = (model.decay.view(2, 1, 1) ** steps).tril()
    o = torch.einsum("bihd,bjhd,hij,bjhe->bihe", heads(F.silu(q), 2), heads(F.silu(k), 2), decay, heads(v, 2)).flatten(
        2
    )
    close(model(x), model.out(transnormer.simple_rms_norm(o) * u))


def test_gated_linear_attention() -> None:
    model, x = gla.GLA(8, 2, 3), torch.randn(2, LENGTH, 8)
    q, k, v = heads(model.W_q(x), 2) / 2**0.5, heads(model.W_k(x), 2), heads(model.W_v(x), 2)
    alpha = heads(torch.sigmoid(model.W_alpha(x)) ** (1 / 16), 2)
    S = affine_sum(alpha.unsqueeze(-1).expand(*alpha.shape, 4), outer(k, v))
    o = model.norm(torch.einsum("bthk,bthkv->bthv", q, S)).flatten(2)
    close(model(x), model.W_o(F.silu(model.W_r(x)) * o))


def test_hgrn2() -> None:
    model, x = hgrn2.HGRN2(6, 3), torch.randn(2, LENGTH, 6)
    o, i = heads(torch.sigmoid(model.o(x)), 2), heads(model.i(x), 2)
    f = heads(0.2 + 0.8 * torch.sigmoid(model.f(x)), 2)
    S = affine_sum(f.unsqueeze(-1).expand(*f.shape, 3), outer(1 - f, i))
    close(model(x)[0], model.out(model.norm(torch.einsum("bthk,bthkv->bthv", o, S).flatten(2))))
    close(model(x)[1], S[:, -1])


def test_state_space_duality() -> None:
    """The state-space step of Mamba-2 is attention with the mask L_ij = exp(sum_{j<r<=i} dt_r A)."""
    model = mamba2.Mamba2(4, 3, 4)
    x, B, C = torch.randn(2, LENGTH, 2, 4), torch.randn(2, LENGTH, 3), torch.randn(2, LENGTH, 3)
    dt = torch.rand(2, LENGTH, 2)
    cache = {"ssm": torch.zeros(2, 2, 4, 3)}
    y = torch.stack([model.step(cache, x[:, t], B[:, t], C[:, t], dt[:, t]) for t in range(LENGTH)], 1)
    total = (dt * -model.A_log.exp()).cumsum(1)
    mask = torch.exp(total[:, :, None] - total[:, None]).permute(0, 3, 1, 2).tril()
    close(y, torch.einsum("bin,bjn,bhij,bjh,bjhp->bihp", C, B, mask, dt, x) + model.D[:, None] * x)


def test_slots_are_gated_averages() -> None:
    model, x = gsa.GSA(6, 2, 4), torch.randn(2, LENGTH, 6)
    q, k, v = (heads(F.silu(y), 2) for y in model.qkv(x).chunk(3, -1))
    alpha = heads(torch.sigmoid(model.W_alpha(x)) ** (1 / 8), 2).unsqueeze(-1).expand(-1, -1, -1, -1, 3)
    K, V = (affine_sum(alpha, (1 - alpha) * y.unsqueeze(-2)) for y in (k, v))
    weights = torch.softmax(torch.einsum("bthmd,bthd->bthm", K, q), -1)
    close(model(x), model.out(model.norm(F.silu(torch.einsum("bthm,bthmd->bthd", weights, V).flatten(2)))))


def test_bounded_memory_is_an_average_of_the_past() -> None:
    model, x = abc.ABC(5, 3), torch.randn(2, LENGTH, 5)
    share = torch.exp(model.control(x))[:, :, None].expand(-1, -1, LENGTH, -1)
    share = share * torch.ones(LENGTH, LENGTH).triu()[None, :, :, None]
    share = share / share.sum(1, keepdim=True)
    K, V = (torch.einsum("bstm,bsd->btmd", share, p(x)) for p in (model.key, model.value))
    weights = torch.softmax(torch.einsum("btmd,btd->btm", K, model.query(x) * model.scale), -1)
    close(model(x), torch.einsum("btm,btmd->btd", weights, V))


def test_mesa_layer_solves_ridge_regression() -> None:
    """o_T = W q_T with W = argmin sum_s w_s |W k_s - v_s|^2 + |W|^2 weighted by Lambda."""
    model, x = mesanet.MesaLayer(5, 3), torch.randn(2, LENGTH, 5)
    q, k = (F.normalize(F.silu(p(x)), dim=-1) for p in (model.q, model.k))
    gamma, beta = torch.sigmoid(model.gates(x)).unbind(-1)
    weight = torch.stack([beta[:, s] * gamma[:, s + 1 :].prod(1) for s in range(LENGTH)], 1)[..., None]
    gram = (weight * k).mT @ k + torch.diag(F.softplus(model.ridge) + 0.25)
    W = torch.linalg.solve(gram, (weight * k).mT @ model.v(x)).mT
    close(model(x)[:, -1], model.out((W @ q[:, -1, :, None])[..., 0]))


@pytest.mark.parametrize("negative", [False, True])
def test_delta_rule_is_a_product_of_householder_matrices(negative: bool) -> None:
    model, x = deltanet.DeltaNet(6, 2, negative), torch.randn(2, LENGTH, 6)
    q, k = (F.normalize(heads(F.silu(p(x)), 2), dim=-1) for p in (model.q, model.k))
    v, beta = heads(F.silu(model.v(x)), 2), (1 + negative) * torch.sigmoid(model.b(x))[..., None, None]
    S = matrix_sum(torch.eye(3) - beta * outer(k, k), beta * outer(v, k))
    close(model(x), model.out(torch.einsum("bthvk,bthk->bthv", S, q).flatten(2)))


def test_householder_delta_net() -> None:
    q, k, v, b = torch.randn(2, LENGTH, 4), torch.randn(2, LENGTH, 4), torch.randn(2, LENGTH, 3), torch.randn(2, LENGTH)
    unit, beta = F.normalize(k, dim=-1), 2 * torch.sigmoid(b)[..., None, None]
    S = matrix_sum(torch.eye(4) - beta * outer(unit, unit), beta * outer(v, unit))
    close(deltanet.HouseholderDeltaNet()(q, k, v, b), torch.einsum("btvk,btk->btv", S, q))


def test_gated_delta_rule() -> None:
    q, v = torch.randn(2, LENGTH, 2, 3), torch.randn(2, LENGTH, 2, 4)
    k, beta, g = F.normalize(torch.randn(2, LENGTH, 2, 3), dim=-1), torch.rand(2, LENGTH, 2), -torch.rand(2, LENGTH, 2)
    o, last = gated_deltanet.recurrent_gated_delta_rule(q, k, v, g, beta)
    b = beta[..., None, None]
    S = matrix_sum(g.exp()[..., None, None] * (torch.eye(3) - b * outer(k, k)), b * outer(v, k))
    close(o, torch.einsum("bthvk,bthk->bthv", S, q) / 3**0.5)
    close(last, S[:, -1].mT)


def test_kimi_delta_attention() -> None:
    model, x = kda.KDA(6, 2), torch.randn(2, LENGTH, 6)
    q, k, v, alpha, beta = (torch.stack(y, 1) for y in zip(*(model.token(t) for t in x.unbind(1)), strict=True))
    b = beta[..., None, None]
    transition = (torch.eye(3) - b * outer(k, k)) * alpha.unsqueeze(-2)
    S = matrix_sum(transition.mT, b * outer(v, k)).mT
    o = model.norm(torch.einsum("bthk,bthkv->bthv", q, S)).flatten(2)
    close(model(x), model.o_proj(torch.sigmoid(model.g_proj(x)) * o))


def test_comba() -> None:
    model, x = comba.Comba(6, 2), torch.randn(2, LENGTH, 6)
    model.feedback.data.normal_()
    q, k, v = (heads(y, 2) for y in F.silu(model.in_proj(x)).chunk(3, -1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    decay, strength = (y[..., None, None] for y in model.gates(x).chunk(2, -1))
    b = torch.sigmoid(strength)
    transition = torch.exp(-F.softplus(decay)) * torch.eye(3) - b * torch.sigmoid(model.feedback)[..., None] * outer(
        k, k
    )
    S = matrix_sum(transition, b * outer(v, k))
    close(model(x), model.out(torch.einsum("bthvk,bthk->bthv", S, q - model.d * k).flatten(2)))


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_delta_product(factors: int) -> None:
    model, x = deltaproduct.DeltaProduct(5, 4, factors), torch.randn(2, LENGTH, 5)
    # Each factor as a step of its own, read every `factors` steps.
    k = torch.stack([F.normalize(F.silu(p(x)), dim=-1) for p in model.keys], 2).flatten(1, 2)
    v = torch.stack([p(x) for p in model.values], 2).flatten(1, 2)
    b = torch.stack([2 * torch.sigmoid(p(x)) for p in model.betas], 2).flatten(1, 2)[..., None]
    S = matrix_sum(torch.eye(4) - b * outer(k, k), b * outer(v, k))[:, factors - 1 :: factors]
    close(model(x), model.out(torch.einsum("btvk,btk->btv", S, model.query(x))))


def test_goose() -> None:
    model, x = rwkv7.Goose(6, 2), torch.randn(2, LENGTH, 6)
    a = torch.sigmoid(model.a(x))
    kappa = F.normalize(heads(model.k(x) * model.removal, 2), dim=-1)
    k = heads(model.k(x) * (1 + (a - 1) * model.xi), 2)
    r, v, w, a = heads(model.r(x), 2), heads(model.v(x), 2), heads(model.w(x), 2), heads(a, 2)
    w = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(w))
    S = matrix_sum(torch.diag_embed(w) - outer(kappa, a * kappa), outer(v, k))
    y = model.norm(torch.einsum("bthvk,bthk->bthv", S, r).reshape(2 * LENGTH, 6)).view(2, LENGTH, 6)
    close(model(x), model.out(y + ((r * model.rho * k).sum(-1, keepdim=True) * v).flatten(2)))


def test_titans_follows_the_gradient() -> None:
    written, automatic = titans.LinearTitans(5, 3), titans.LinearTitans(5, 3, autograd=True)
    automatic.load_state_dict(written.state_dict())
    x, M = torch.randn(2, LENGTH, 5), torch.randn(2, 3, 3)
    close(written(x, M), automatic(x, M))
    q, k, v = F.normalize(written.q(x), dim=-1), F.normalize(written.k(x), dim=-1), written.v(x)
    theta, alpha = torch.sigmoid(written.rates(x))[..., None].unbind(2)
    theta, alpha = theta[..., None], alpha[..., None]
    S = matrix_sum((1 - alpha) * torch.eye(3) - 2 * theta * outer(k, k), 2 * theta * outer(v, k))
    close(written(x), torch.einsum("btvk,btk->btv", S, q))


def test_momentum_delta_in_one_augmented_state() -> None:
    """[S, M] is one state whose transition is a 2 x 2 block matrix, multiplied from the right."""
    model, x = momentum_delta.MomentumDelta(5, 3), torch.randn(2, LENGTH, 5)
    q, k, v = model.qkv(x).chunk(3, -1)
    k, eye = F.normalize(k, dim=-1), torch.eye(3)
    eta, theta, alpha = (y[..., None] for y in torch.sigmoid(model.rates(x))[..., None].unbind(2))
    pull = 2 * theta * outer(k, k)
    upper = torch.cat([eta * eye, eta * eye], -1)
    lower = torch.cat([-pull, (1 - alpha) * eye - pull], -1)
    drive = 2 * theta * outer(v, torch.cat([k, k], -1))
    joint = matrix_sum(torch.cat([upper, lower], -2), drive)
    y, memory = model(x)
    close(y, torch.einsum("btvk,btk->btv", joint[..., 3:], q))
    close(torch.cat(memory, -1), joint[:, -1])


def test_wkv_is_a_weighted_average() -> None:
    w, u, k, v = torch.rand(3), torch.randn(3), 3 * torch.randn(2, LENGTH, 3), torch.randn(2, LENGTH, 3)
    y = rwkv4.wkv(w, u, k, v)
    for t in range(LENGTH):
        exponents = torch.stack([u + k[:, t] if s == t else k[:, s] - (t - 1 - s) * w for s in range(t + 1)], 1)
        close(y[:, t], (torch.softmax(exponents, 1) * v[:, : t + 1]).sum(1))


def test_eagle_and_finch_read_the_old_state() -> None:
    x = torch.randn(2, LENGTH, 6)
    last = F.pad(x, (0, 0, 1, 0))[:, :-1]

    eagle = rwkv5.Eagle(6, 2)
    mixed = [last + mu * (x - last) for mu in eagle.mu]
    r, k, v = (heads(p(m), 2) for p, m in zip((eagle.r, eagle.k, eagle.v), mixed[:3], strict=True))
    w = torch.exp(-torch.exp(eagle.omega)).expand(2, LENGTH, 2, 3, 3)
    S = affine_sum(w, outer(k, v))
    old = F.pad(S, (0, 0) * 3 + (1, 0))[:, :-1]
    y = torch.einsum("bthk,bthkv->bthv", r, old + eagle.u * outer(k, v))
    y = eagle.norm(y.reshape(2 * LENGTH, 6)).view(2, LENGTH, 6)
    close(eagle(x), eagle.out(F.silu(eagle.g(mixed[3])) * y))

    finch = rwkv6.Finch(6, 2, 2)
    lerped = x + (last - x) * finch.mu_x
    mixed = [x + (last - x) * mix(lerped) for mix in finch.mix]
    r, k, v = (heads(p(m), 2) for p, m in zip(finch.projections[:3], mixed[:3], strict=True))
    w = heads(torch.exp(-torch.exp(finch.decay(mixed[4]))), 2)
    S = affine_sum(w.unsqueeze(-1).expand(*w.shape, 3), outer(k, v))
    old = F.pad(S, (0, 0) * 3 + (1, 0))[:, :-1]
    y = torch.einsum("bthk,bthkv->bthv", r, old + finch.u.unsqueeze(-1) * outer(k, v))
    y = finch.norm(y.reshape(2 * LENGTH, 6)).view(2, LENGTH, 6)
    close(finch(x), finch.out(F.silu(finch.projections[3](mixed[3])) * y))


def test_aaren_is_softmax_attention_over_the_past() -> None:
    model, x = aaren.Aaren(6, 2), torch.randn(2, LENGTH, 6)
    k, v = heads(model.key(x), 2), heads(model.value(x), 2)
    q = model.query.expand(2, LENGTH, 2, 3)
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    close(model(x), y.transpose(1, 2).flatten(2))


def test_mlstm_without_stabiliser() -> None:
    model, x = mlstm.MLSTM(6, 2), torch.randn(2, LENGTH, 6)
    cell = model.cell
    q, k, v = (heads(p(x), 2) for p in (cell.q, cell.k, cell.v))
    k = k / 3**0.5
    i, f = torch.exp(cell.i(x))[..., None], torch.sigmoid(cell.f(x))[..., None]
    C = affine_sum(f[..., None].expand(-1, -1, -1, 3, 3), i[..., None] * outer(v, k))
    n = affine_sum(f.expand(-1, -1, -1, 3), i * k)
    h = torch.einsum("bthvk,bthk->bthv", C, q) / (n * q).sum(-1, keepdim=True).abs().clamp(min=1)
    close(model(x)[0], torch.sigmoid(cell.o(x)) * h.flatten(2))
