"""Half-size CamVid frames, a full-width FCN-8 from VGG16: a strong baseline.

Differences from configs/camvid_small.py: the segmenter, whose convolutions start from
ImageNet weights, and the list of refiners. data/vgg16.safetensors holds torchvision's
VGG16 weights, or only its convolutions (`init_from` in docs/experiments.md). An FCN-8
of this width has 134 million parameters: a step of 10 crops takes 1.5 s on two CPU
cores.

python -m iterinf.main --config=configs/camvid_vgg16.py --workdir=runs/camvid_vgg16 \
  --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base, camvid_small


def get_config():
    """Changes the segmenter and the list of refiners."""
    config = camvid_small.get_config()
    config.segmenter = base.create_fcn8()
    segmenter = config.segmenter
    segmenter.model.padding = "same"
    segmenter.init_from = "data/vgg16.safetensors"
    segmenter.training.update(crop_size=(112, 112), num_epochs=40, patience=12)
    segmenter.training.optimizer.update(learning_rate=1e-4, decay_per_epoch=0.93)
    config.refiners = ("dense_crf", "dae_no_y", "dense_crf_after_dae_y", "dae_y")
    return config
