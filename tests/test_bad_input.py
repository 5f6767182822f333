"""Each kind of bad input gets its own error: what came, what was expected, what to do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi
from particlevi.typing import Batch

N = 12
NAN, INF = math.nan, math.inf
NORMAL = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(), 2)


def data(rows=N, columns=3):
    return torch.zeros(rows, columns), torch.zeros(rows, 1)


def regression(likelihood=None, outputs=1, **options):
    likelihood = likelihood or pvi.Gaussian(0.5)
    return pvi.from_module(nn.Linear(3, outputs), likelihood, pvi.Normal(1.0), N, **options)


def mean(num_data=N, **options):
    return pvi.from_log_likelihood(
        lambda t: -t.square().sum(), lambda t, x: -(x - t).square(), 1, num_data, **options
    )


def run(potential=NORMAL, given=None, sampler=pvi.sgld, **options):
    defaults = {"num_particles": 2, "num_draws": 2, "step_size": 1e-3, "progress": False}
    return pvi.sample(sampler(potential), given, **(defaults | options))


kept = pvi.storage.InMemory


def changed(column, value):
    """Regression data with one value changed."""
    x, y = data()
    (x, y)[column][5, 0] = value
    return x, y


class Stream:
    """Batches that can be read only once, however often they are asked for."""

    def __init__(self, batches):
        self.rest = list(batches)

    def __iter__(self):
        while self.rest:
            yield self.rest.pop()


CASES = {
    # the step size and other scalars
    "step size negative": (lambda: run(step_size=-0.1), ValueError, "step_size .* got -0.1"),
    "step size zero": (lambda: run(step_size=0.0), ValueError, "step_size .*above 0, got 0.0"),
    "step size NaN": (lambda: run(step_size=NAN), ValueError, "step_size .* got nan"),
    "step size infinite": (lambda: run(step_size=INF), ValueError, "step_size .* got inf"),
    "step size huge": (lambda: run(step_size=10**400), ValueError, "step_size .*finite"),
    "step size boolean": (lambda: run(step_size=True), ValueError, "step_size .* got True"),
    "step size text": (lambda: run(step_size="1e-3"), ValueError, "step_size .* got '1e-3'"),
    "step size missing, and no rule for one": (
        lambda: pvi.sample(pvi.optimizer(NORMAL, torch.optim.SGD), num_particles=2),
        ValueError,
        "no rule can be right for all: give step_size",
    ),
    "schedule gives NaN": (
        lambda: run(step_size=lambda k: NAN if k == 1 else 0.1),
        ValueError,
        "schedule of step_size at step 1 .* got nan",
    ),
    "schedule gives a tensor": (
        lambda: run(step_size=lambda k: torch.ones(2)),
        ValueError,
        "schedule of step_size at step 0",
    ),
    "schedule gives nothing": (lambda: run(step_size=lambda k: None), ValueError, "got None"),
    "schedule negative": (
        lambda: run(sampler=lambda p: pvi.sgld(p, temperature=lambda k: -1.0)),
        ValueError,
        "schedule of temperature at step 0 .* got -1.0",
    ),
    "temperature negative": (
        lambda: pvi.sgld(NORMAL, temperature=-1.0),
        ValueError,
        "temperature .* got -1.0",
    ),
    "friction zero": (lambda: pvi.sghmc(NORMAL, friction=0), ValueError, "friction .* got 0"),
    "momentum one": (lambda: pvi.sgd(NORMAL, momentum=1.0), ValueError, "momentum .* got 1.0"),
    "gradient noise negative": (
        lambda: pvi.sghmc(NORMAL, gradient_noise=torch.tensor([1.0, -1.0])),
        ValueError,
        "variance",
    ),
    "optimizer unknown": (
        lambda: pvi.svgd(NORMAL, optimizer="sgd"),
        ValueError,
        "optimizer .*'adam', got 'sgd'",
    ),
    "bandwidth zero": (lambda: pvi.kernels.rbf(0.0), ValueError, "bandwidth .* got 0.0"),
    "decay": (lambda: pvi.schedules.polynomial(0.1, power=-1), ValueError, "power .* got -1"),
    "cosine": (lambda: pvi.schedules.cosine(0.1, num_steps=0), ValueError, "num_steps .* got 0"),
    "cycle": (lambda: pvi.schedules.cyclical(0.1, period=2.5), ValueError, "period .* got 2.5"),
    "cycle without sampling": (
        lambda: pvi.schedules.cyclical(0.1, period=4, exploration=0.9),
        ValueError,
        "no step of a period of 4",
    ),
    # the counts of the loop
    "draws zero": (lambda: run(num_draws=0), ValueError, "num_draws .* got 0"),
    "draws fractional": (lambda: run(num_draws=2.0), ValueError, "num_draws .* got 2.0"),
    "warm-up negative": (lambda: run(num_warmup=-1), ValueError, "num_warmup .* got -1"),
    "thin zero": (lambda: run(thin=0), ValueError, "thin .* got 0"),
    "particles none": (lambda: run(num_particles=None), ValueError, "num_particles"),
    "particles zero": (lambda: run(num_particles=0), ValueError, "num_particles .* got 0"),
    "particles boolean": (lambda: run(num_particles=True), ValueError, "num_particles"),
    "seed fractional": (lambda: run(seed=0.5), TypeError, "seed .* got 0.5"),
    "seed negative": (lambda: run(seed=-1), ValueError, "seed .* got -1"),
    "seed huge": (lambda: run(seed=2**64), ValueError, "seed .* got 18446744073709551616"),
    "storage dtype": (lambda: kept(dtype="half"), TypeError, "dtype .* got 'half'"),
    "storage integer": (lambda: kept(dtype=torch.int32), TypeError, "dtype"),
    "no sampler": (
        lambda: pvi.sample(torch.nn.Linear(1, 1), step_size=1),
        TypeError,
        "takes a sampler.*got Linear",
    ),
    "no potential": (lambda: pvi.sgld(nn.Linear(1, 1)), TypeError, "takes a potential.*got Linear"),
    "resume no sampler": (lambda: pvi.resume("x", nn.Linear(1, 1)), TypeError, "takes a sampler"),
    # starting points
    "initial shape": (
        lambda: run(initial=torch.zeros(2), num_particles=None),
        ValueError,
        r"initial .*unsqueeze",
    ),
    "initial width": (
        lambda: run(initial=torch.zeros(2, 3)),
        ValueError,
        r"\[P, 2\].*got \[2, 3\]",
    ),
    "initial NaN": (
        lambda: run(initial=torch.full((2, 2), NAN)),
        ValueError,
        "initial must be finite, got 4",
    ),
    "initial integers": (
        lambda: run(initial=torch.zeros(2, 2, dtype=torch.long)),
        ValueError,
        r"initial\.float\(\)",
    ),
    "initial and another number": (
        lambda: run(initial=torch.zeros(3, 2)),
        ValueError,
        "3 particles but num_particles is 2",
    ),
    "initial array": (lambda: run(initial=np.zeros((2, 2))), TypeError, "initial .* got ndarray"),
    "initial unknown": (
        lambda: run(initial="module"),
        ValueError,
        "method .*'normal', got 'module'",
    ),
    "not finite at the start": (
        lambda: run(
            pvi.from_log_density(lambda t: t.sum().log(), 1),
            initial=torch.tensor([[1.0], [-1.0]]),
        ),
        ValueError,
        r"not finite at the start for particles \[1\]",
    ),
    # data
    "data missing": (lambda: run(mean()), ValueError, "needs data, got none"),
    "data superfluous": (lambda: run(given=torch.zeros(3)), ValueError, "without data, but data"),
    "batch size superfluous": (lambda: run(batch_size=3), ValueError, "but a batch_size was given"),
    "data NaN": (
        lambda: run(regression(), changed(0, NAN)),
        ValueError,
        r"data\[0\] .* got 1 NaN.*impute",
    ),
    "target infinite": (
        lambda: run(regression(), changed(1, INF)),
        ValueError,
        r"data\[1\] .* got 1 NaN or inf",
    ),
    "lengths differ": (
        lambda: run(regression(), (data()[0], data(8)[1])),
        ValueError,
        r"\[12, 8\]",
    ),
    "length is not num_data": (
        lambda: run(regression(), data(8)),
        ValueError,
        "num_data=12, got 8 data",
    ),
    "batch above N": (lambda: run(mean(), torch.zeros(N), batch_size=13), ValueError, "12, got 13"),
    "batch zero": (lambda: run(mean(), torch.zeros(N), batch_size=0), ValueError, "batch_size"),
    "batching unknown": (
        lambda: run(mean(), torch.zeros(N), batch_size=3, batching="random"),
        ValueError,
        "'random'",
    ),
    "data of numbers": (lambda: run(mean(), [1.0, 2.0]), TypeError, "got float"),
    "data with a list": (lambda: run(regression(), (data()[0], [0.0] * N)), TypeError, "got float"),
    "data of text": (
        lambda: run(mean(), np.array(["a"] * N)),
        TypeError,
        "real numbers, got a <U1 array",
    ),
    "data of objects": (lambda: run(mean(), np.array([None] * N)), TypeError, "got a object array"),
    "data complex": (lambda: run(mean(), torch.zeros(N) * 1j), TypeError, "real numbers"),
    "data sparse": (lambda: run(mean(), torch.zeros(N, 2).to_sparse()), TypeError, "dense"),
    "data scalar": (lambda: run(mean(), torch.tensor(1.0)), ValueError, "first dimension"),
    "data empty": (lambda: run(mean(), torch.zeros(0)), ValueError, "at least one datum"),
    "data no tuple": (lambda: run(regression(), data()[0]), ValueError, "tuple .*got Tensor"),
    "data a dict": (
        lambda: run(regression(), dict(zip("xy", data(), strict=True))),
        ValueError,
        "got dict",
    ),
    "data a dataset": (
        lambda: run(regression(), TensorDataset(*data())),
        TypeError,
        "DataLoader, got TensorDataset",
    ),
    "num_data missing": (
        lambda: pvi.from_module(nn.Linear(3, 1), pvi.Gaussian(1.0), pvi.Normal()),
        TypeError,
        "num_data",
    ),
    "num_data zero": (lambda: mean(0), ValueError, "num_data .* got 0"),
    "num_data a tensor": (
        lambda: mean(torch.zeros(3, 2)),
        ValueError,
        r"num_data .* got a Tensor \[3, 2\]",
    ),
    "num_data None": (lambda: mean(None), ValueError, "num_data .* got None"),
    "num_data below a batch": (
        lambda: mean(3)(torch.zeros(1, 1), Batch(torch.zeros(4))),
        ValueError,
        "num_data=3 data, got 4",
    ),
    "loader of another set": (
        lambda: run(regression(), DataLoader(TensorDataset(*data(8)), 4)),
        ValueError,
        "got 8 data",
    ),
    "loader and batch size": (
        lambda: run(regression(), DataLoader(TensorDataset(*data()), 4), batch_size=4),
        ValueError,
        "the loader's own",
    ),
    "one-shot iterator": (
        lambda: run(regression(), iter([data(4)])),
        ValueError,
        "only once.*DataLoader",
    ),
    "generator": (lambda: run(regression(), (b for b in [data(4)])), ValueError, "only once"),
    "ends for good": (
        lambda: run(regression(), Stream([data(4)] * 3), num_draws=9),
        ValueError,
        "can be read only once",
    ),
    "empty list": (lambda: run(regression(), []), ValueError, "empty"),
    "empty loader": (
        lambda: run(
            mean(), DataLoader(torch.zeros(N), batch_size=50, shuffle=True, drop_last=True)
        ),
        ValueError,
        "empty",
    ),
    "NaN in a batch": (lambda: run(regression(), [changed(0, NAN)]), ValueError, r"a batch\[0\]"),
    # models
    "wrong width": (
        lambda: run(regression(), data(columns=4)),
        ValueError,
        r"Linear failed on particles .* float32 \[12, 4\].*mat1",
    ),
    "integer inputs": (
        lambda: run(regression(), (data()[0].long(), data()[1])),
        ValueError,
        "failed.*int64",
    ),
    "no module": (
        lambda: pvi.from_module(1, pvi.Bernoulli(), pvi.Normal(), N),
        TypeError,
        "module",
    ),
    "likelihood class": (
        lambda: regression(pvi.Gaussian),
        TypeError,
        "likelihood .* got the class Gaussian",
    ),
    "likelihood and prior swapped": (
        lambda: pvi.from_module(nn.Linear(3, 1), pvi.Normal(), pvi.Gaussian(1.0), N),
        TypeError,
        "likelihood .* got Normal",
    ),
    "prior a number": (
        lambda: pvi.from_module(nn.Linear(3, 1), pvi.Bernoulli(), 1.0, N),
        TypeError,
        "prior .* 1.0",
    ),
    "prior scale": (lambda: pvi.Normal(0.0), ValueError, "scale .* got 0.0"),
    "prior scale of a pattern": (lambda: pvi.Laplace({"*": -1}), ValueError, "scale .* got -1"),
    "prior pattern missing": (
        lambda: pvi.from_module(nn.Linear(3, 1), pvi.Bernoulli(), pvi.Normal({"w*": 1.0}), N),
        ValueError,
        "matches the parameter 'bias'.*catch-all",
    ),
    "prior pattern idle": (
        lambda: pvi.from_module(
            nn.Linear(3, 1), pvi.Bernoulli(), pvi.Normal({"*": 1.0, "w*": 2.0}), N
        ),
        ValueError,
        r"\['w\*'\] match no parameter",
    ),
    "likelihood scale": (lambda: pvi.Gaussian(NAN), ValueError, "scale .* got nan"),
    "likelihood scale word": (lambda: pvi.Gaussian("learn"), ValueError, "'learn'"),
    "likelihood scales none": (lambda: pvi.Gaussian(()), ValueError, "scale .* got None"),
    "df": (lambda: pvi.StudentT(df=0), ValueError, "df .* got 0"),
    "nothing to sample": (
        lambda: pvi.from_module(nn.ReLU(), pvi.Bernoulli(), pvi.Normal(), N),
        ValueError,
        "nothing to",
    ),
    "lazy module": (
        lambda: pvi.from_module(nn.LazyLinear(1), pvi.Bernoulli(), pvi.Normal(), N),
        ValueError,
        "run the module on data once",
    ),
    "mixed dtypes": (
        lambda: pvi.from_module(
            nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()),
            pvi.Bernoulli(),
            pvi.Normal(),
            N,
        ),
        ValueError,
        "one dtype",
    ),
    "chunk size": (lambda: regression(chunk_size=0), ValueError, "chunk_size .* got 0"),
    "dropout unknown": (lambda: regression(dropout="on"), ValueError, "dropout .* got 'on'"),
    "several outputs": (
        lambda: run(pvi.from_module(nn.LSTM(3, 1), pvi.Gaussian(1.0), pvi.Normal(), N), data()),
        (TypeError, ValueError),
        "LSTM",
    ),
    "no gradient": (
        lambda: run(pvi.from_log_density(lambda t: t.detach().sum(), 2)),
        ValueError,
        "no gradient",
    ),
    "density of a vector": (
        lambda: run(pvi.from_log_density(lambda t: -(t**2), 2)),
        ValueError,
        r"a scalar, got \[2, 2\]",
    ),
    "density of a number": (
        lambda: run(pvi.from_log_density(lambda t: 1.0, 2)),
        ValueError,
        "log_density failed",
    ),
    "density vectorized wrongly": (
        lambda: run(pvi.from_log_density(lambda t: t.sum(), 2, vectorized=True)),
        ValueError,
        r"must return \[P\], got \[\]",
    ),
    "density that raises": (
        lambda: run(pvi.from_log_density(lambda t: t.sum() / t.nothing, 2)),
        ValueError,
        "log_density failed on particles .*AttributeError.*nothing",
    ),
    "no function": (lambda: pvi.from_log_density(3, 2), TypeError, "log_density .* got int"),
    "num_params": (lambda: pvi.from_log_density(torch.sum, 0), ValueError, "num_params .* got 0"),
    "likelihood summed": (
        lambda: run(
            pvi.from_log_likelihood(lambda t: -t.sum(), lambda t, x: (x - t).sum(), 1, N),
            torch.zeros(N),
        ),
        ValueError,
        r"\[2, 12\] for 2 particles and 12 data, got \[2\].*do not sum",
    ),
    "likelihood kept a dimension": (
        lambda: run(
            pvi.from_log_likelihood(lambda t: -t.sum(), lambda t, x: (x - t).sum(0, True), 1, N),
            torch.zeros(N),
        ),
        ValueError,
        r"got \[2, 1\]",
    ),
    "module pools over data": (
        lambda: run(
            pvi.from_module(
                nn.Sequential(nn.Linear(3, 1), nn.Flatten(0), nn.Unflatten(0, (2, 6))),
                pvi.Gaussian(1.0),
                pvi.Normal(),
                N,
            ),
            (data()[0], torch.zeros(N, 6)),
        ),
        ValueError,
        r"one output per datum: it gave \[2, 6\] for 12 inputs",
    ),
    # targets
    "targets too wide": (
        lambda: run(regression(), (data()[0], torch.zeros(N, 2))),
        ValueError,
        r"target has shape \[2\].*output for one datum has shape \[1\]",
    ),
    "Bernoulli target": (
        lambda: run(regression(pvi.Bernoulli()), changed(1, 2.0)),
        ValueError,
        "Bernoulli .* 2.0",
    ),
    "Bernoulli fraction": (
        lambda: run(regression(pvi.Bernoulli()), changed(1, 0.5)),
        ValueError,
        "fractions",
    ),
    "Bernoulli minus one": (
        lambda: run(regression(pvi.Bernoulli()), changed(1, -1.0)),
        ValueError,
        "0 ... 1, got .*-1.0",
    ),
    "Poisson target": (
        lambda: run(regression(pvi.Poisson()), changed(1, -1.0)),
        ValueError,
        "Poisson .* -1.0",
    ),
    "class too high": (
        lambda: run(
            regression(pvi.Categorical(), 2), (data()[0], torch.full((N,), 2)), batch_size=2
        ),
        ValueError,
        "0 ... 1, got values from 2 to 2",
    ),
    "class too high in a loader": (
        lambda: run(regression(pvi.Categorical(), 2), [(data()[0], torch.full((N,), 2))]),
        ValueError,
        "0 ... 1",
    ),
    "classes one-hot": (
        lambda: run(regression(pvi.Categorical(), 2), (data()[0], torch.zeros(N, 2))),
        ValueError,
        r"argmax\(-1\)",
    ),
    "scales and outputs": (
        lambda: run(regression(pvi.Gaussian((1.0, 2.0))), data()),
        ValueError,
        "2 scales but .* 1 out",
    ),
    "learned scales and outputs": (
        lambda: run(regression(pvi.Gaussian("learned", 3), 2), (data()[0], torch.zeros(N, 2))),
        ValueError,
        "3 scales but the model 2 outputs",
    ),
    # estimators
    "control variate without data": (
        lambda: pvi.control_variate(NORMAL, torch.zeros(3), torch.zeros(2)),
        ValueError,
        "with data",
    ),
    "control variate centre": (
        lambda: pvi.control_variate(mean(), torch.zeros(N), torch.zeros(2)),
        ValueError,
        r"\[1\], got",
    ),
    "control variate centre NaN": (
        lambda: pvi.control_variate(mean(), torch.zeros(N), torch.full((1,), NAN)),
        ValueError,
        "center must be finite",
    ),
    "control variate data": (
        lambda: pvi.control_variate(mean(), torch.zeros(8), torch.zeros(1)),
        ValueError,
        "12.*got 8",
    ),
    # what is kept
    "keep unknown": (lambda: run(store=kept(["b*"])), ValueError, r"\['b\*'\] match none"),
    "keep in part unknown": (
        lambda: run(store=kept(["theta", "b"])),
        ValueError,
        r"\['b'\] match none",
    ),
    "keep numbers": (lambda: run(store=kept([0, 1])), TypeError, r"keep .* got \[0, 1\]"),
    "keep outside": (lambda: run(store=kept(torch.tensor([2]))), ValueError, "0 ... 1"),
    "keep outputs of a density": (
        lambda: run(store=kept(pvi.outputs_at(torch.zeros(3)))),
        ValueError,
        "no outputs",
    ),
    "keep outputs at bad inputs": (
        lambda: run(regression(), data(), store=kept(pvi.outputs_at(torch.zeros(2, 5)))),
        ValueError,
        "Linear failed",
    ),
    # particles by hand
    "one particle without its dimension": (
        lambda: NORMAL(torch.zeros(2)),
        ValueError,
        r"got \[2\].*unsqueeze\(0\)",
    ),
    "particles too wide": (lambda: NORMAL(torch.zeros(1, 3)), ValueError, r"\[P, 2\]"),
    "no batch": (lambda: mean()(torch.zeros(1, 1)), ValueError, "got no batch"),
}


@pytest.mark.parametrize("case", CASES)
def test_its_own_error(case):
    act, error, match = CASES[case]
    with pytest.raises(error, match=f"(?s){match}"):
        act()


def test_an_unstable_step_is_named_with_its_remedy():
    with pytest.raises(pvi.DivergenceError, match=r"step size.*it was 5: try a tenth"):
        run(num_draws=500, step_size=5.0)


DRAWS = run(regression(), data(), num_draws=3)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"inputs": torch.zeros(2, 4)}, ValueError, r"Linear failed .*\[2, 4\]"),
        ({"inputs": torch.full((2, 3), NAN)}, ValueError, r"inputs\[0\] must be finite, got 6"),
        ({"inputs": torch.zeros(0, 3)}, ValueError, "inputs must hold at least one"),
        ({"inputs": [[0.0] * 3]}, TypeError, "must be made of dense tensors"),
        ({"quantiles": (1.5,)}, ValueError, r"quantiles .* got \(1.5,\)"),
        ({"thin": 0}, ValueError, "thin .* got 0"),
        ({"chunk_size": 0}, ValueError, "chunk_size .* got 0"),
        ({"batch_size": -1}, ValueError, "batch_size .* got -1"),
        ({"seed": -1}, ValueError, "seed .* got -1"),
    ],
)
def test_predictions_of_nothing(options, error, match):
    with pytest.raises(error, match=match):
        DRAWS.predict(**({"inputs": torch.zeros(2, 3)} | options))


def test_predictions_need_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"\.particles"):
        run().predict(torch.zeros(2))
    DRAWS.save(tmp_path / "draws")
    with pytest.raises(ValueError, match=r"pvi\.load\(path, potential="):
        pvi.load(tmp_path / "draws").predict(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"0 \.\.\. 1"):
        labels = run(regression(pvi.Bernoulli()), data())
        labels.log_likelihood(changed(1, 2.0))


def test_numpy_numbers_are_numbers(tmp_path):
    options = {
        "num_particles": np.int64(2),
        "num_draws": np.int32(3),
        "thin": np.int64(2),
        "num_warmup": np.int64(1),
        "seed": np.int64(4),
        "step_size": np.float32(0.125),
    }
    sampler = pvi.sghmc(NORMAL, friction=np.float32(0.5), temperature=np.float64(2.0))
    found = pvi.sample(sampler, progress=False, checkpoint=tmp_path, **options)
    plain = {name: value.item() for name, value in options.items()}
    expected = pvi.sample(pvi.sghmc(NORMAL, friction=0.5, temperature=2.0), progress=False, **plain)
    assert torch.equal(found.particles, expected.particles)
    assert torch.equal(pvi.resume(tmp_path, sampler, progress=False).particles, found.particles)
    assert pvi.schedules.constant(1)(0) == 1


def test_read_only_and_foreign_arrays_are_data():
    x = np.zeros((N, 3), dtype=">f8")
    x.flags.writeable = False
    y = np.zeros((N, 1), dtype=bool)[::-1]
    found = run(regression(pvi.Bernoulli()), (x, y))
    expected = run(regression(pvi.Bernoulli()), data())
    assert torch.equal(found.particles, expected.particles)


@pytest.mark.parametrize("kernel", [pvi.kernels.rbf, pvi.kernels.imq])
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda: 1.0, "squared distances .* which takes"),
        (torch.nn.MSELoss, "finite number above 0"),
        (lambda squares, num: None, "tensor of no axes, got None"),
        (lambda squares, num: squares[:2], "tensor of no axes, got torch.float32 .2."),
    ],
)
def test_a_bandwidth_rule_of_the_wrong_kind_is_named(kernel, rule, words):
    with pytest.raises((TypeError, ValueError), match=words):
        kernel(rule)(torch.randn(4, 2), torch.randn(4, 2))


def test_a_schedule_that_takes_no_step_is_named():
    with pytest.raises(TypeError, match=r"step_size must be a function of the step, .* takes"):
        pvi.schedules.as_schedule("step_size", lambda: 0.1)


def test_a_loss_given_as_a_class_is_named():
    with pytest.raises(TypeError, match=r"loss_fn .* the class MSELoss: give an instance"):
        pvi.noise.measure(
            torch.nn.Linear(2, 1), (torch.randn(6, 2), torch.randn(6, 1)), torch.nn.MSELoss
        )


def test_a_module_of_one_argument_is_no_loss():
    with pytest.raises(TypeError, match="loss_fn must be a function of outputs and targets"):
        pvi.noise.measure(
            torch.nn.Linear(2, 1), (torch.randn(6, 2), torch.randn(6, 1)), torch.nn.Linear(1, 1)
        )


@pytest.mark.parametrize("number", [[0], [1, 2]])
def test_chains_of_weights_are_as_long_as_each_other(number):
    net = torch.nn.Linear(2, 1)
    model = pvi.from_module(net, pvi.Gaussian(0.1), pvi.Normal(1.0), num_data=10)
    with pytest.raises(ValueError, match="Every chain needs as many state_dicts"):
        pvi.Draws.from_state_dicts(model, [[net.state_dict()] * n for n in number])


def test_a_safeguard_over_parameters_without_axes_is_refused():
    with pytest.raises(ValueError, match="Every parameter needs the workers along its first axis"):
        pvi.optim.SafeguardSGD([torch.nn.Parameter(torch.tensor(1.0))], lr=0.1, window=4)
