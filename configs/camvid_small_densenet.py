"""Half-size CamVid frames on a CPU: a narrow FC-DenseNet, five-level DAEs.

Differences from configs/camvid_small.py: the segmenter, and 40 epochs for the DAEs.
Differences from configs/camvid_fc_densenet103.py: frames of 180x240, crops of 112, 46
layers of growth rate 8, running statistics at test, no fine-tuning on whole frames.

python -m iterinf.main --config=configs/camvid_small_densenet.py \
  --workdir=runs/camvid_small_densenet --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base, camvid_small


def get_config():
    """Changes the segmenter and the epochs of the DAEs."""
    config = camvid_small.get_config()
    config.segmenter = base.create_fc_densenet()
    segmenter = config.segmenter
    segmenter.title = "FC-DenseNet"
    segmenter.model.update(
        blocks=(2, 2, 3, 4, 4),
        bottleneck=4,
        growth_rate=8,
        first_channels=16,
        statistics="running",
    )
    segmenter.training.update(
        batch_size=10, crop_size=(112, 112), num_epochs=60, patience=12
    )
    segmenter.training.optimizer.decay_per_epoch = 0.97
    segmenter.fine_tuning.num_epochs = 0
    for refiner in base.list_daes(config):
        refiner.training.num_epochs = 40
    return config
