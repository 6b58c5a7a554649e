"""What is measured, the sweep on validation, the choice, and intervals."""
