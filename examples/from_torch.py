"""A PyTorch network trained on the simulated accelerator, and its weights loaded back.

``python examples/from_torch.py`` (extra ``torch``, half a minute). The neuron keeps its potential from call to call,
as snnTorch's ``Leaky(init_hidden=True)`` and SpikingJelly's single-step ``LIFNode`` do; theirs work the same way.
"""

from __future__ import annotations

import torch
from torch import nn

import h2learn

STEPS = 8


class Lif(nn.Module):
    """``u = 0.5 * v + x``, a spike where ``u >= 1``, hard reset to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Start again from rest."""
        self.v: torch.Tensor | float = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the spikes of one time step."""
        u = 0.5 * self.v + x
        s = (u >= 1).to(x.dtype)
        self.v = u * (1 - s)
        return s


class Net(nn.Module):
    """Two convolutions and a classifier; one call is one time step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1, self.pool = nn.Conv2d(1, 12, 3, padding=1), Lif(), nn.MaxPool2d(2)
        self.conv2, self.lif2 = nn.Conv2d(12, 24, 3, padding=1), Lif()
        self.fc = nn.Linear(24 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the classes' currents of one time step."""
        maps = self.lif2(self.conv2(self.pool(self.lif1(self.conv1(x)))))
        return self.fc(maps.flatten(1))

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class of each image after ``STEPS`` time steps."""
        self.lif1.reset()
        self.lif2.reset()
        return torch.stack([self(x) for _ in range(STEPS)]).mean(0).argmax(1)


def main() -> None:
    """Train on the simulator, load the weights back, compare both on the test images."""
    torch.manual_seed(0)
    net, data = Net(), h2learn.load_digits()
    model = h2learn.from_torch(net, torch.zeros(1, 1, 8, 8), STEPS)
    print(*model.notes, sep="\n")

    recipe = h2learn.Train(
        loss="cross_entropy",
        optimizer=h2learn.SGD(lr=0.1, momentum=0.9),
        surrogate=h2learn.Rectangular(half_width=1.0),
    )
    history = h2learn.train(model, data, epochs=5, batch=32, train=recipe)
    for epoch in history.epochs:
        print(f"epoch {epoch.number + 1}: loss {epoch.loss:.3f}, test accuracy {epoch.test_accuracy:.1%}")

    net.load_state_dict(history.step.to_torch_state_dict(history.parameters))
    images, labels = torch.tensor(data.x_test), torch.tensor(data.y_test)
    with torch.no_grad():
        share = (net.classify(images) == labels).float().mean().item()
    print(f"the same weights in PyTorch: {share:.1%}")


if __name__ == "__main__":
    main()
