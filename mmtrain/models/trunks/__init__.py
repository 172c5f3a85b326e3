"""Towers that are not made of our blocks: a trunk that ends in one token stands in the place of a
tower's embedding, and no block follows. One is native, the others are the library's that has them,
imported where such a tower is built and nowhere else."""
