"""Images into classes: zero-shot, probes, neighbours."""
