"""Devices, processes, files and signals."""
