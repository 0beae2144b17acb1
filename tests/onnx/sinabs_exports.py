"""Writes what test_sinabs.py reads: networks of sinabs as PyTorch exports them, with outputs, losses and gradients.

Usage: ``python tests/onnx/sinabs_exports.py`` where torch, onnxscript and sinabs 3.1 are installed. sinabs is none of
the project's dependencies, as it wants an older NIR than ours.
"""

import io
import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import sinabs.activation
import sinabs.layers as sl
import torch
from sinabs.from_torch import from_model
from torch import nn

FOLDER = Path(__file__).parent / "sinabs"
KINDS = {
    "lif": lambda leaky, loud, shared: sl.LIF(**leaky),
    "unnormalised": lambda leaky, loud, shared: sl.LIF(**loud),
    "lower_bound": lambda leaky, loud, shared: sl.IAF(min_v_mem=-0.25, **shared),
    "up_to_2": lambda leaky, loud, shared: sl.LIF(spike_fn=sinabs.activation.MaxSpike(2), **loud),
    "to_0": lambda leaky, loud, shared: sl.LIF(reset_fn=sinabs.activation.MembraneReset(), **loud),
    "synapse": lambda leaky, loud, shared: sl.LIF(tau_syn=torch.tensor(4.0), **loud),
    "recurrent": lambda leaky, loud, shared: sl.LIFRecurrent(rec_connect=nn.Linear(8, 8, bias=False), **loud),
    "single": lambda leaky, loud, shared: sl.IAF(spike_fn=sinabs.activation.SingleSpike, min_v_mem=-0.125, **shared),
}
SURROGATES = {
    "single": ("SingleExponential", {"grad_width": 0.5, "grad_scale": 1.0}, ("Exponential", 0.125, 8.0, False)),
    "periodic": ("PeriodicExponential", {"grad_width": 0.2, "grad_scale": 0.8}, ("Exponential", 0.2, 0.8, True)),
    "gaussian": ("Gaussian", {"sigma": 0.5}, ("Gaussian", math.sqrt(0.5), math.sqrt(2 / math.pi), False)),
}
"""sinabs' surrogate and its arguments, and kind, width, height and period of ours (at a threshold of 0.25)."""
STEPS = [*((kind, "single") for kind in KINDS), ("recurrent", "periodic"), ("up_to_2", "periodic"), ("lif", "gaussian")]
FOLDED = [("mlp", {"batch_size": 1}), ("mlp", {"num_timesteps": 4}), ("cnn", {"batch_size": 3})]


class TimeFirst(nn.Module):
    """Layers of sinabs, which have the batch first, on inputs ``[T,N,...]``."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.transpose(0, 1)).transpose(0, 1)


def of_kind(kind, surrogate=None):
    """Return a network of a kind of neurons."""
    torch.manual_seed(4)
    shared = {} if surrogate is None else {"surrogate_grad_fn": surrogate}
    shared = {"spike_threshold": torch.tensor(0.25), **shared}
    leaky = {"tau_mem": torch.tensor(10.0), **shared}
    neurons = KINDS[kind](leaky, {"norm_input": False, **leaky}, shared)
    return TimeFirst(nn.Linear(6, 8), neurons, nn.Linear(8, 4), sl.IAF(**shared))


def squeezed(kind, **sizes):
    """Return a network of squeezing layers, on inputs ``[N*T,...]``, and the shape of a sample."""
    torch.manual_seed(0)
    mlp = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU()
    cnn = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 5), nn.ReLU()
    layers, shape = (mlp, (6,)) if kind == "mlp" else (cnn, (2, 6, 6))
    return from_model(nn.Sequential(*layers), spike_threshold=0.25, **sizes).spiking_model, shape


def reset(net):
    for layer in net.modules():
        if hasattr(layer, "reset_states"):
            layer.reset_states()
    return net


def exported(net, x, dynamo):
    """Return the bytes of a file; the network must not have run before, or its states become constants.

    Places of the exporting machine (stack traces) are left out.
    """
    names = {"input_names": ["input"], "output_names": ["output"]}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            buffer.write(torch.onnx.export(net.eval(), (x,), dynamo=True, **names).model_proto.SerializeToString())
        else:
            torch.onnx.export(net.eval(), (x,), buffer, dynamo=False, **names)
    model = onnx.load_model_from_string(buffer.getvalue())
    for part in (model.graph, *model.graph.node, *model.functions, *(n for f in model.functions for n in f.node)):
        part.doc_string = ""
        kept = [entry for entry in part.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        del part.metadata_props[:]
        part.metadata_props.extend(kept)
    return np.frombuffer(model.SerializeToString(), dtype=np.uint8)


def with_outputs(net, x, dynamo):
    model = exported(net, x, dynamo)
    with torch.no_grad():
        return {"model": model, "x": x.numpy(), "output": reset(net)(x).numpy()}


def of_a_step(kind, name):
    """Return a file, and loss and gradients of a training step."""
    known, arguments, surrogate = SURROGATES[name]
    net = of_kind(kind, getattr(sinabs.activation, known)(**arguments))
    x, label = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(6)), torch.tensor([1, 3])
    model = exported(net, x, dynamo=False)
    loss = nn.functional.cross_entropy(reset(net)(x).mean(0), label)
    loss.backward()
    result = {"model": model, "x": x.numpy(), "label": label.numpy().astype(np.int32), "loss": loss.item()}
    for parameter, value in net.named_parameters():
        if parameter.endswith(("weight", "bias")):
            result |= {f"value.{parameter}": value.detach().numpy(), f"gradient.{parameter}": value.grad.numpy()}
    return result | {"surrogate": np.asarray(surrogate, dtype=str)}


def write():
    """Write all files anew."""
    FOLDER.mkdir(exist_ok=True)
    for kind in KINDS:
        for dynamo in (False, True) if kind in ("lower_bound", "up_to_2", "recurrent") else (False,):
            x = 2 * torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(5))
            name = f"output_{kind}{'_dynamo' * dynamo}"
            np.savez_compressed(FOLDER / f"{name}.npz", **with_outputs(of_kind(kind), x, dynamo))
    for kind, sizes in FOLDED:
        for dynamo in (False, True):
            net, shape = squeezed(kind, **sizes)
            generator = torch.Generator().manual_seed(7)
            x = 8 * torch.rand(4 * sizes.get("batch_size", 3), *shape, generator=generator)
            name = f"folded_{kind}_{next(iter(sizes))}{'_dynamo' * dynamo}"
            np.savez_compressed(FOLDER / f"{name}.npz", **with_outputs(net, x, dynamo))
    for kind, surrogate in STEPS:
        np.savez_compressed(FOLDER / f"step_{kind}_{surrogate}.npz", **of_a_step(kind, surrogate))


if __name__ == "__main__":
    write()
