"""Exported networks against PyTorch: outputs, and the gradients of one training step."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import h2learn

torch = pytest.importorskip("torch")

SURROGATE = h2learn.Rectangular(0.5, 1.0)


def imported(net, example, path, *, dynamo=False, opset=17):
    """Return the model of an exported network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opset = max(18, opset) if dynamo else opset
        torch.onnx.export(
            net, (example,), str(path), dynamo=dynamo, opset_version=opset, input_names=["input"], verbose=False
        )
    return h2learn.load_model(path)


def compare(net, x, path, **options):
    """Compare all outputs of an exported network, and loss and gradients of its first one; return the model."""
    net.eval()
    model = imported(net, x, path, **options)
    outputs = net(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs
    assert len(found) == len(outputs)
    for value, expected in zip(found.values(), outputs, strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert np.ptp(expected.detach().numpy()) > 0.05
    learns(net, x, model)
    return model


def learns(net, x, model):
    """Compare loss and gradients of a training step with autograd; all parameters of the file have one."""
    logits = net(x)
    logits = logits[0] if isinstance(logits, tuple) else logits
    logits = logits.mean(0) if logits.dim() == 3 else logits
    label = np.arange(logits.shape[0], dtype=np.int32) % logits.shape[1]
    net.zero_grad()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(label, dtype=torch.long))
    loss.backward()
    train = h2learn.Train(optimizer=h2learn.SGD(lr=0.1), surrogate=SURROGATE)
    result = h2learn.compile(model, train=train).run({"input": x.numpy(), "label": label})
    assert abs(result.loss - loss.item()) < 1e-5
    compared = 0
    for name, parameter in net.named_parameters():
        if name in result.gradients:
            gradient = parameter.grad.numpy()
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(result.gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
            compared += bool(scale)
    assert compared == len(result.gradients)
