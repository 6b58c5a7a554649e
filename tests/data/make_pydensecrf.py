"""Makes pydensecrf.npz beside this file: small scenes inferred by pydensecrf2.

    pip install pydensecrf2==1.1 numpy && python tests/data/make_pydensecrf.py

Gaussian kernel of width 3 and weight 3, bilateral kernel of widths 3 or 80 and 13 and
weight 10, 10 iterations. `labels` starts from zeros and ones.
"""

import pathlib

import numpy as np
import pydensecrf.densecrf

SIZE = (20, 30)


def make_scene(generator: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy softmax, of blocks, and an image in whose colours the blocks show."""
    blocks = generator.integers(k, size=(SIZE[0] // 10, SIZE[1] // 10))
    truth = np.kron(blocks, np.ones((10, 10), int))
    logits = 2 * np.eye(k)[truth] + generator.normal(size=(*SIZE, k))
    y = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    colors = generator.integers(40, 200, size=(k, 3))
    image = np.clip(colors[truth] + generator.normal(size=(*SIZE, 3)) * 12, 0, 255)
    return y.astype(np.float32), image.astype(np.uint8)


def infer(y: np.ndarray, image: np.ndarray, width: int) -> np.ndarray:
    """pydensecrf2's probabilities."""
    height, image_width, k = y.shape
    crf = pydensecrf.densecrf.DenseCRF2D(image_width, height, k)
    unary = -np.log(np.clip(y.astype(np.float32), 1e-5, 1)).reshape(-1, k).T
    crf.setUnaryEnergy(unary.astype(np.float32).copy())
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=width, srgb=13, rgbim=image.copy(), compat=10)
    return np.array(crf.inference(10)).T.reshape(y.shape)


def make_case(
    name: str, y: np.ndarray, image: np.ndarray, width: int
) -> dict[str, np.ndarray]:
    """What goes in and comes out, as the file holds it."""
    y = y.astype(np.float16)
    case = {"y": y, "image": image, "inferred": infer(y, image, width)}
    return {f"{name}_width{width}_{key}": array for key, array in case.items()}


def main() -> None:
    """Writes the file."""
    generator = np.random.default_rng(0)
    arrays = {}
    for k in (2, 21):
        for width in (3, 80):
            arrays |= make_case(f"k{k}", *make_scene(generator, k), width)
    y, image = make_scene(generator, 3)
    arrays |= make_case("labels", np.eye(3)[y.argmax(axis=-1)], image, 3)
    np.savez_compressed(pathlib.Path(__file__).parent / "pydensecrf.npz", **arrays)


if __name__ == "__main__":
    main()
