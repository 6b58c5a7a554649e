"""Devices, processes, files, signals: what has nothing to do with the method."""
