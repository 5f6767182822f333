"""Adapters as the sampled part of a frozen language model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import particlevi as pvi
from particlevi.typing import Batch
from tests.recovery import chains, check_the_prior_comes_back, simulate

TOKENS, LENGTH = 17, 6


class Logits(nn.Module):
    """A language model as a function from tokens to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(input_ids=tokens).logits


def adapted_net(rank):
    """A small language model of which only the adapters have gradients."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=8, n_embd=8, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
        use_cache=False,
    )  # fmt: skip
    adapters = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=["c_attn"], fan_in_fan_out=True
    )
    return Logits(peft.get_peft_model(transformers.GPT2LMHeadModel(config), adapters))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_a_frozen_language_model_are_sampled():
    net = adapted_net(2)
    likelihood = pvi.Categorical(ignore_index=-100)
    model = pvi.from_module(net, likelihood, pvi.Normal(0.5), num_data=12)
    assert all("lora_" in name for name in model.layout.shapes)
    assert model.num_params == 2 * 8 + 24 * 2

    tokens = torch.randint(TOKENS, (12, LENGTH), generator=torch.Generator().manual_seed(1))
    following = torch.cat([tokens[:, 1:], torch.full((12, 1), -100)], 1)
    current = model.init(1, method="current")
    found = model.log_likelihood(current, Batch((tokens, following)))
    with torch.no_grad():
        logits = net(tokens)
    losses = F.cross_entropy(logits.mT, following, ignore_index=-100, reduction="none").sum(1)
    torch.testing.assert_close(found[0], -losses, rtol=1e-4, atol=1e-4)

    draws = pvi.sample(
        pvi.sghmc(model),
        (tokens, following),
        step_size=0.05,
        num_particles=2,
        num_warmup=50,
        num_draws=20,
        progress=False,
    )
    assert bool(torch.isfinite(draws.particles).all())
    assert float(draws.particles.std((0, 1)).min()) > 0
    assert draws.outputs(tokens[:3]).shape == (2, 20, 3, LENGTH, TOKENS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_prior_of_adapters_comes_back():
    """Tokens are drawn from the adapted model, a data set per chain."""
    net = adapted_net(1).double()
    for weight in net.parameters():
        if not weight.requires_grad:
            weight.data *= 4  # so that the adapters matter
    likelihood = pvi.Categorical()
    potential = pvi.from_module(net, likelihood, pvi.Normal(0.7), num_data=6)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(TOKENS, (100, 6, 5), generator=generator)
    truth, following = simulate(potential, likelihood, tokens)
    states = chains(potential, (tokens, following), truth, 0.03, 80)
    assert (states[-1] - truth).square().mean() > 0.5 * 0.7**2
    check_the_prior_comes_back(states[-1], potential)
