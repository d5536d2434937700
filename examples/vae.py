"""A variational autoencoder of handwritten digits: an amortised guide, and a picture of its plane.

scikit-learn's 1,797 digits of 8 x 8 pixels. Each has two latent numbers; a network, the decoder,
maps them to the probabilities of the pixels' 16 grey levels. Its weights are random variables like
all others. Another network, the guide, tells the latent numbers from the pixels, so that a
mini-batch of 128 digits costs what 128 digits cost, and a new digit is told without a fit.

Run it with ``python examples/vae.py [folder]``: it prints the bound of the log evidence and the
errors of reconstructions, held-out digits included, and writes ``vae.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import probkit as pk
from probkit import dist

LEVELS, LATENT = 16, 2


def fan_in(path: str, array: jax.Array) -> Any:
    """A normal prior whose scale keeps a layer's output of the size of its input."""
    return dist.Normal(0, 1.0 / np.sqrt(max(array.shape[-1], 1)) if array.ndim > 1 else 0.5)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, 0 to 16, shape ``(1797, 64)``, and which digit each is."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.data))
    return found.data[order].astype(np.float32), found.target[order]


def main() -> None:
    """Fit, judge on held-out digits, draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".")
    pixels, labels = digits()
    train, held_out = pixels[:1500], pixels[1500:]
    keys = jax.random.split(jax.random.key(0), 2)
    decoder = eqx.nn.MLP(LATENT, 64, 64, 2, activation=jnp.tanh, key=keys[0])
    guide = eqx.nn.Sequential(
        [
            eqx.nn.Lambda(lambda x: x / LEVELS - 0.3),
            eqx.nn.MLP(64, 2 * LATENT, 64, 2, activation=jnp.tanh, key=keys[1]),
        ]
    )
    model = pk.Model(
        net=pk.module(decoder, prior=fan_in),
        z=pk.rv(
            lambda: dist.Normal(0, 1).expand([LATENT]).to_event(1), dims="row", event_dims="axis"
        ),
        pixels=pk.rv(
            lambda net, z: dist.Binomial(LEVELS, logits=jax.vmap(net)(z)).to_event(1),
            dims="row",
            event_dims="pixel",
        ),
    )
    method = pk.VI(guide=guide, batch_size=128, max_steps=6000, draws=20)
    posterior = pk.fit(model, {"pixels": train}, method=method, seed=0, progress=False)
    fitted: Any = posterior.approximation
    bound = fitted.stats["elbo"]
    print(posterior.check())
    print(f"bound of the log evidence: {bound / len(train):.2f} a digit")

    encoder = jax.jit(jax.vmap(method.encoder(posterior)))
    net = decoder_of(posterior, decoder)
    for name, images in (("training", train), ("held-out", held_out)):
        print(f"{name}: error of a reconstructed pixel {error(encoder, net, images):.2f} of 16")
    draw_picture(folder / "vae.png", encoder, net, pixels, labels)


def decoder_of(posterior: pk.Posterior, like: Any) -> Any:
    """The decoder with the posterior means of its arrays."""
    arrays, rest = eqx.partition(like, eqx.is_inexact_array)
    leaves, tree = jax.tree_util.tree_flatten_with_path(arrays)
    names = ["net" + jax.tree_util.keystr(path) for path, _ in leaves]
    means = [jnp.asarray(posterior.values[k].mean(axis=(0, 1))) for k in names]
    return eqx.combine(jax.tree_util.tree_unflatten(tree, means), rest)


def rebuilt(encoder: Any, net: Any, images: np.ndarray) -> np.ndarray:
    """Expected pixels at the means of the latent numbers."""
    place = encoder(images)[:, :LATENT]
    return LEVELS * np.asarray(jax.nn.sigmoid(jax.vmap(net)(place)))


def error(encoder: Any, net: Any, images: np.ndarray) -> float:
    """Root mean square error of reconstructed pixels."""
    return float(np.sqrt(np.mean((rebuilt(encoder, net, images) - images) ** 2)))


def mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Digits in rows of so many, with a white line between neighbours."""
    padded = np.pad(images.reshape(-1, columns, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    return padded.transpose(0, 2, 1, 3).reshape(-1, 10 * columns)


def draw_picture(path: Path, encoder: Any, net: Any, pixels: np.ndarray, labels: Any) -> None:
    """The plane of latent numbers, what it decodes to, and held-out digits with their copies."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.6))
    place = np.asarray(encoder(pixels)[:, :LATENT])
    dots = panels[0].scatter(*place.T, c=labels, s=5, cmap="tab10")
    figure.colorbar(dots, ax=panels[0], label="digit")
    panels[0].set_title("latent numbers told by the guide")
    low, high = np.quantile(place, [0.01, 0.99], axis=0)
    across, down = np.linspace(low[0], high[0], 12), np.linspace(high[1], low[1], 12)
    grid = np.stack(np.meshgrid(across, down), -1).reshape(-1, LATENT).astype(np.float32)
    tiles = LEVELS * np.asarray(jax.nn.sigmoid(jax.vmap(net)(grid)))
    panels[1].imshow(mosaic(tiles, 12), cmap="gray_r")
    panels[1].set_title("what the decoder makes of the plane")
    seen = pixels[-60:]
    both = np.stack([seen.reshape(6, 10, 64), rebuilt(encoder, net, seen).reshape(6, 10, 64)], 1)
    panels[2].imshow(mosaic(both.reshape(-1, 64), 10), cmap="gray_r")
    panels[2].set_title("held-out digits, each above its reconstruction")
    for panel in panels[1:]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
