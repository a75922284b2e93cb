"""Time-invariant case studies against independent closed forms: filters, impulse responses, discretised systems,
library cells.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import ar, convrnn, convs5, dss, ema, fsmn, kalman, lmu, lru, lssl, momentum, rnn, s4d, s5, synaptic
from models.monoids import PeakFollower, RunningLogSumExp, RunningMax, RunningProduct, RunningSum

close = torch.testing.assert_close


def lfilter(b: list[float], a: list[float], x: Tensor) -> Tensor:
    return torch.from_numpy(scipy.signal.lfilter(b, a, x.detach().numpy(), axis=-1))


def convolve(kernel: Tensor, u: Tensor) -> Tensor:
    """y_t = sum_j kernel_j u_{t-j} along the last axis, both (..., T)."""
    length = u.shape[-1]
    product = torch.fft.rfft(kernel, 2 * length) * torch.fft.rfft(u, 2 * length)
    return torch.fft.irfft(product, 2 * length)[..., :length]


def test_legendre_memory_is_the_simulated_delay_network() -> None:
    order, theta, length = 6, 20.0, 50
    model = lmu.VectorLMU(1, 3, 1, order, theta)
    model.encoder.weight.data.fill_(1.0)
    model.encoder.bias.data.zero_()
    u = torch.sin(torch.arange(length) / 8.0)
    _, memory = model(u.view(1, length, 1))

    a, b = (m.numpy() for m in lmu.legendre_matrices(order, theta))
    system = scipy.signal.lti(a, b, np.eye(order), np.zeros((order, 1)))
    # lsim holds u_k over [k, k+1]; the memory after the last step is the state at `length`.
    held = np.append(u.numpy(), 0.0)
    _, _, states = scipy.signal.lsim(system, held, np.arange(length + 1.0), interp=False)
    close(memory[0, 0], torch.from_numpy(states[-1]))


def test_legendre_memory_decodes_the_past() -> None:
    """Eq. 3 of the 2019 paper: u(t - theta') = sum_i P_i(theta'/theta) m_i, P_i the shifted Legendre polynomials."""
    order, theta, length = 12, 60.0, 400
    a, b = lmu.delay_network(order, theta)
    u = torch.sin(torch.arange(length) / 15.0)
    m = torch.zeros(order)
    for u_t in u:
        m = a @ m + b[:, 0] * u_t
    for delay in (15.0, 30.0, 45.0):
        shifted = scipy.special.eval_legendre(np.arange(order), 2 * delay / theta - 1)
        # u held over a step is u delayed by half a step on average.
        expected = np.sin((length - 0.5 - delay) / 15.0)
        assert abs(float(m @ torch.from_numpy(shifted)) - expected) < 0.01


def test_classifier_has_the_size_it_documents() -> None:
    assert sum(p.numel() for p in lmu.PixelClassifier().parameters()) == 166_092


def test_vector_memory_with_one_channel_is_the_scalar_one() -> None:
    x = torch.randn(2, 9, 3)
    scalar, vector = lmu.LMU(3, 5, 4, 6.0, f1=nn.Identity(), f2=F.relu), lmu.VectorLMU(3, 5, 1, 4, 6.0)
    vector.load_state_dict({**scalar.state_dict(), "B": scalar.B.squeeze(1)})
    close(scalar(x), vector(x)[0])


def test_hippo_discretisation_is_the_trapezoidal_rule() -> None:
    a, b = lssl.hippo_legs(5)
    a_bar, b_bar = lssl.bilinear(a, b, torch.tensor([0.1]))
    expected = scipy.signal.cont2discrete((a.numpy(), b[:, None].numpy(), np.eye(5), np.zeros((5, 1))), 0.1, "bilinear")
    close(a_bar[0], torch.from_numpy(expected[0]))
    close(b_bar[0], torch.from_numpy(expected[1][:, 0]))


@pytest.mark.parametrize("init", ["lin", "inv"])
def test_s4d_is_its_kernel(init: str) -> None:
    model, u = s4d.S4D(3, 8, init), torch.randn(2, 40, 3)
    dt, A = model.log_dt.exp()[:, None], torch.complex(-model.log_A_real.exp(), model.A_imag)
    weights = torch.view_as_complex(model.C) * (torch.exp(dt * A) - 1) / A
    kernel = 2 * torch.einsum("hn,hnl->hl", weights, torch.exp((dt * A)[..., None] * torch.arange(40))).real
    close(model(u), convolve(kernel, u.mT).mT + model.D * u)


def test_dss_is_its_kernel() -> None:
    model, u = dss.DSS(3, 4), torch.randn(2, 3, 40)
    lam, dt = torch.complex(-model.Lambda_re.exp(), model.Lambda_im), model.log_dt.exp()
    weights = torch.view_as_complex(model.W) * (torch.exp(dt * lam) - 1) / lam
    kernel = torch.einsum("hn,hnl->hl", weights, torch.exp((dt * lam)[..., None] * torch.arange(40))).real
    close(model(u), model.output_linear(F.gelu(convolve(kernel, u) + model.D[:, None] * u)))


def test_s5_starts_as_the_dense_system_it_diagonalises() -> None:
    """One of each conjugate pair and twice the real part: the state space of the dense normal matrix, exactly."""
    order, dt = 6, 0.05
    q = torch.sqrt(torch.arange(order) + 0.5)
    lower = torch.tril(torch.outer(q, q), -1)
    dense = lower.T - lower - 0.5 * torch.eye(order)
    lam, vectors = s5.hippo_normal(order)
    b, c = torch.randn(order), torch.randn(order)
    for t in (0, 1, 7):
        state = torch.linalg.matrix_exp(dense * dt * t) @ b
        modes = torch.exp(lam * dt * t) * (vectors.conj().T @ b.to(lam.dtype))
        close(2 * (c.to(lam.dtype) @ vectors @ modes).real, c @ state)


def test_s5_backwards_is_forwards_on_the_reversed_input() -> None:
    model, u = s5.S5(3, 4, bidirectional=True), torch.randn(2, 9, 3)
    one = s5.S5(3, 4)
    parts = []
    for direction in (0, 1):
        state = dict(model.state_dict())
        state["C"], state["D"] = state["C"][direction : direction + 1], torch.zeros(3)
        one.load_state_dict(state)
        parts.append(one(u) if direction == 0 else one(u.flip(1)).flip(1))
    close(model(u), parts[0] + parts[1] + model.D * u)


def test_lru_in_complex_and_in_real_numbers() -> None:
    plain, real = lru.LRU(3, 5), lru.RealLRU(3, 5)
    weights = plain.state_dict()
    real.load_state_dict({k if v.dim() == 1 else f"{k}.weight": v for k, v in weights.items()})
    u = torch.randn(2, 12, 3)
    close(plain(u), real(u.transpose(0, 1)).transpose(0, 1))


def test_averages_are_filters() -> None:
    x = torch.randn(2, 30, 3)
    average = ema.EMA(3)
    for channel, b in enumerate(torch.sigmoid(average.logit).tolist()):
        close(average(x)[..., channel], lfilter([1 - b], [1, -b], x[..., channel]))
    integrator = ema.LeakyIntegrator(3, 4)
    close(integrator(x.transpose(0, 1)).permute(1, 2, 0), lfilter([1], [1, -0.7], integrator.W(x).mT))
    constant = torch.full((1, 9, 3), 2.5)
    close(ema.Smoother(3)(constant), constant)


def test_spikes_follow_the_filtered_potential() -> None:
    neuron, x = ema.LeakyNeuron(2, 3), torch.randn(2, 30, 2)
    potential = lfilter([1], [1, -0.9], neuron.fc(x).mT).mT
    close(neuron(x), (potential > 0.5).double())
    close(neuron.mem, potential[:, -1])


def test_cascades_are_filters() -> None:
    model, x = synaptic.SynapticReadout(3, 2), torch.randn(2, 30, 3)
    alpha, beta = torch.sigmoid(torch.tensor([2.0, 1.5])).tolist()
    poles = np.polymul([1, -alpha], [1, -beta]).tolist()
    close(model(x), lfilter([1], poles, model.fc(x).mT).mT)


def test_heavy_ball_is_sgd_with_momentum() -> None:
    gradients, w0 = torch.randn(1, 8, 3), torch.randn(1, 3)
    w = w0.clone().requires_grad_()
    optimiser = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    for g in gradients.unbind(1):
        w.grad = g
        optimiser.step()
    close(momentum.HeavyBall()(gradients, w0)[:, -1], w.detach())


def test_autoregressions_are_filters() -> None:
    x = torch.randn(2, 30)
    model = ar.AR(3)
    close(model(x[..., None])[..., 0], lfilter([1], [1, *(-model.phi).tolist()], x))
    bank = ar.Resonator(4)
    for i, (r, w) in enumerate(zip(torch.sigmoid(bank.radius).tolist(), bank.frequency.tolist(), strict=True)):
        close(bank(x)[..., i], lfilter([1], [1, -2 * r * np.cos(w), r**2], x))


@pytest.mark.parametrize("scheme", ["IM", "IMEX"])
def test_oscillators_satisfy_their_difference_equations(scheme: str) -> None:
    model = ar.LinOSS(1, 1, scheme)
    model.C.weight.data.fill_(1.0)
    model.D.data.zero_()
    u = torch.randn(1, 20, 1)
    y, force = model(u)[0, :, 0], model.B(u)[0, :, 0]
    a, dt = model.A_diag, torch.sigmoid(model.steps)
    y = F.pad(y, (2, 0))
    acceleration = (y[2:] - 2 * y[1:-1] + y[:-2]) / dt**2
    close(acceleration, -a * (y[2:] if scheme == "IM" else y[1:-1]) + force)


def test_memory_blocks_are_convolutions() -> None:
    model, x = fsmn.FSMN(3, 4), torch.randn(2, 12, 3)
    expected = F.conv1d(F.pad(x.mT, (3, 0)), model.a.flip(0).mT[:, None], groups=3).mT
    close(model(x), expected)
    block = fsmn.CompactFSMN(3, 5, 4)
    p = block.project(F.relu(block.linear(x)))
    taps = block.taps.flip(0).mT[:, None]
    close(block(x), x + p + F.conv1d(F.pad(p.mT, (3, 0)), taps, groups=3).mT)


def test_circular_states_are_diagonal_in_the_fourier_domain() -> None:
    model, x = convrnn.DepthwiseConvRNN(2), torch.randn(1, 6, 2, 8)
    kernel = torch.zeros(2, 8)
    kernel[:, [1, 0, 7]] = model.kernel[:, 0].detach()
    multiplier, spectrum = torch.fft.fft(kernel), torch.fft.fft(x)
    last = sum(multiplier ** (5 - t) * spectrum[:, t] for t in range(6))
    close(model(x)[:, -1], torch.fft.ifft(last).real)


def test_pixels_of_convs5_do_not_mix_in_the_state() -> None:
    """With 1 x 1 kernels for B and C, each pixel is a diagonal system of its own, with its own kernel over time."""
    model = convs5.ConvS5(2, 4, kernel=1)
    frames = torch.randn(1, 15, 2, 2, 2)
    lam, dt = torch.complex(-model.log_re.exp(), model.im), model.log_dt.exp()
    B, C = (torch.complex(*w[..., 0, 0]) for w in (model.B, model.C))
    powers = torch.exp((lam * dt)[:, None] * torch.arange(15)) * ((torch.exp(lam * dt) - 1) / lam)[:, None]
    kernel = 2 * torch.einsum("on,nl,ni->oil", C, powers, B).real
    pixel = frames[0, :, :, 1, 0]
    expected = convolve(kernel, pixel.mT[None]).sum(1).mT + model.D[:, 0, 0] * pixel
    close(model(frames)[0, :, :, 1, 0], expected)


def test_kalman_filter_is_gaussian_conditioning() -> None:
    n, p, length = 3, 2, 5
    model = kalman.KalmanFilter(n, p)
    model.log_q.data.normal_()
    y = torch.randn(1, length, p)
    A, C, Q, R = model.A, model.C, torch.diag(model.log_q.exp()), torch.diag(model.log_r.exp())
    # x = L (x_0, w_1, ..., w_T) stacked, x_0 of unit covariance.
    power = [torch.linalg.matrix_power(A, k) for k in range(length + 1)]
    zero = torch.zeros(n, n)
    L = torch.cat(
        [torch.cat([power[t - s] if s <= t else zero for s in range(length + 1)], 1) for t in range(1, length + 1)]
    )
    states = L @ torch.block_diag(torch.eye(n), *[Q] * length) @ L.T
    H = torch.block_diag(*[C] * length)
    gain = states[-n:] @ H.T @ torch.linalg.inv(H @ states @ H.T + torch.block_diag(*[R] * length))
    close(model(y)[0, -1], gain @ y.flatten())


def test_filter_mean_with_constant_gain_is_a_linear_system() -> None:
    model, y, K = kalman.FilterMean(3, 2), torch.randn(2, 6, 2), 0.2 * torch.randn(3, 2)
    transition = (torch.eye(3) - K @ model.C) @ model.A
    last = sum(y[:, t] @ (torch.linalg.matrix_power(transition, 5 - t) @ K).T for t in range(6))
    close(model(y, K.expand(2, 6, 3, 2))[:, -1], last)


def test_running_reductions_are_cumulative_operators() -> None:
    x = torch.randn(2, 9, 3)
    close(RunningSum()(x), x.cumsum(1))
    close(RunningProduct()(x), x.cumprod(1))
    close(RunningMax()(x), x.cummax(1).values)
    close(RunningLogSumExp()(x), x.logcumsumexp(1))
    follower = PeakFollower(3)
    decay = torch.sigmoid(follower.logit)
    last = torch.stack([decay ** (8 - t) * x[:, t].abs() for t in range(9)]).amax(0)
    close(follower(x)[:, -1], last)


def test_classical_networks_are_those_of_the_library() -> None:
    x = torch.randn(2, 7, 3)
    elman, library = rnn.Elman(3, 4), nn.RNN(3, 4, batch_first=True)
    library.load_state_dict(
        {
            "weight_ih_l0": elman.W.weight,
            "weight_hh_l0": elman.U.weight,
            "bias_ih_l0": elman.W.bias,
            "bias_hh_l0": torch.zeros(4),
        }
    )
    close(elman(x), library(x)[0])

    gru, gru_library = rnn.GRU(3, 4), nn.GRU(3, 4)
    gru_library.load_state_dict(
        {
            "weight_ih_l0": gru.ih.weight,
            "weight_hh_l0": gru.hh.weight,
            "bias_ih_l0": gru.ih.bias,
            "bias_hh_l0": gru.hh.bias,
        }
    )
    close(gru(x.transpose(0, 1)), gru_library(x.transpose(0, 1))[0])

    lstm, lstm_library = rnn.LSTM(3, 4), nn.LSTM(3, 4, batch_first=True)
    lstm_library.load_state_dict({f"{name}_l0": value for name, value in lstm.cell.state_dict().items()})
    close(lstm(x)[0], lstm_library(x)[0])
