"""A finished workdir on new images, and its export."""
