"""Configs, one per file; base.py defines every key."""
