"""Batches of images and captions by number: any batch of a run, made on its own, the same always."""



