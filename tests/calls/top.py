"""Right calls of what stands at the top: samplers, models, draws."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import torch

import particlevi as pvi
from tests.calls import things
from tests.calls.call import Call
from tests.calls.things import CHAINS, DATA, DRAWS, LINEAR, MODEL, NORMAL, SHORT, X, run

TARGET = {"target": NORMAL}
LEARNER = {"target": MODEL}


def density(theta):
    return -0.5 * theta.square().sum()


def surprise(theta, batch):
    return -(batch - theta).square().sum(-1)


def plate():
    pyro.sample("theta", dist.Normal(0.0, 1.0))


SAMPLE = {"sampler": pvi.sghmc(MODEL), "data": DATA} | SHORT
TENSOR = things.normal(3, 4, 3)
FITTED = {
    "parameters": [dict(copy.deepcopy(LINEAR).state_dict()) for _ in range(2)],
}

TOP = {
    # samplers: what is accepted is run
    "baoab": Call(pvi.baoab, TARGET, run),
    "hmc": Call(pvi.hmc, TARGET, run),
    "leimkuhler_matthews": Call(pvi.leimkuhler_matthews, TARGET, run),
    "mams": Call(pvi.mams, TARGET | {"trajectory_length": 1e-2}, run),
    "mclmc": Call(pvi.mclmc, TARGET, run),
    "message_passing_svgd": Call(pvi.message_passing_svgd, TARGET, run),
    "nvgd": Call(pvi.nvgd, TARGET | {"num_inner_steps": 1}, run),
    "obabo": Call(pvi.obabo, TARGET, run),
    "optimizer": Call(pvi.optimizer, LEARNER | {"make": torch.optim.Adam}, run),
    "parallel_tempering": Call(pvi.parallel_tempering, TARGET | {"temperatures": (1.0, 2.0)}, run),
    "psghmc": Call(pvi.psghmc, TARGET, run),
    "psgld": Call(pvi.psgld, TARGET, run),
    "randomized_hmc": Call(pvi.randomized_hmc, TARGET | {"trajectory_length": 1e-2}, run),
    "repulsive_langevin": Call(pvi.repulsive_langevin, TARGET, run),
    "sgd": Call(pvi.sgd, TARGET, run),
    "sghmc": Call(pvi.sghmc, LEARNER, run),
    "sgld": Call(pvi.sgld, LEARNER, run),
    "sgnht": Call(pvi.sgnht, TARGET, run),
    "svgd": Call(pvi.svgd, TARGET, run),
    # likelihoods and priors: what is accepted is sampled
    "Bernoulli": Call(pvi.Bernoulli),
    "Categorical": Call(pvi.Categorical, {}, things.with_likelihood(3)),
    "Gaussian": Call(pvi.Gaussian, {"scale": 0.5}, things.with_likelihood(1)),
    "MeanScaleGaussian": Call(pvi.MeanScaleGaussian),
    "NegativeBinomial": Call(pvi.NegativeBinomial, {}, things.with_likelihood(1)),
    "Ordinal": Call(pvi.Ordinal, {"num_classes": 3}),
    "Poisson": Call(pvi.Poisson),
    "StudentT": Call(pvi.StudentT, {"df": 3.0}, things.with_likelihood(1)),
    "Correlated": Call(pvi.Correlated, {"covariance": torch.eye(2)}),
    "Flat": Call(pvi.Flat),
    "Hierarchical": Call(pvi.Hierarchical, {}, things.with_prior),
    "Horseshoe": Call(pvi.Horseshoe, {}, things.with_prior),
    "Laplace": Call(pvi.Laplace, {}, things.with_prior),
    "Normal": Call(pvi.Normal, {}, things.with_prior),
    # models
    "from_log_density": Call(
        pvi.from_log_density, {"log_density": density, "num_params": 2}, lambda p: run(pvi.sgld(p))
    ),
    "from_log_likelihood": Call(
        pvi.from_log_likelihood,
        {"log_prior": density, "log_likelihood": surprise, "num_params": 2, "num_data": 6},
        lambda p: pvi.sample(pvi.sgld(p), X, **SHORT),
    ),
    "from_module": Call(
        pvi.from_module,
        {
            "module": LINEAR,
            "likelihood": pvi.Gaussian(1.0),
            "prior": pvi.Normal(1.0),
            "num_data": 6,
        },
        lambda p: pvi.sample(pvi.sgld(p), DATA, **SHORT),
    ),
    "from_pyro": Call(pvi.from_pyro, {"model": plate}, lambda p: run(pvi.sgld(p))),
    # estimators
    "control_variate": Call(
        pvi.control_variate,
        {"potential": MODEL, "data": DATA, "center": torch.ones(3)},
        things.with_estimator,
    ),
    "msgd": Call(
        pvi.msgd,
        {"potential": MODEL, "noise": "minibatch_cov", "batch_size": 2},
        things.with_estimator,
    ),
    "structured": Call(
        pvi.structured, {"potential": MODEL, "groups": "tensor"}, things.with_estimator
    ),
    "structured_dropout": Call(
        pvi.structured_dropout,
        {"potential": MODEL, "groups": "tensor", "keep": 0.5},
        things.with_estimator,
    ),
    # runs
    "sample": Call(pvi.sample, SAMPLE, fixed=("compile",)),
    "sample without numbers": Call(
        pvi.sample,
        {
            "sampler": pvi.sgld(NORMAL),
            "num_particles": 2,
            "num_draws": 2,
            "step_size": 1e-3,
            "num_warmup": 1,
            "progress": False,
        },
        fixed=("compile",),
    ),
    "resume": Call(
        pvi.resume,
        {
            "checkpoint": things.saved("run", "checkpoint"),
            "sampler": pvi.sgld(MODEL),
            "data": DATA,
            "progress": False,
        },
    ),
    "load": Call(pvi.load, {"path": things.saved("draws", "file")}),
    "outputs_at": Call(
        pvi.outputs_at,
        {"inputs": X},
        lambda keep: things.with_storage(pvi.storage.InMemory(keep=keep)),
    ),
    "suggest_step_size": Call(pvi.suggest_step_size, LEARNER | {"data": DATA, "verbose": False}),
    "check_collapse": Call(
        pvi.check_collapse, {"draws": things.PARTICLES, "data": DATA, "num_steps": 5}
    ),
    "compare": Call(
        pvi.compare, {"draws": {"a": CHAINS, "b": DRAWS}, "data": DATA, "train_data": DATA}
    ),
    # draws
    "Draws": Call(pvi.Draws, {"particles": TENSOR, "potential": MODEL}, lambda d: d.ess()),
    "Draws.from_tensor": Call(
        pvi.Draws.from_tensor, {"particles": TENSOR, "potential": MODEL}, lambda d: d.predict(X)
    ),
    "Draws.from_state_dicts": Call(
        pvi.Draws.from_state_dicts, {"potential": MODEL, "state_dicts": FITTED["parameters"]}
    ),
    "Draws.by_chain": Call(CHAINS.by_chain),
    "Draws.check_invariance": Call(CHAINS.check_invariance, {"data": DATA, "num_steps": 2}),
    "Draws.concat": Call(pvi.Draws.concat, {"parts": [CHAINS, CHAINS]}),
    "Draws.flat": Call(CHAINS.flat),
    "Draws.outputs": Call(CHAINS.outputs, {"inputs": X}),
    "Draws.parameters": Call(CHAINS.parameters),
    "Draws.save": Call(CHAINS.save, {"path": "somewhere"}),
    "Draws.select": Call(CHAINS.select, {"chains": [0, 1]}),
    "Draws.temperatures": Call(CHAINS.temperatures, {"data": DATA}),
    "Draws.thin": Call(CHAINS.thin, {"every": 2}),
    "Draws.diagnose": Call(CHAINS.diagnose, {"data": DATA, "verbose": False}),
    "Draws.to_module": Call(CHAINS.to_module, {"num": 3}, lambda module: module(X)),
}
