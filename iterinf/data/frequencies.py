"""Loss weights from class frequencies."""

import numpy as np
from jaxtyping import Float, Int


def compute_median_frequency_weights(
    pixels: Int[np.ndarray, "n k"],
) -> Float[np.ndarray, " k"]:
    """Computes median-frequency class weights.

    f_k = pixels of class k / labelled pixels of the images that contain k
    w_k = median(f) / f_k

    Args:
      pixels: The pixels per training image and class, without void.

    Returns:
      A weight per class; 0 for classes that do not occur.

    Source: Eigen & Fergus 2015, section 6.2; Badrinarayanan et al. 2017, section 4.2.
    """
    labelled = ((pixels > 0) * pixels.sum(axis=1, keepdims=True)).sum(axis=0)
    total = pixels.sum(axis=0)
    present = total > 0
    frequencies = total[present] / labelled[present]
    weights = np.zeros(pixels.shape[1])
    weights[present] = np.median(frequencies) / frequencies
    return weights
