"""Edges and machines: settings, command line, local stack, store, demo, replay. Where everything meets."""
