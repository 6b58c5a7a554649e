"""Prediction on new images with a finished workdir, and export."""
