"""Recorders in the real training loops of Lightning and of Hugging Face's Trainer."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import particlevi as pvi

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_under_a_recorder(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="the extra lightning is missing")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def training_step(self, batch, index):
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.05)

    module = Module()
    callback = pvi.record.lightning_callback(
        lambda each: each.net, every=2, probe_every=4, probe=(X, Y),
        loss=lambda net, batch: F.mse_loss(net(batch[0]), batch[1]),
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=3, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader)
    model = pvi.from_module(module.net, pvi.Gaussian(1.0), pvi.Normal(1.0), 32)
    draws = callback.recorder.draws(model)
    assert draws.stats["step"].tolist() == [2, 4, 6, 8, 10, 12]
    weights = nn.utils.parameters_to_vector(module.net.parameters())
    assert torch.equal(draws.particles[0, -1], weights.detach())
    assert callback.recorder.probes["step"] == [4, 8, 12]


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_trains_under_a_recorder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra transformers is missing")
    pytest.importorskip("accelerate", reason="the extra transformers is missing")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def forward(self, x, labels=None):
            outputs = self.net(x)
            return transformers.modeling_outputs.ModelOutput(
                loss=F.mse_loss(outputs, labels), logits=outputs
            )

    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    callback = pvi.record.trainer_callback(every=2, probe_every=6, probe={"x": X, "labels": Y})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, callbacks=[callback]
        ).train()
    draws = callback.recorder.draws()
    assert draws.stats["step"].tolist() == [2, 4, 6, 8, 10, 12]
    weights = nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(draws.particles[0, -1], weights.detach().cpu())
    assert callback.recorder.probes["step"] == [6, 12]
