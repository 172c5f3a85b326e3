"""Captions, labels and features that lie apart from the images, joined to them by key."""
