"""What the fork server does once for all of its processes: it loads the package, and trains for two steps, so that
kernels and templates are loaded too."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch

import simclr
from simclr.cli import parsing  # noqa: F401
from simclr.tasks import embed, finetune, knn, linear, transfer  # noqa: F401

with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
    contextlib.suppress(Exception),  # which the tests will meet
):
    torch.set_num_threads(1)  # a process with threads must not be forked
    simclr.Pretrain(
        data=[np.zeros((8, 8, 3), np.uint8)] * 8, encoder="simclr_resnet10", encoder_options={"width": 0.125},
        views=simclr.Views(size=8), batch=4, epochs=1, warmup_epochs=0, out=Path(folder) / "run",
        machine=simclr.Machine(accelerator="cpu", workers=0),
    )()  # fmt: skip
