"""Makes fc_densenet.npz: a narrow FC-DenseNet, built a second time in PyTorch.

    python -m tests.data.make_fc_densenet

Every layer here normalises the whole stack of maps that it reads, as the paper draws
it. Needs torch.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch.nn import functional

import iterinf

NARROW = {"blocks": (2, 3), "bottleneck": 2, "growth_rate": 4, "first_channels": 6}


def draw_parameters(segmenter, seed):
    """Random arrays by path, e.g. down1_layer1/conv/kernel; none is left at 0 or 1."""
    shapes = jax.eval_shape(
        segmenter.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )["params"]
    rng = np.random.default_rng(seed)
    parameters = {}
    for path, shape in flatten_dict(shapes, sep="/").items():
        values = rng.normal(size=shape.shape)
        if path.endswith("kernel"):
            values *= np.sqrt(2 / np.prod(shape.shape[:-1]))
        elif path.endswith("scale"):
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        parameters[path] = values.astype(np.float32)
    return parameters


def run_pytorch(parameters, images, blocks, bottleneck, *, statistics):
    """Logits [b h w k] and the features pool1.. of the network with these arrays."""
    tensors = {path: torch.from_numpy(array) for path, array in parameters.items()}

    def convolve(x, path):
        kernel = tensors[f"{path}/kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, tensors[f"{path}/bias"], padding="same")

    def apply_layer(x, path):
        scale, bias = tensors[f"{path}/scale"], tensors[f"{path}/bias"]
        if statistics == "image":
            x = functional.instance_norm(x, weight=scale, bias=bias, eps=1e-4)
        else:
            x = functional.batch_norm(
                x, None, None, scale, bias, training=True, eps=1e-4
            )
        return convolve(functional.relu(x), f"{path}/conv")

    def apply_block(stack, path, num_layers):
        new = []
        for i in range(1, num_layers + 1):
            new.append(apply_layer(stack, f"{path}_layer{i}"))
            stack = torch.cat([stack, new[-1]], dim=1)
        return stack, torch.cat(new, dim=1)

    stack = convolve(torch.from_numpy(images).permute(0, 3, 1, 2), "first")
    skips, features = [], {}
    for level, num_layers in enumerate(blocks, start=1):
        stack, _ = apply_block(stack, f"down{level}", num_layers)
        skips.append(stack)
        stack = apply_layer(stack, f"transition{level}")
        stack = functional.max_pool2d(stack, 2)
        features[f"pool{level}"] = stack.permute(0, 2, 3, 1).numpy()
    _, new = apply_block(stack, "bottleneck", bottleneck)
    for level in range(len(blocks), 0, -1):
        skip = skips[level - 1]
        kernel = tensors[f"upsampling{level}/kernel"].permute(2, 3, 0, 1)
        bias = tensors[f"upsampling{level}/bias"]
        x = functional.conv_transpose2d(new, kernel, bias, stride=2)
        x = x[:, :, : skip.shape[2], : skip.shape[3]]
        stack = torch.cat([x, skip], dim=1)
        stack, new = apply_block(stack, f"up{level}", blocks[level - 1])
    return convolve(stack, "score").permute(0, 2, 3, 1).numpy(), features


def main():
    """Writes the arrays beside this file."""
    segmenter = iterinf.create_segmenter("fc_densenet103", num_classes=5, **NARROW)
    parameters = draw_parameters(segmenter, seed=0)
    images = np.random.default_rng(1).uniform(size=(2, 22, 27, 3)).astype(np.float32)
    arrays = {"images": images}
    for statistics in ("image", "batch"):
        logits, features = run_pytorch(
            parameters,
            images,
            NARROW["blocks"],
            NARROW["bottleneck"],
            statistics=statistics,
        )
        arrays |= {f"logits_{statistics}": logits}
        arrays |= {f"pool2_{statistics}": features["pool2"]}
    arrays |= {f"params/{path}": array for path, array in parameters.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("fc_densenet.npz"), **arrays)


if __name__ == "__main__":
    main()
