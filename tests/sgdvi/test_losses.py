"""The losses of a module as a function of its parameters."""

from __future__ import annotations

import torch
from torch import nn

from particlevi import sgdvi
from particlevi.potentials.layout import Layout
from particlevi.sgdvi._losses import module_losses

F64 = torch.float64


def losses_of_attention():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True).double()
    layout = Layout({name: tuple(each.shape) for name, each in net.named_parameters()})
    x = torch.randn(3, 5, 4, dtype=F64)
    losses = module_losses(net, layout, nn.functional.mse_loss)
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()
    return net, x, lambda each: losses(each, x, 0 * x), theta


def test_they_are_those_of_evaluation_mode_and_the_module_keeps_its_own():
    net, x, losses, theta = losses_of_attention()
    found = losses(theta)
    assert net.training
    torch.testing.assert_close(found, net.eval()(x).square().mean((1, 2)).detach())


def test_the_weights_of_a_loss_go_to_float64_with_the_module():
    net, x, y = nn.Linear(2, 3), torch.randn(30, 2), torch.arange(30) % 3
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), reduction="none")
    sgdvi.plan(net, (x, y), loss, weight_decay=0.1, batch_size=4)
    sgdvi.local_learning_coefficient(
        net, (x, y), loss, num_chains=2, num_draws=20, thin=1, step_size=1e-3
    )
    assert loss.weight.dtype == torch.float32


def test_attention_has_gradients_for_many_parameters_at_once():
    _, _, losses, theta = losses_of_attention()
    points = theta.repeat(2, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(torch.vmap(losses)(points).sum(), points)
    leaf = theta.clone().requires_grad_()
    (alone,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    torch.testing.assert_close(slopes, alone.expand(2, -1))
