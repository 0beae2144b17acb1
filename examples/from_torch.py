"""A snnTorch network trained on the simulated accelerator, and its weights loaded back.

``python examples/from_torch.py`` (extra ``torch``, half a minute). Any module works whose call is one time step and
whose neurons keep their potential from call to call: snnTorch's with ``init_hidden=True``, SpikingJelly's single-step
ones, and those of one's own.
"""

from __future__ import annotations

import snntorch as snn
import torch
from snntorch import utils
from torch import nn

import h2learn

STEPS = 8


def network() -> nn.Sequential:
    """Return two convolutions and a classifier; one call is one time step."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 10),
    )


def classify(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the class of each image after ``STEPS`` time steps."""
    utils.reset(net)
    return torch.stack([net(x) for _ in range(STEPS)]).mean(0).argmax(1)


def main() -> None:
    """Train on the simulator, load the weights back, compare both on the test images."""
    torch.manual_seed(0)
    net, data = network(), h2learn.load_digits()
    model = h2learn.from_torch(net, torch.zeros(1, 1, 8, 8), STEPS)
    print(*model.notes, sep="\n")

    recipe = h2learn.Train(
        loss="cross_entropy",
        optimizer=h2learn.SGD(lr=0.05, momentum=0.9),
        surrogate=h2learn.Rectangular(half_width=1.0),
    )
    history = h2learn.train(model, data, epochs=5, batch=32, train=recipe)
    for epoch in history.epochs:
        print(f"epoch {epoch.number + 1}: loss {epoch.loss:.3f}, test accuracy {epoch.test_accuracy:.1%}")

    net.load_state_dict(history.step.to_torch_state_dict(history.parameters), strict=False)
    images, labels = torch.tensor(data.x_test), torch.tensor(data.y_test)
    with torch.no_grad():
        share = (classify(net, images) == labels).float().mean().item()
    print(f"the same weights in snnTorch: {share:.1%}")


if __name__ == "__main__":
    main()
