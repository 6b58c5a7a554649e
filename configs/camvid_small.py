"""Half-size CamVid frames on a CPU: a narrow FCN-8, five-level DAEs.

Against configs/camvid_fcn8.py: frames of 180x240, crops of 112, FCN-8 at a quarter of
the width with 'same' padding, photometric jitter for the segmenter, DAEs 16 to 256 wide
with skip connections and a linear decoder, which learn fast enough for a CPU.

python -m iterinf.main --config=configs/camvid_small.py --workdir=runs/camvid_small \
  --config.dataset.options.path=PATH_OF_CAMVID
"""

from configs import base


def get_config():
    """Small frames and networks."""
    config = base.get_config()
    config.dataset.name = "camvid"
    config.dataset.options = {"path": "data/camvid", "scale": 2}
    segmenter = config.segmenter
    segmenter.model.update(
        width=0.25,
        padding="same",
        input_mean=(0.412, 0.425, 0.433),  # of CamVid's training frames
        input_std=(0.307, 0.312, 0.307),
    )
    segmenter.training.update(
        crop_size=(112, 112), jitter=0.3, num_epochs=150, patience=15
    )
    segmenter.training.optimizer.update(learning_rate=1e-3, decay_per_epoch=0.97)
    for refiner in config.refiner.values():
        refiner.model.update(
            widths=(16, 32, 64, 128, 256), relu_decoder=False, skip_connections=True
        )
        refiner.training.update(
            crop_size=(112, 112),
            num_epochs=60,
            patience=15,
            monitor="validation/mean_iou",
        )
        refiner.training.optimizer = {
            "name": "adam",
            "learning_rate": 2e-3,
            "decay_per_epoch": 0.97,
            "weight_decay": 1e-4,
            "options": {},
        }
    config.evaluation.batch_size = 5
    return config
