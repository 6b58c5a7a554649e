"""How often classes occur, and the loss weights made from that."""

import numpy as np
from jaxtyping import Float

from iterinf.data.dataset import Split


def compute_median_frequency_weights(
    split: Split, num_classes: int
) -> Float[np.ndarray, " k"]:
    """Weights that make rare classes count as much as the median one.

    f_k = pixels of class k / labelled pixels of the images that show k
    w_k = median(f) / f_k

    Args:
      split: the training split; read whole.
      num_classes: k; labels from k on are void.

    Returns:
      A weight a class; 0 for one that no image shows.

    Source: Eigen & Fergus 2015, section 6.2; Badrinarayanan et al. 2017, section 4.2.
    """
    pixels = np.zeros(num_classes)
    labelled = np.zeros(num_classes)
    for record in split:
        counts = np.bincount(record.label.ravel(), minlength=num_classes)[:num_classes]
        pixels += counts
        labelled += (counts > 0) * counts.sum()
    present = pixels > 0
    frequencies = pixels[present] / labelled[present]
    weights = np.zeros(num_classes)
    weights[present] = np.median(frequencies) / frequencies
    return weights
