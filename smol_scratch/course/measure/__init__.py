"""Measurements that take more than a few lines: a file for each notebook, plain data out."""
