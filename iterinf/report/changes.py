"""Where a refinement corrects an image's labels, and where it degrades them."""

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8

UNCHANGED, CORRECTED, DEGRADED, NEUTRAL = range(4)
_GRID_CELLS = 48  # cells along the longer side, where regions of change are sought

Box = tuple[int, int, int, int]  # top, left, height, width; pixels


def compute_changes(
    label: Integer[np.ndarray, "h w"],
    before: Integer[np.ndarray, "h w"],
    after: Integer[np.ndarray, "h w"],
    num_classes: int,
) -> UInt8[np.ndarray, "h w"]:
    """Maps what a refiner did to each pixel.

    Args:
      label: The truth; `num_classes` and above are void.
      before: The classes predicted by the segmenter.
      after: The classes predicted by the refiner.
      num_classes: The number k of classes.

    Returns:
      UNCHANGED (0; void pixels too), CORRECTED (1: wrong, now right), DEGRADED (2:
      right, now wrong) or NEUTRAL (3: changed from one wrong class to another).
    """
    changes = np.full(label.shape, NEUTRAL, np.uint8)
    changes[after == label] = CORRECTED
    changes[before == label] = DEGRADED
    changes[(before == after) | (label >= num_classes)] = UNCHANGED
    return changes


def find_largest_changes(
    changes: UInt8[np.ndarray, "h w"], num_boxes: int = 3
) -> list[Box]:
    """Finds the rectangles with most pixels corrected or degraded.

    On a grid of cells, cell i scores f_i - d / 2, where f_i is the changed fraction of
    it and d = sum(f^2) / sum(f), the density around a typical changed pixel. The
    rectangle with the highest sum, of at most half the image's height and width, is
    taken out and the next one sought in the rest, until a tenth of the first sum. A
    margin of one cell is added.

    Returns:
      The boxes, largest change first; fewer where there is little to show.
    """
    height, width = changes.shape
    cell = -(-max(height, width) // _GRID_CELLS)
    changed = (changes == CORRECTED) | (changes == DEGRADED)
    if not changed.any():
        return []
    padded = np.pad(changed.astype(float), ((0, -height % cell), (0, -width % cell)))
    rows, columns = (size // cell for size in padded.shape)
    density = padded.reshape(rows, cell, columns, cell).mean(axis=(1, 3))
    scores = density - (density**2).sum() / density.sum() / 2
    boxes: list[Box] = []
    largest = 0.0
    for _ in range(num_boxes):
        score, (top, bottom), (left, right) = _find_best_rectangle(scores)
        largest = max(largest, score)
        if score <= largest / 10:
            break
        scores[top:bottom, left:right] = -1.0  # the lowest that a cell can have
        first_row, first_column = max(top - 1, 0) * cell, max(left - 1, 0) * cell
        box_height = min((bottom + 1) * cell, height) - first_row
        box_width = min((right + 1) * cell, width) - first_column
        boxes.append((first_row, first_column, box_height, box_width))
    return boxes


def _find_best_rectangle(
    scores: Float[np.ndarray, "r c"],
) -> tuple[float, list[int], list[int]]:
    """Finds the highest sum, and the rows and columns (end exclusive) of it."""
    table = np.pad(scores, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows, columns = (_list_ranges(size) for size in scores.shape)
    bands = table[rows[1]] - table[rows[0]]
    sums = bands[:, columns[1]] - bands[:, columns[0]]
    row, column = np.unravel_index(sums.argmax(), sums.shape)
    return float(sums.max()), rows[:, row].tolist(), columns[:, column].tolist()


def _list_ranges(size: int) -> Int[np.ndarray, "2 p"]:
    """Lists starts and ends of all ranges no longer than half of `size`."""
    starts, ends = np.triu_indices(size + 1, k=1)
    return np.stack([starts, ends])[:, ends - starts <= max(size // 2, 1)]
