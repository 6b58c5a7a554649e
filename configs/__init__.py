"""Configs, one a file; base.py holds every key."""
